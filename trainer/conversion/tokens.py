"""Tokenizers of the checkpoints, with the tokens that an image needs and the right special ones."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from transformers import AddedToken, LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from logramed.trainer.build_model import IMAGE_TOKEN, PAD_TOKEN
from logramed.trainer.conversion.sources import FORMER_PAD_TOKEN, IMAGE_TOKENS


SPECIAL_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")


def load_tokenizer(folders: Sequence[Path]) -> PreTrainedTokenizerBase:
    """
    The tokenizer in the first of `folders` that has one, its special tokens set right.

    A tokenizer.model is read as the originals read it: text after a token of an image begins a new word.

    Raises:
        ValueError: If no folder has a tokenizer.
        ImportError: If it is a tokenizer.model and sentencepiece is not installed.
    """
    folder = next((one for one in folders if any((one / name).is_file() for name in TOKENIZER_FILES)), None)
    if folder is None:
        raise ValueError(f"{folders[0]} has no tokenizer: neither {' nor '.join(TOKENIZER_FILES)}.")
    if (folder / TOKENIZER_FILES[0]).is_file():
        return PreTrainedTokenizerFast.from_pretrained(folder, **SPECIAL_TOKENS)
    try:
        import sentencepiece  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{folder / TOKENIZER_FILES[1]} needs the package sentencepiece: pip install 'logramed[convert]'"
        ) from error
    with tempfile.TemporaryDirectory() as alone:  # the files beside it give special tokens wrong ids
        shutil.copyfile(folder / TOKENIZER_FILES[1], Path(alone) / TOKENIZER_FILES[1])
        tokenizer = LlamaTokenizer.from_pretrained(alone, legacy=True, add_bos_token=True, **SPECIAL_TOKENS)
    added = folder / "added_tokens.json"
    if added.is_file():
        ids = json.loads(added.read_text(encoding="utf-8"))
        tokenizer.add_tokens(sorted(ids, key=ids.get))
        wrong = [token for token, number in ids.items() if tokenizer.convert_tokens_to_ids(token) != number]
        if wrong:
            raise ValueError(f"{added} gives {', '.join(wrong)} other ids than those after the tokenizer.model's own.")
    return tokenizer


def add_former_image_tokens(tokenizer: PreTrainedTokenizerBase, num_rows: int) -> dict[str, str | None]:
    """
    Give a tokenizer of LLaVA v0 the tokens that its embeddings have rows for, in their order.

    Returns:
        `dict[str, str | None]`: the tokens of an image, as arguments of `LoGraMedProcessor`.

    Raises:
        ValueError: If the tokenizer then has more or fewer tokens than the embeddings have rows.
    """
    wanted = [*IMAGE_TOKENS.values(), FORMER_PAD_TOKEN]
    known = tokenizer.get_vocab()
    # Models of 2023-07 have no padding token.
    new = [token for token in wanted if token not in known][: max(num_rows - len(tokenizer), 0)]
    # The originals' tokenizer took the white space on both sides of such a token away.
    image_tokens = [
        AddedToken(token, lstrip=True, rstrip=True, special=True, normalized=False)
        for token in wanted[:3]
        if token in known or token in new
    ]
    tokenizer.add_special_tokens({"additional_special_tokens": image_tokens})
    has_pad = FORMER_PAD_TOKEN in known or FORMER_PAD_TOKEN in new
    tokenizer.add_special_tokens({"pad_token": FORMER_PAD_TOKEN if has_pad else tokenizer.unk_token})
    if len(tokenizer) != num_rows or any(token not in tokenizer.get_vocab() for token in IMAGE_TOKENS.values()):
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens with {', '.join(wanted)}, and the embeddings have {num_rows} "
            "rows: they are not of one model."
        )
    return dict(IMAGE_TOKENS)


def add_image_token(tokenizer: PreTrainedTokenizerBase, num_rows: int) -> dict[str, str | None]:
    """
    Give a tokenizer without image tokens one, after the last row of the embeddings, and a padding token.

    Returns:
        As `add_former_image_tokens`.

    Raises:
        ValueError: If the tokenizer has more tokens than the embeddings have rows, or fewer.
    """
    if len(tokenizer) != num_rows:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens and the embeddings have {num_rows} rows: they are not of one "
            "model."
        )
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.unk_token:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    return {"image_token": IMAGE_TOKEN, "image_start_token": None, "image_end_token": None}


def find_stop_tokens(tokenizer: PreTrainedTokenizerBase, stop_string: str | None) -> list[int]:
    """
    The tokens that a turn may end with: the end token, and those that a stop string begins with after a line break,
    as the models were trained, or after a space.

    `generate` ends at tokens without knowing texts. What it has then written of the stop string is cut off by
    `LoGraMedProcessor.post_process_image_text_to_text`.
    """
    found = {tokenizer.eos_token_id}
    for separator in ("\n", " ") if stop_string else ():
        tokens = tokenizer.tokenize(f"a{separator}{stop_string}")
        begins = next((token for token in tokens if stop_string[0] in token), None)
        if begins is not None:
            found.add(tokenizer.convert_tokens_to_ids(begins))
    return sorted(found)
