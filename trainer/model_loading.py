"""Loading or building the model that a run trains, and freezing the parts that it does not train."""

from collections.abc import Iterable
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    ProcessorMixin,
    set_seed,
)
from trl import get_peft_config, get_quantization_config

from logramed import LoGraMedConfig
from logramed.eval.model_names import naming_base_model, naming_model, processor_source, resolve_adapter
from logramed.eval.volumes import count_image_tokens
from logramed.trainer.arguments import LoGraMedTrainingArguments, ModelArguments
from logramed.trainer.build_model import join_new_language_model, new_model, training_texts
from logramed.trainer.engines.parts import (
    complete_adapters,
    freeze_parts,
    keep_tower_in_evaluation_mode,
    parse_parts,
    unquantized_modules,
)


def find_image_tokens(arguments: ModelArguments, training: LoGraMedTrainingArguments) -> int:
    """Number of tokens per slice of a volume for an existing or a new model, without loading weights."""
    if arguments.model is not None:
        return count_image_tokens(load_processor(arguments, training))
    vision_config = arguments.vision_config
    if arguments.vision is not None:
        with naming_model(arguments.vision, "`--vision`"):
            vision_config = AutoConfig.from_pretrained(arguments.vision)
        vision_config = getattr(vision_config, "vision_config", vision_config)
    return LoGraMedConfig(vision_config=vision_config, **(arguments.logramed_config or {})).num_image_tokens


def load_processor(arguments: ModelArguments, training: LoGraMedTrainingArguments) -> ProcessorMixin:
    """
    Load the processor of a model or adapter. Raises `ValueError` if transformers returns only the tokenizer, for
    example because the processor's class needs a package that is not installed.
    """
    base, adapter = resolve_adapter(arguments.model)
    with naming_base_model(arguments.model, base):
        source = processor_source(base, adapter)
        processor = AutoProcessor.from_pretrained(source, **hub_options(arguments, training))
    if not isinstance(processor, ProcessorMixin):
        raise ValueError(
            f"The processor of {arguments.model} cannot be loaded, only its tokenizer: its class needs a package "
            "that is not installed, such as torchvision (Qwen2.5-VL, SmolVLM) or num2words (SmolVLM)."
        )
    return processor


def hub_options(arguments: ModelArguments, training: LoGraMedTrainingArguments) -> dict[str, Any]:
    return {"revision": arguments.model_revision, "trust_remote_code": training.trust_remote_code}


def load_model(
    arguments: ModelArguments, train_rows: Iterable[dict], training: LoGraMedTrainingArguments
) -> tuple[nn.Module, Any, LoraConfig | None]:
    """
    The model to train (the one that `arguments.model` names, or a new one) with its other parts frozen, its processor,
    and the configuration of the adapters to add, if any.
    """
    if arguments.model is not None:
        processor, options = load_processor(arguments, training), hub_options(arguments, training)
        base, adapter = resolve_adapter(arguments.model)
        model = AutoModelForImageTextToText.from_pretrained(
            base,
            dtype=arguments.dtype,
            attn_implementation=arguments.attn_implementation,
            quantization_config=quantize_language_model(arguments, base, options),
            **options,
        )
        if adapter is not None:
            return go_on_with_adapter(model, adapter, arguments), processor, None
    elif arguments.vision is not None:
        model, processor = join_new_language_model(
            arguments.vision,
            arguments.text_config,
            training_texts(train_rows),
            arguments.vocab_size,
            seed=training.seed,
            **(arguments.logramed_config or {}),
        )
    else:
        model, processor = new_model(
            arguments.vision_config,
            arguments.text_config,
            training_texts(train_rows),
            arguments.vocab_size,
            arguments.logramed_config,
            training.seed,
            arguments.position_embedding_scale,
        )
    parts, peft_config = parse_parts(arguments.train, arguments.use_peft), get_peft_config(arguments)
    if peft_config is None:
        freeze_parts(model, parts)
    else:
        complete_adapters(peft_config, model, parts)
        keep_tower_in_evaluation_mode(model)
    set_seed(training.seed)  # for the adapters
    return model, processor, peft_config


def go_on_with_adapter(model: nn.Module, adapter: str, arguments: ModelArguments) -> nn.Module:
    """
    Load an adapter to train further, and the other weights in its folder (the projector). Raises `ValueError` if the
    arguments ask for an adapter with other settings.
    """
    model = PeftModel.from_pretrained(model, adapter, is_trainable=True)
    config = model.active_peft_config
    for name, own in {"lora_r": config.r, "lora_alpha": config.lora_alpha, "use_dora": config.use_dora}.items():
        asked, default = getattr(arguments, name), ModelArguments.__dataclass_fields__[name].default
        if asked not in (own, default):
            raise ValueError(f"`{name}` is {asked}, but the adapter in {adapter} has {own}: leave it out.")
    freeze_parts(model, parse_parts(arguments.train, use_peft=True))
    return model


def quantize_language_model(
    arguments: ModelArguments, base: str, options: dict[str, Any]
) -> BitsAndBytesConfig | None:
    """TRL's quantization config, restricted to the language model's layers: the projector is trained in full."""
    config = get_quantization_config(arguments)
    if config is not None:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(
                AutoConfig.from_pretrained(base, **options),
                trust_remote_code=options["trust_remote_code"],
            )
        config.llm_int8_skip_modules = unquantized_modules(model)
    return config
