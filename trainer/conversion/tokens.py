"""Tokenizers of the checkpoints, with the tokens that an image needs and the right special ones."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tokenizers import pre_tokenizers, processors
from transformers import AddedToken, LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from logramed.trainer.build_model import IMAGE_TOKEN, PAD_TOKEN
from logramed.trainer.conversion.sources import FORMER_PAD_TOKEN, IMAGE_TOKENS, read_json_object


SPECIAL_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
# The originals read the model of SentencePiece; a tokenizer.json beside it is of later make.
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")


def load_tokenizer(folders: Sequence[Path]) -> PreTrainedTokenizerBase:
    """
    The tokenizer in the first of `folders` that has one. It splits text as the originals did: text after a token of an
    image begins a new word, and `<s>` begins a sequence. Raises `ValueError` if no folder has one, or it cannot be
    read, and `ImportError` if it needs sentencepiece.
    """
    folder = next((one for one in folders if any((one / name).is_file() for name in TOKENIZER_FILES)), None)
    if folder is None:
        raise ValueError(f"{folders[0]} has no tokenizer: neither {' nor '.join(TOKENIZER_FILES)}.")
    path = next(folder / name for name in TOKENIZER_FILES if (folder / name).is_file())
    if path.suffix == ".model":
        try:
            import sentencepiece
        except ImportError as error:
            raise ImportError(f"{path} needs the package sentencepiece: pip install 'logramed[convert]'") from error
        try:
            sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{path} cannot be read as a model of SentencePiece.") from error
        return add_known_tokens(read_model(path), folder)
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, **SPECIAL_TOKENS)
    except Exception as error:  # what is raised for a damaged file depends on the damage
        raise ValueError(f"{path} cannot be read as a tokenizer: {error}") from error
    return split_as_before(tokenizer)


def read_model(path: Path) -> LlamaTokenizer:
    """A tokenizer.model by itself: the files beside it give special tokens wrong ids."""
    with tempfile.TemporaryDirectory() as alone:
        shutil.copyfile(path, Path(alone) / path.name)
        return LlamaTokenizer.from_pretrained(alone, legacy=True, add_bos_token=True, **SPECIAL_TOKENS)


def add_known_tokens(tokenizer: PreTrainedTokenizerBase, folder: Path) -> PreTrainedTokenizerBase:
    """`tokenizer` with the tokens that added_tokens.json adds to a tokenizer.model."""
    path = folder / "added_tokens.json"
    if path.is_file():
        ids = read_json_object(path)
        tokenizer.add_tokens(sorted(ids, key=ids.get))
        wrong = [token for token, number in ids.items() if tokenizer.convert_tokens_to_ids(token) != number]
        if wrong:
            raise ValueError(f"{path} gives {', '.join(wrong)} other ids than those after the tokenizer.model's own.")
    return tokenizer


def split_as_before(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer.json of Llama that splits as the tokenizers of 2023 did, whatever it was saved with."""
    backend = tokenizer.backend_tokenizer
    if isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace):
        backend.pre_tokenizer.prepend_scheme = "always"
    begin, number = tokenizer.bos_token, tokenizer.bos_token_id
    if tokenizer("a")["input_ids"][:1] != [number]:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, number)]
        )
    return tokenizer


def add_former_image_tokens(
    tokenizer: PreTrainedTokenizerBase, num_rows: int, with_ends: bool = True
) -> dict[str, str | None]:
    """
    Give a tokenizer of LLaVA v0 the tokens that its embeddings have rows for; the tokens of an image (with those
    before and after it), as arguments of `LoGraMedProcessor`. `ValueError` if it then has not `num_rows` tokens.
    """
    wanted, known = [*IMAGE_TOKENS.values(), FORMER_PAD_TOKEN], tokenizer.get_vocab()
    # Models of 2023-07 have no padding token.
    new = [token for token in wanted if token not in known][: max(num_rows - len(tokenizer), 0)]
    # The originals' tokenizer took the white space on both sides of such a token away.
    image_tokens = [
        AddedToken(token, lstrip=True, rstrip=True, special=True, normalized=False)
        for token in IMAGE_TOKENS.values()
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
    return dict(IMAGE_TOKENS) if with_ends else {"image_token": IMAGE_TOKENS["image_token"]}


def add_image_token(tokenizer: PreTrainedTokenizerBase, num_rows: int) -> dict[str, str | None]:
    """
    As `add_former_image_tokens`, for a tokenizer without image tokens: one, after the last row of the embeddings, and
    a padding token.
    """
    if len(tokenizer) != num_rows:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens and the embeddings have {num_rows} rows: they are not of one "
            "model."
        )
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.unk_token:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    return {"image_token": IMAGE_TOKEN}


def find_stop_tokens(tokenizer: PreTrainedTokenizerBase, stop_string: str | None) -> list[int]:
    """
    The tokens that a turn may end with: the end token, and those that a stop string begins with after a line break, as
    the models were trained, or after a space. `generate` ends at tokens; what it has then written of the stop string
    is cut off by `LoGraMedProcessor.post_process_image_text_to_text`.
    """
    found = {tokenizer.eos_token_id}
    for separator in ("\n", " ") if stop_string else ():
        tokens = tokenizer.tokenize(f"a{separator}{stop_string}")
        begins = next((token for token in tokens if stop_string[0] in token), None)
        if begins is not None:
            found.add(tokenizer.convert_tokens_to_ids(begins))
    return sorted(found)
