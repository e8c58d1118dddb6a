"""Checks that an extended answer agrees with the original one: form, length, polarity and key terms."""

import json
import re
from collections.abc import Sequence

import jsonschema


SCHEMA = {
    "type": "object",
    "properties": {"extended_answers": {"type": "array", "items": {"type": "string", "minLength": 1}}},
    "required": ["extended_answers"],
}
# In words. The 1,797 extended answers to VQA-RAD's training questions have 16 to 36 words, the originals 1 to 17.
FEWEST_WORDS, MOST_WORDS, MOST_WORDS_FOR_ONE = 6, 80, 4
# An answer with more key terms may lose one in three, since it is reworded more.
FEW_TERMS, SHARE_OF_MANY_TERMS = 4, 2 / 3
STEM_SIZE = 5  # letters that two forms of a word have in common
WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")
HYPHENATED = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)+")
CODE_FENCE = re.compile(r"^\s*```[a-z]*\s*\n(.*?)\n?\s*```\s*$", re.DOTALL | re.IGNORECASE)
NEGATIONS = frozenset(
    WORD.findall(
        "no not none without absent absence neither nor never cannot lacks lack lacking negative nothing excluded "
        "unlikely denies free fails rather outside instead departs deviates unremarkable intact spared"
    )
)
POSITIVE_WORDS, NEGATIVE_WORDS = ("yes",), ("no",)
STOP_WORDS = frozenset(
    WORD.findall(
        "the and are was were has have had this that these those there with from into for its their his her than then "
        "but can could may might would should been being also very some any all both which what where who one other "
        "of in on at to by is it as an or be yes no not seen shown present image picture appears"
    )
)


class ReplyError(ValueError):
    """Why a reply cannot be used, worded so that a model can act on it."""


def read_reply(text: str, answers: Sequence[str]) -> list[str]:
    """
    The extended answers of a reply.

    Args:
        text (`str`): JSON of the form `SCHEMA`, perhaps in a code fence.
        answers (`Sequence[str]`): The original answers, one per turn.

    Returns:
        `list[str]`: One for each answer, without surrounding spaces.

    Raises:
        ReplyError: If the reply cannot be used, with the reason and the number of a faulty answer, counted from 1.

    Example:
        >>> read_reply('{"extended_answers": ["Yes, the heart is larger than it should be."]}', ["Yes"])
        ['Yes, the heart is larger than it should be.']
    """
    fenced = CODE_FENCE.match(text)
    try:
        content = json.loads(fenced[1] if fenced else text)
        jsonschema.validate(content, SCHEMA)
    except json.JSONDecodeError as error:
        raise ReplyError(f"The reply is not valid JSON: {error}.") from error
    except jsonschema.ValidationError as error:
        raise ReplyError(f"The reply is not of the form that was asked for: {error.message[:200]}.") from error
    extended = [answer.strip() for answer in content["extended_answers"]]
    if len(extended) != len(answers):
        raise ReplyError(f"The reply has {len(extended)} extended answers, but the conversation has {len(answers)}.")
    for number, (answer, longer) in enumerate(zip(answers, extended, strict=True), start=1):
        problem = find_problem(answer, longer)
        if problem is not None:
            raise ReplyError(f"Extended answer {number} ({longer[:80]!r}) {problem}.")
    return extended


def find_problem(answer: str, extended: str) -> str | None:
    """What is wrong with an extended answer, or None."""
    num_words, most = len(extended.split()), max(MOST_WORDS, MOST_WORDS_FOR_ONE * len(answer.split()))
    fewest = max(FEWEST_WORDS, min(len(answer.split()), MOST_WORDS))
    if num_words < fewest:
        return f"has {num_words} words; it needs at least {fewest}"
    if num_words > most:
        return f"has {num_words} words; it may have at most {most}"
    if "<image>" in extended:
        return "holds <image>, which stands for an image"
    polarity = find_polarity(answer)
    if polarity is not None and find_polarity(extended, among_others=True) != polarity:
        return f"does not say {'yes' if polarity else 'no'}, as the original answer {answer!r} does"
    missing = find_missing_terms(answer, extended)
    if missing:
        return f"leaves out {', '.join(missing)} of the original answer {answer!r}"
    return None


def find_polarity(text: str, among_others: bool = False) -> bool | None:
    """
    Whether an answer affirms or denies; None if it is neither a yes nor a no.

    Args:
        among_others (`bool`): Whether the text is known to affirm or deny: without a leading yes or no, it denies if
            its first sentence has a negation, and affirms otherwise.

    Example:
        >>> find_polarity("No, the lungs are clear."), find_polarity("left lung")
        (False, None)
        >>> find_polarity("There is no fracture.", among_others=True)
        False
    """
    words = split_words(text)
    if words and words[0] in POSITIVE_WORDS + NEGATIVE_WORDS and (among_others or len(words) == 1 or "," in text):
        return words[0] in POSITIVE_WORDS
    if not among_others:
        return None
    first_sentence = split_words(re.split(r"(?<=[.;!?])\s", text, maxsplit=1)[0])
    if any(word in POSITIVE_WORDS for word in first_sentence):
        return True
    return not any(word in NEGATIONS or word.endswith("n't") for word in first_sentence)


def find_missing_terms(answer: str, extended: str) -> list[str]:
    """Key terms of an answer that its extended form lacks, unless so few that they may be reworded."""
    terms = [word for word in dict.fromkeys(split_words(answer)) if len(word) > 2 or word.isdigit()]
    terms = [word for word in terms if word not in STOP_WORDS]
    words = set(split_words(extended))
    stems = {word[:STEM_SIZE] for word in words}
    missing = [term for term in terms if term not in words and (term.isdigit() or term[:STEM_SIZE] not in stems)]
    if len(terms) > FEW_TERMS and len(missing) <= (1 - SHARE_OF_MANY_TERMS) * len(terms):
        return []
    return missing


def split_words(text: str) -> list[str]:
    """Words in lower case; a hyphenated word gives its parts, and the joined word: `x-ray` also gives `xray`."""
    text = text.lower().replace("\u2019", "'")  # typographic apostrophe
    return WORD.findall(text) + [word.replace("-", "") for word in HYPHENATED.findall(text)]
