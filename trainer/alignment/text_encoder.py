"""A frozen sentence encoder, which embeds each text once per run."""

import contextlib
import functools
import inspect
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import safetensors
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from logramed.eval.model_names import looks_like_path


logger = logging.getLogger(__name__)

NO_MAXIMUM = 2**31 - 1  # tokens; tokenizers without a maximum give 10**30, which overflows their backend
SETTINGS = ("*.json", "*.txt", "*.model")  # configurations and tokenizers
WEIGHTS = ("*.safetensors", "*.bin")
POOLINGS = {"cls": "cls", "cls_token": "cls", "mean": "mean", "mean_tokens": "mean"}


class TextEncoder:
    """
    A frozen sentence encoder, with a cache of its embeddings.

    Pools as sentence-transformers does: the mean over the tokens, or the first token if the encoder's pooling
    configuration says so; then scales to unit length, in float32. The weights are loaded when a text is first missing.

    Args:
        name_or_path (`str` or `Path`): Folder or Hub id that `AutoModel` and `AutoTokenizer` load.
        device (`str` or `torch.device`, *optional*): By default the accelerator; the CPU without one or in a worker.
        batch_size (`int`, defaults to 64): Texts encoded at once.

    Attributes:
        size (`int`): Embedding size.

    Raises:
        ValueError: If the encoder can't be loaded, or is of an unsupported kind.
    """

    def __init__(self, name_or_path: str | Path, device: str | torch.device | None = None, batch_size: int = 64):
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
        self._has_warned = False
        self._table: dict[str, torch.Tensor] = {}

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """The embeddings of texts, `(num_texts, size)`: float32 unit vectors on the CPU, without gradient."""
        self.prepare(texts)
        return torch.stack([self._table[text] for text in texts]) if texts else torch.zeros(0, self.size)

    def prepare(self, texts: Iterable[str]) -> int:
        """Encodes the distinct texts that are missing, in batches of similar length, and returns how many."""
        missing = {text: text.lower() if self.lowercases else text for text in texts if text not in self._table}
        if not missing:
            return 0
        token_ids = self._tokenizer(list(missing.values()), verbose=False)["input_ids"]
        lengths = {text: len(ids) for text, ids in zip(missing, token_ids, strict=True)}
        self._check_lengths(lengths)
        ordered = sorted(missing, key=lambda text: (lengths[text], text))
        for start in range(0, len(ordered), self.batch_size):
            batch = ordered[start : start + self.batch_size]
            self._table.update(zip(batch, self._embed([missing[text] for text in batch]), strict=True))
        return len(missing)

    def __getstate__(self) -> dict[str, Any]:
        """Pickles the table for a data worker, without the model."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_model", "_tokenizer")}

    @functools.cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer = AutoTokenizer.from_pretrained(self.source, trust_remote_code=False)
        if tokenizer.pad_token_id is None:
            raise ValueError("its tokenizer has no padding token: set `pad_token` in tokenizer_config.json")
        tokenizer.padding_side = tokenizer.truncation_side = "right"
        return tokenizer

    @functools.cached_property
    def _model(self) -> nn.Module:
        # A pooler that is missing in the files draws random numbers, which must not affect training.
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

    def _check_lengths(self, lengths: dict[str, int]) -> None:
        empty = next((text for text, length in lengths.items() if length == 0), None)
        if empty is not None:
            raise ValueError(
                f"`alignment_text_encoder` {self.name} finds no token in {empty!r}: leave such texts out."
            )
        num_long = sum(length > self.max_length for length in lengths.values())
        if num_long and not self._has_warned:
            self._has_warned = True
            logger.warning(
                f"{num_long} of {len(lengths)} texts are cut to the {self.max_length} tokens that "
                f"`alignment_text_encoder` {self.name} takes: shorten them, or name an encoder that takes more. Later "
                "texts are cut without a warning."
            )

    @torch.no_grad()
    def _embed(self, texts: list[str]) -> torch.Tensor:
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
            raise ValueError(f"`alignment_text_encoder` {self.name} returned non-finite embeddings.")
        return embeddings


@contextlib.contextmanager
def naming_the_argument(name: str) -> Iterator[None]:
    """Turns an error in loading into a one-sentence `ValueError` that names the user's argument."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, safetensors.SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(f"`alignment_text_encoder` {name} can't be used: {reason}.") from error


def find_folder(name: str) -> Path:
    """The folder of an encoder; downloads a Hub id first, with `.bin` files only if it has no safetensors."""
    folder = Path(name)
    if not folder.is_dir() and looks_like_path(name):
        raise ValueError("there is no such folder")
    for weights in () if folder.is_dir() else WEIGHTS:
        try:
            snapshot = huggingface_hub.snapshot_download(
                name, allow_patterns=[*SETTINGS, weights], ignore_patterns=["onnx/*", "openvino/*"]
            )
        except (OSError, ValueError) as error:
            raise ValueError("it is neither a folder nor a Hub model that is cached or can be downloaded") from error
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
    `"mean"` or `"cls"`, from the files that sentence-transformers writes; `"mean"` without them. Raises `ValueError`
    if they require another pooling, another module, or a prompt before each text.
    """
    modules = {module["type"].rpartition(".")[2]: module["path"] for module in read_json(folder / "modules.json")}
    unknown = sorted(modules.keys() - {"Transformer", "Pooling", "Normalize"})
    if unknown:
        raise ValueError(f"it has a {unknown[0]} module, but only Transformer, Pooling and Normalize are supported")
    if read_json(folder / "config_sentence_transformers.json").get("default_prompt_name"):
        raise ValueError("it puts a prompt before each text (`default_prompt_name`), which is not supported")
    config = read_json(folder / modules.get("Pooling", "1_Pooling") / "config.json")
    prefix = "pooling_mode_"
    modes = [name.removeprefix(prefix) for name, value in config.items() if name.startswith(prefix) and value]
    mode = config.get("pooling_mode") or " and ".join(modes) or "mean"
    if mode not in POOLINGS:
        raise ValueError(f"its pooling is {mode}, but only cls_token and mean_tokens are supported")
    return POOLINGS[mode]


def pool(hidden_states: torch.Tensor, attention_mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Unit vectors `(num_texts, size)` of hidden states `(num_texts, num_tokens, size)`, padded on the right."""
    mask = attention_mask.unsqueeze(-1).to(hidden_states.dtype)
    pooled = hidden_states[:, 0] if pooling == "cls" else (hidden_states * mask).sum(dim=1) / mask.sum(dim=1)
    return nn.functional.normalize(pooled, dim=-1)
