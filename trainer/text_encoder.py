"""A frozen sentence encoder, whose embedding of each text is computed once and kept in memory and on disk."""

import contextlib
import functools
import hashlib
import inspect
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import safetensors.numpy
import torch
from huggingface_hub import constants
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from logramed.eval.files import write_bytes_whole
from logramed.eval.model_names import looks_like_path


logger = logging.getLogger(__name__)

DIGEST_SIZE = 16  # bytes, of BLAKE2b
VERSION = b"1"  # of how embeddings are computed: another version finds nothing of this one's
MAX_UNSAVED = 0.1  # of the table: calls rewrite the file only when it has grown by so much
NO_MAXIMUM = 2**31 - 1  # tokens; tokenizers without a maximum say 10**30, which their backend can't hold
SETTINGS = ("*.json", "*.txt", "*.model")  # configurations and tokenizers
WEIGHTS = ("*.safetensors", "*.bin")
POOLINGS = {"cls": "cls", "cls_token": "cls", "mean": "mean", "mean_tokens": "mean"}


class TextEncoder:
    """
    A frozen sentence encoder, and what it made of each text, kept in memory and in a folder.

    Pools as sentence-transformers does: the mean over the tokens, or the first token if the encoder's pooling
    configuration says so; then unit length, in float32. The weights are loaded when the first text is missing. The
    cache is known by the bytes of the encoder's configuration, tokenizer, pooling and weights. Its file appears whole
    or not at all; one that is damaged is computed again with a warning. Several processes may share it: each takes
    over what is there when it saves, and of two that save at the same moment the last one's file stays.

    Args:
        name_or_path (`str` or `Path`): Folder or Hub id that `AutoModel` and `AutoTokenizer` load.
        cache_folder (`str` or `Path`, *optional*):
            By default `logramed/text_embeddings` in the Hugging Face cache; encoders have folders of their own in it.
        device (`str` or `torch.device`, *optional*): By default the accelerator; the CPU without one or in a worker.
        batch_size (`int`, defaults to 64): Texts encoded at once.

    Attributes:
        size (`int`): Of an embedding.
        num_hits, num_misses (`int`): Texts that calls found, and texts that were encoded.

    Raises:
        ValueError: If the encoder can't be loaded, or is one that this class does not know how to use.
    """

    def __init__(
        self,
        name_or_path: str | Path,
        cache_folder: str | Path | None = None,
        device: str | torch.device | None = None,
        batch_size: int = 64,
    ):
        self.name, self.device, self.batch_size = str(name_or_path), device, batch_size
        with naming_the_argument(self.name):
            self.source = find_folder(self.name)
            self.pooling = read_pooling(self.source)
            config = AutoConfig.from_pretrained(self.source, trust_remote_code=False)
            self.size = getattr(config, "hidden_size", None)
            if self.size is None or config.is_encoder_decoder:
                raise ValueError(f"{type(config).__name__} is not the configuration of a text encoder")
            settings = read_json(self.source / "sentence_bert_config.json")
            self.lowercases = bool(settings.get("do_lower_case"))
            limits = [settings.get("max_seq_length"), getattr(config, "max_position_embeddings", None)]
            limits = [limit for limit in limits if limit and limit > 0]
            self.max_length = min(NO_MAXIMUM, self._tokenizer.model_max_length, *limits)
            fingerprint = fingerprint_encoder(self.source)
        self.folder = Path(cache_folder or Path(constants.HF_HOME) / "logramed" / "text_embeddings") / fingerprint
        self.num_hits = self.num_misses = self._num_unsaved = 0
        self._has_warned = False
        self._table: dict[bytes, np.ndarray] = self._read_saved()

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """
        The embeddings of texts, `(num_texts, size)`: float32 unit vectors on the CPU, without gradient.

        Texts that are missing are encoded. They are saved once they are a tenth of the table, or by `prepare`.
        """
        keys, missing = self._find_missing(texts)
        self._encode(missing)
        if missing and self._num_unsaved >= MAX_UNSAVED * len(self._table):
            self._save_table()
        self.num_hits += len(keys) - len(missing)
        embeddings = np.array([self._table[key] for key in keys], dtype=np.float32)
        return torch.from_numpy(embeddings.reshape(len(keys), self.size))

    def prepare(self, texts: Iterable[str]) -> int:
        """Encodes the distinct texts that are missing, saves all in one write, and returns how many were encoded."""
        self._table = self._read_saved() | self._table
        _, missing = self._find_missing(texts)
        self._encode(missing)
        if self._num_unsaved:
            self._save_table()
        return len(missing)

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name not in ("_model", "_tokenizer")}
        return state | {"_table": pack(self._table)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_table": unpack(state["_table"])})

    @functools.cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer = AutoTokenizer.from_pretrained(self.source, trust_remote_code=False)
        if tokenizer.pad_token_id is None:
            raise ValueError("its tokenizer has no padding token: set `pad_token` in tokenizer_config.json")
        tokenizer.padding_side = tokenizer.truncation_side = "right"
        return tokenizer

    @functools.cached_property
    def _model(self) -> nn.Module:
        # A pooler that the files lack draws random numbers: training must not depend on whether it was loaded.
        with naming_the_argument(self.name), torch.random.fork_rng(devices=[]):
            model, loaded = AutoModel.from_pretrained(
                self.source, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
            )
            lacking = sorted(name for name in loaded["missing_keys"] if "pooler" not in name)
            if lacking:
                raise ValueError(f"its files lack {len(lacking)} of its weights, such as {lacking[0]}")
        device = self.device
        if device is None and torch.utils.data.get_worker_info() is None:  # an accelerator can't be used after a fork
            device = torch.accelerator.current_accelerator(check_available=True)
        return model.eval().requires_grad_(False).to(device or "cpu")

    def _find_missing(self, texts: Iterable[str]) -> tuple[list[bytes], dict[bytes, str]]:
        if isinstance(texts, str):
            raise TypeError(f"Texts to encode must be a list of `str`, got {texts!r}.")
        texts = list(texts)
        wrong = [text for text in texts if not isinstance(text, str)]
        if wrong:
            raise TypeError(f"Texts to encode must be `str`, got {wrong[0]!r}.")
        keys = [hashlib.blake2b(text.encode(), digest_size=DIGEST_SIZE).digest() for text in texts]
        return keys, {key: text for key, text in zip(keys, texts, strict=True) if key not in self._table}

    def _encode(self, missing: dict[bytes, str]) -> None:
        """Puts the embeddings of texts into the table, in batches of similar length."""
        if not missing:
            return
        texts = {key: text.lower() if self.lowercases else text for key, text in missing.items()}
        token_ids = self._tokenizer(list(texts.values()), verbose=False)["input_ids"]
        lengths = {key: len(ids) for key, ids in zip(texts, token_ids, strict=True)}
        self._check_lengths(missing, lengths)
        keys = sorted(texts, key=lambda key: (lengths[key], texts[key]))
        for start in range(0, len(keys), self.batch_size):
            batch = keys[start : start + self.batch_size]
            self._table.update(zip(batch, self._embed([texts[key] for key in batch]), strict=True))
            self._num_unsaved += len(batch)
            self.num_misses += len(batch)

    def _check_lengths(self, texts: dict[bytes, str], lengths: dict[bytes, int]) -> None:
        if 0 in lengths.values():
            text = next(texts[key] for key, length in lengths.items() if length == 0)
            raise ValueError(f"`alignment_text_encoder` {self.name} makes no token of {text!r}: leave such texts out.")
        num_long = sum(length > self.max_length for length in lengths.values())
        if num_long and not self._has_warned:
            self._has_warned = True
            logger.warning(
                f"{num_long} of {len(lengths)} texts are cut to the {self.max_length} tokens that "
                f"`alignment_text_encoder` {self.name} takes: shorten them, or name an encoder that takes more. Later "
                "ones are cut without a warning."
            )

    @torch.no_grad()
    def _embed(self, texts: list[str]) -> np.ndarray:
        model = self._model
        inputs = self._tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(model.device)
        taken = inspect.signature(model.forward).parameters  # not every model takes `token_type_ids`
        with torch.autocast(model.device.type, enabled=False):
            outputs = model(**{name: value for name, value in inputs.items() if name in taken})
        embeddings = pool(outputs.last_hidden_state, inputs["attention_mask"], self.pooling).cpu()
        if not embeddings.isfinite().all():
            raise ValueError(f"`alignment_text_encoder` {self.name} gives embeddings that are not finite.")
        return embeddings.numpy()

    def _read_saved(self) -> dict[bytes, np.ndarray]:
        path = self.folder / "embeddings"
        try:
            return unpack(path.read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError:
            logger.warning(f"The text embeddings in {path} are damaged and are computed again.")
            path.unlink(missing_ok=True)
            return {}

    def _save_table(self) -> None:
        self._table = self._read_saved() | self._table
        try:
            write_bytes_whole(self.folder / "embeddings", pack(self._table))
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror}: text embeddings can't be written to {self.folder}. What is there stays "
                "valid; give it more room, or name another folder",
            ) from error
        self._num_unsaved = 0


