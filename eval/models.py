"""Loading the model to evaluate, with adapters, and fingerprinting it."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from transformers import AutoModelForImageTextToText, AutoProcessor, ProcessorMixin

import logramed  # noqa: F401  (registers LoGra-Med with the Auto classes)
from logramed.eval.model_names import (
    looks_like_path,
    naming_base_model,
    naming_model,
    processor_source,
    resolve_adapter,
)


MODEL_FILES = (
    "*config.json",
    "tokenizer*",
    "*.jinja",
    "chat_template.json",
    "*.safetensors",
    "pytorch_model*.bin",
    "adapter_model.bin",
)


def load_model(model: str, adapter: str | None = None, trust_remote_code: bool = False) -> tuple[torch.nn.Module, Any]:
    """
    Load a model in its saved dtype and evaluation mode, on the GPU if there is one, and its processor. `model` is the
    folder or Hub id of any image-text-to-text model of transformers, or a PEFT adapter whose configuration names its
    base; `adapter` is put on it. Raises `ValueError` if both are adapters, or a model is not found.
    """
    given = model
    base, adapter = resolve_adapter(model, adapter)
    with naming_base_model(given, base):
        loaded = AutoModelForImageTextToText.from_pretrained(base, dtype="auto", trust_remote_code=trust_remote_code)
    if adapter is not None:
        from peft import PeftModel

        with naming_model(adapter, "`--adapter`"):
            loaded = PeftModel.from_pretrained(loaded, adapter)
    processor = AutoProcessor.from_pretrained(processor_source(base, adapter), trust_remote_code=trust_remote_code)
    if not getattr(loaded, "is_quantized", False):  # a quantized model is already on its device and cannot be moved
        loaded = loaded.to("cuda" if torch.cuda.is_available() else "cpu")
    return loaded.eval(), processor


def read_stop_string(model: str, adapter: str | None = None) -> str | None:
    """
    The `stop_string` of a model's processor, if it has one. Loads only the processor's settings.

    Also `None` for a model that cannot be found: `load_model` raises the error.
    """
    source = processor_source(*resolve_adapter(model, adapter))
    if looks_like_path(source) and not Path(source).is_dir():
        return None
    try:
        settings, _ = ProcessorMixin.get_processor_dict(source)
    except (OSError, HFValidationError):
        return None
    return settings.get("stop_string")


def fingerprint_model(model: str, adapter: str | None = None) -> str:
    """
    A hash of a model's configuration, tokenizer and weight files, or its Hub id.

    Two trainings of one configuration have different hashes; a copied folder has the same. Includes the adapter.
    """
    base, adapter = resolve_adapter(model, adapter)
    if adapter is None:
        return _fingerprint_folder(base)
    return f"{_fingerprint_folder(base)}+{_fingerprint_folder(adapter)}"


def _fingerprint_folder(model: str) -> str:
    folder = Path(model)
    if not folder.is_dir():
        return model
    digest = hashlib.sha256()
    for path in sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern)}):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()
