"""The model to evaluate: loading it, adapters included, and telling it apart from others."""

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
    A model in its own dtype, in evaluation mode, on the GPU if there is one, and its processor: by folder or Hub id
    any image-text-to-text model of transformers, or a PEFT adapter, whose configuration names its base; an `adapter`
    is put on it. Raises `ValueError` if both name an adapter, or one of the models is not found.
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
    if not getattr(loaded, "is_quantized", False):  # a quantized model is on its device, and must stay there
        loaded = loaded.to("cuda" if torch.cuda.is_available() else "cpu")
    return loaded.eval(), processor


def read_stop_string(model: str, adapter: str | None = None) -> str | None:
    """
    The text with which the processor of a model says that its turns end, if it does. Loads the settings alone.

    None also for a model that cannot be found: `load_model` says so in words.
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

    Two trainings of one configuration differ in it; a copy of a folder does not. With an adapter, both count.
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
