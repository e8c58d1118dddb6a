"""A small SentencePiece tokenizer laid out as LLaMA's, its files, and how the originals used it."""

import json
import re
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as model_pb2


ADDED_TOKENS = ("<im_patch>", "<im_start>", "<im_end>", "[PAD]")
MARK = "\u2581"  # stands for a space
CONTROL_PIECES = ("<unk>", "<s>", "</s>")
BYTE_PIECES = tuple(f"<0x{value:02X}>" for value in range(256))
# The order is the order of merging. So " ###" becomes one piece, and "###" after anything else "##" and "#".
SIGN_PIECES = (f"{MARK}#", f"{MARK}##", f"{MARK}###", "##")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
CHARACTERS = (MARK, *map(chr, range(33, 127)), "\u00e9", "\u00b5")
WORDS = ("Human", "Assistant", "image", "lung", "liver", "yes", "no", "the", "is", "what", "USER", "INST")


def base_pieces() -> list[str]:
    """Every piece in the order of its id: control pieces, bytes, merges, characters."""
    marked_letters = [MARK + letter for letter in LETTERS]
    prefixes = [MARK + word[:length] for word in WORDS for length in range(2, len(word) + 1)]
    merges = dict.fromkeys([*SIGN_PIECES, *marked_letters, *prefixes])
    return [*CONTROL_PIECES, *BYTE_PIECES, *merges, *CHARACTERS]


BASE_VOCABULARY_SIZE = len(base_pieces())


def sentencepiece_model() -> model_pb2.ModelProto:
    """The tokenizer as SentencePiece keeps it: BPE with byte fallback, which marks the first word too."""
    model = model_pb2.ModelProto()
    for number, piece in enumerate(base_pieces()):
        score = 0.0 if piece in (*CONTROL_PIECES, *BYTE_PIECES) else float(len(BYTE_PIECES) + 3 - number)
        model.pieces.add(piece=piece, score=score, type=_piece_type(piece))
    trainer = model.trainer_spec
    trainer.model_type = model_pb2.TrainerSpec.BPE
    trainer.vocab_size = BASE_VOCABULARY_SIZE
    trainer.byte_fallback = trainer.split_digits = True
    trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id = 0, 1, 2, -1
    normalizer = model.normalizer_spec
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = normalizer.escape_whitespaces = True
    normalizer.remove_extra_whitespaces = False
    return model


def write_tokenizer(folder: str | Path, *, added_tokens: bool = False, pad_token: str | None = None) -> None:
    """
    Write the tokenizer files of a checkpoint.

    Args:
        folder (`str` or `Path`): Must exist.
        added_tokens (`bool`): Whether `ADDED_TOKENS` follow the base vocabulary, with `[PAD]` as the padding token.
        pad_token (`str`, *optional*): The padding token of a tokenizer without added tokens.
    """
    folder = Path(folder)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model().SerializeToString())
    special_tokens = {
        "bos_token": _token("<s>"),
        "eos_token": _token("</s>"),
        "unk_token": _token("<unk>"),
    }
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "padding_side": "right",
        "tokenizer_class": "LlamaTokenizer",
    }
    tokens_in_config = {name: {"__type": "AddedToken", **token} for name, token in special_tokens.items()}
    write_json(folder / "tokenizer_config.json", config | tokens_in_config | {"pad_token": pad_token})
    if added_tokens:
        pad_token = "[PAD]"
        write_json(folder / "added_tokens.json", added_token_ids())
    if pad_token is not None:
        special_tokens["pad_token"] = pad_token
    write_json(folder / "special_tokens_map.json", special_tokens)


def added_token_ids() -> dict[str, int]:
    """The id of each added token: they follow the base vocabulary, as 32000 to 32003 do in the originals."""
    return {token: BASE_VOCABULARY_SIZE + number for number, token in enumerate(ADDED_TOKENS)}


def original_token_ids(folder: str | Path, text: str, *, strips_around_added_tokens: bool = True) -> list[int]:
    """
    The ids that the tokenizers of transformers 4.28 made of a prompt.

    The text is cut at the added tokens and each part is encoded by itself, so that each begins with a word mark:
    "###" after `<im_end>` is one piece. The slow tokenizer also stripped the white space on both sides of an added
    token, such as the newline before `<im_start>`; the fast one did not. (The stripping is from general knowledge: no
    4.28 was run.)

    Args:
        folder (`str` or `Path`): Holds `tokenizer.model`.
        text (`str`): May hold `ADDED_TOKENS`, and no control pieces.
        strips_around_added_tokens (`bool`): True for the slow tokenizer.

    Returns:
        `list[int]`: `<s>` and the ids of the text.
    """
    processor = sentencepiece.SentencePieceProcessor(model_file=str(Path(folder) / "tokenizer.model"))
    parts = re.split("(" + "|".join(map(re.escape, ADDED_TOKENS)) + ")", text)
    if strips_around_added_tokens:
        parts = [_stripped(parts, number) for number in range(len(parts))]
    ids = [processor.bos_id()]
    for part in filter(None, parts):
        ids += [added_token_ids()[part]] if part in ADDED_TOKENS else processor.encode(part)
    return ids


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _stripped(parts: list[str], number: int) -> str:
    part = parts[number]
    if number > 0:
        part = part.lstrip()
    return part.rstrip() if number < len(parts) - 1 else part


def _piece_type(piece: str) -> int:
    types = model_pb2.ModelProto.SentencePiece
    if piece in CONTROL_PIECES:
        return types.UNKNOWN if piece == "<unk>" else types.CONTROL
    return types.BYTE if piece in BYTE_PIECES else types.NORMAL


def _token(content: str) -> dict[str, Any]:
    return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
