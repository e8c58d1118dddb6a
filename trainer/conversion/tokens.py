"""Tokenizers of the checkpoints, with image tokens and the right special tokens."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tokenizers import pre_tokenizers, processors
from transformers import AddedToken, LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from logramed.trainer.build_model import IMAGE_TOKEN, PAD_TOKEN
from logramed.trainer.conversion.sources import FORMER_PAD_TOKEN, IMAGE_TOKENS, read_json_object


SPECIAL_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
# The originals read the SentencePiece model; a tokenizer.json next to it was made later.
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")


def load_tokenizer(folders: Sequence[Path]) -> PreTrainedTokenizerBase:
    """
    Load the tokenizer from the first of `folders` that has one. It splits text as the originals did: text after an
    image token begins a new word, and `<s>` begins a sequence. Raises `ValueError` if no folder has a tokenizer or it
    cannot be read, and `ImportError` if it needs sentencepiece.
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
            raise ValueError(f"{path} cannot be read as a SentencePiece model.") from error
        return add_known_tokens(read_model(path), folder)
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, **SPECIAL_TOKENS)
    except Exception as error:  # damaged files raise various errors
        raise ValueError(f"{path} cannot be read as a tokenizer: {error}") from error
    return split_as_before(tokenizer)


def read_model(path: Path) -> LlamaTokenizer:
    """Load a tokenizer.model without the files next to it, which give special tokens wrong ids."""
    with tempfile.TemporaryDirectory() as alone:
        shutil.copyfile(path, Path(alone) / path.name)
        return LlamaTokenizer.from_pretrained(alone, legacy=True, add_bos_token=True, **SPECIAL_TOKENS)


def add_known_tokens(tokenizer: PreTrainedTokenizerBase, folder: Path) -> PreTrainedTokenizerBase:
    """Add the tokens in added_tokens.json to a tokenizer loaded from a tokenizer.model."""
    path = folder / "added_tokens.json"
    if path.is_file():
        ids = read_json_object(path)
        tokenizer.add_tokens(sorted(ids, key=ids.get))
        wrong = [token for token, number in ids.items() if tokenizer.convert_tokens_to_ids(token) != number]
        if wrong:
            raise ValueError(f"The ids of {', '.join(wrong)} in {path} do not follow those of the tokenizer.model.")
    return tokenizer


def split_as_before(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Make a Llama tokenizer.json split as the tokenizers of 2023 did, whatever version saved it."""
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
    Add the tokens that the embeddings have rows for to a LLaVA v0 tokenizer; returns the image token (and those around
    an image) as arguments of `LoGraMedProcessor`. Raises `ValueError` if there are then not `num_rows` tokens.
    """
    wanted, known = [*IMAGE_TOKENS.values(), FORMER_PAD_TOKEN], tokenizer.get_vocab()
    # Models of 2023-07 have no padding token.
    new = [token for token in wanted if token not in known][: max(num_rows - len(tokenizer), 0)]
    # The originals' tokenizer strips white space on both sides of these tokens.
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
            f"The tokenizer has {len(tokenizer)} tokens with {', '.join(wanted)}, but the embeddings have {num_rows} "
            "rows: they belong to different models."
        )
    return dict(IMAGE_TOKENS) if with_ends else {"image_token": IMAGE_TOKENS["image_token"]}


def add_image_token(tokenizer: PreTrainedTokenizerBase, num_rows: int) -> dict[str, str | None]:
    """
    As `add_former_image_tokens`, for a tokenizer without image tokens: adds one, after the last row of the embeddings,
    and a padding token if needed.
    """
    if len(tokenizer) != num_rows:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens but the embeddings have {num_rows} rows: they belong to "
            "different models."
        )
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.unk_token:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    return {"image_token": IMAGE_TOKEN}


def find_stop_tokens(tokenizer: PreTrainedTokenizerBase, stop_string: str | None) -> list[int]:
    """
    The tokens that may end a turn: the end token, and the first tokens of a stop string after a line break, as in
    training, or after a space. `generate` stops at tokens; the part of the stop string that it has written by then is
    cut off by `LoGraMedProcessor.post_process_image_text_to_text`.
    """
    found = {tokenizer.eos_token_id}
    for separator in ("\n", " ") if stop_string else ():
        tokens = tokenizer.tokenize(f"a{separator}{stop_string}")
        begins = next((token for token in tokens if stop_string[0] in token), None)
        if begins is not None:
            found.add(tokenizer.convert_tokens_to_ids(begins))
    return sorted(found)