@contextlib.contextmanager
def naming_the_argument(name: str) -> Iterator[None]:
    """Makes one sentence of what goes wrong in loading, with the argument that a user gives."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, safetensors.SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(f"`alignment_text_encoder` {name} can't be used: {reason}.") from error


def find_folder(name: str) -> Path:
    """The folder of an encoder, downloaded first if it is a Hub id: the `.bin` files only if it has no safetensors."""
    folder = Path(name)
    if not folder.is_dir() and looks_like_path(name):
        raise ValueError("there is no such folder")
    for weights in () if folder.is_dir() else WEIGHTS:
        try:
            snapshot = huggingface_hub.snapshot_download(
                name, allow_patterns=[*SETTINGS, weights], ignore_patterns=["onnx/*", "openvino/*"]
            )
        except (OSError, ValueError) as error:
            raise ValueError("it is no folder, and no Hub model that is cached or can be downloaded") from error
        folder = Path(snapshot)
        if any(folder.glob(weights)):
            break
    if not any(path for weights in WEIGHTS for path in folder.glob(weights)):
        raise ValueError(f"{folder} has no weights (*.safetensors or *.bin)")
    return folder


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def read_pooling(folder: Path) -> str:
    """
    `"mean"` or `"cls"`, by the files that sentence-transformers writes; `"mean"` without them.

    Raises:
        ValueError: If they ask for another pooling, for a further module, or for a prompt before each text.
    """
    modules = {module["type"].rpartition(".")[2]: module["path"] for module in read_json(folder / "modules.json")}
    unknown = sorted(modules.keys() - {"Transformer", "Pooling", "Normalize"})
    if unknown:
        raise ValueError(f"it has a {unknown[0]} module, and only Transformer, Pooling and Normalize are known")
    if read_json(folder / "config_sentence_transformers.json").get("default_prompt_name"):
        raise ValueError("it puts a prompt before each text (`default_prompt_name`), which is not supported")
    config = read_json(folder / modules.get("Pooling", "1_Pooling") / "config.json")
    prefix = "pooling_mode_"
    modes = [name.removeprefix(prefix) for name, value in config.items() if name.startswith(prefix) and value]
    mode = config.get("pooling_mode") or " and ".join(modes) or "mean"
    if mode not in POOLINGS:
        raise ValueError(f"its pooling is {mode}, and only cls_token and mean_tokens are known")
    return POOLINGS[mode]


def fingerprint_encoder(folder: Path) -> str:
    """A digest of the files that embeddings depend on: configuration, tokenizer, pooling and weights."""
    digest = hashlib.blake2b(VERSION, digest_size=DIGEST_SIZE)
    for path in sorted({path for kind in (*SETTINGS, *WEIGHTS, "*/config.json") for path in folder.glob(kind)}):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "blake2b").digest()
        digest.update(f"{path.relative_to(folder)} ".encode() + content)
    return digest.hexdigest()


def pool(hidden_states: torch.Tensor, attention_mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Unit vectors `(num_texts, size)` of hidden states `(num_texts, num_tokens, size)`, padded on the right."""
    mask = attention_mask.unsqueeze(-1).to(hidden_states.dtype)
    pooled = hidden_states[:, 0] if pooling == "cls" else (hidden_states * mask).sum(dim=1) / mask.sum(dim=1)
    return nn.functional.normalize(pooled, dim=-1)


def pack(table: dict[bytes, np.ndarray]) -> bytes:
    """A checksum, and a safetensors file of `keys`, `(num_texts, 16)` uint8, and `embeddings`, `(num_texts, size)`."""
    keys = np.frombuffer(b"".join(table), dtype=np.uint8).reshape(-1, DIGEST_SIZE)
    content = safetensors.numpy.save({"keys": keys, "embeddings": np.array(list(table.values()), dtype=np.float32)})
    return hashlib.blake2b(content, digest_size=DIGEST_SIZE).digest() + content


def unpack(content: bytes) -> dict[bytes, np.ndarray]:
    """The table of what `pack` made. Raises `ValueError` if it is damaged."""
    checksum, content = content[:DIGEST_SIZE], content[DIGEST_SIZE:]
    if hashlib.blake2b(content, digest_size=DIGEST_SIZE).digest() != checksum:
        raise ValueError("The checksum is not that of the content.")
    arrays = safetensors.numpy.load(content)
    return dict(zip(map(bytes, arrays["keys"]), arrays["embeddings"], strict=True))
