"""
Join a pretrained vision tower and language model into an untrained LoGra-Med.

    python trainer/build_model.py --vision openai/clip-vit-large-patch14 --language lmsys/vicuna-7b-v1.5 --output DIR

or the tower with a new language model, whose tokenizer is trained on the texts of training data:

    python trainer/build_model.py --vision TOWER --text_config CONFIG --tokenizer_data DATA --output DIR
"""

import json
from argparse import ArgumentParser
from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate import init_empty_weights
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from logramed import LoGraMedConfig, LoGraMedForConditionalGeneration, LoGraMedImageProcessor, LoGraMedProcessor
from logramed.chat_templates_logramed import DEFAULT_CHAT_TEMPLATE, with_image_parts
from logramed.eval.command_line import run_command
from logramed.eval.files import write_json
from logramed.eval.model_names import naming_model
from logramed.modeling_logramed import LoGraMedProjector


IMAGE_TOKEN = "<image>"
PAD_TOKEN = "<pad>"
VOCABULARY_MULTIPLE = 64  # the number of embedding rows is rounded up to it, for faster matrix products
PARTS_NAME = "parts.json"  # the models that a folder was joined from


def join_models(
    vision: str, language: str, *, dtype: str = "auto", seed: int = 0, **config_values
) -> tuple[LoGraMedForConditionalGeneration, LoGraMedProcessor]:
    """
    Join a pretrained vision tower and language model into an untrained LoGra-Med, returned in evaluation mode with its
    processor. The tokenizer gets an image token (and a padding token if it has none) and keeps its chat template.

    Args:
        vision (`str`): Hub id or folder of the vision tower, or of a model that contains one (CLIP, SigLIP), with its
            image processor's settings.
        language (`str`): Hub id or folder of the language model, with its tokenizer.
        dtype (`str`): Dtype of all weights: `"auto"` for that of the language model's files, or `"float32"`, ...
        seed (`int`): Seed of the new weights.
        config_values: Further values of `LoGraMedConfig`, such as `dense_connector`.

    Raises:
        ValueError: If a part is not found.
        OSError: If the tower's image processor settings are not found.
    """
    torch.manual_seed(seed)
    with naming_model(language, "`--language`"):
        tokenizer = AutoTokenizer.from_pretrained(language)
        language_model = AutoModelForCausalLM.from_pretrained(language, dtype=dtype)
    return join_tower(vision, tokenizer, language_model, config_values)


def join_new_language_model(
    vision: str, text_config: dict, texts: Iterable[str], vocab_size: int, *, seed: int = 0, **config_values
) -> tuple[LoGraMedForConditionalGeneration, LoGraMedProcessor]:
    """
    As `join_models`, with a new language model from `text_config` in float32. Its tokenizer, with at most `vocab_size`
    tokens, is trained on `texts`.
    """
    tokenizer = train_tokenizer(texts, vocab_size)
    config = AutoConfig.for_model(**with_vocabulary(text_config, tokenizer))
    torch.manual_seed(seed)
    language_model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return join_tower(vision, tokenizer, language_model, config_values)


def join_tower(
    vision: str, tokenizer: PreTrainedTokenizerBase, language_model: torch.nn.Module, config_values: dict
) -> tuple[LoGraMedForConditionalGeneration, LoGraMedProcessor]:
    """Join the tower at `vision` to a loaded language model (see `join_models`)."""
    add_tokens(tokenizer, language_model)
    vision_tower = load_vision_tower(vision, language_model.dtype)
    config = LoGraMedConfig(
        vision_config=vision_tower.config,
        text_config=language_model.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        lm_head_bias=language_model.get_output_embeddings().bias is not None,
        **config_values,
    )
    model = assemble(config, vision_tower, language_model)
    processor = build_processor(config, tokenizer, image_processor_settings(vision))
    set_generation_tokens(model, tokenizer)
    model.generation_config.eos_token_id = find_end_tokens(language_model, processor)
    return model.eval(), processor


def find_end_tokens(language_model: torch.nn.Module, processor: LoGraMedProcessor) -> list[int]:
    """Tokens that end an answer: the language model's, the tokenizer's, and the one that the chat template writes."""
    tokenizer, known = processor.tokenizer, language_model.generation_config.eos_token_id
    found = {*(known if isinstance(known, list) else [known]), tokenizer.eos_token_id}
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    after_answer = processor.apply_chat_template(turns, tokenize=False).rpartition("!")[2].strip()
    found |= set(tokenizer(after_answer, add_special_tokens=False)["input_ids"][:1]) & set(tokenizer.all_special_ids)
    return sorted(found - {None})


def add_tokens(tokenizer: PreTrainedTokenizerBase, language_model: torch.nn.Module) -> None:
    """Add an image token and, if there is none, a padding token to the tokenizer and the language model."""
    new_tokens = [IMAGE_TOKEN] if tokenizer.pad_token is not None else [IMAGE_TOKEN, PAD_TOKEN]
    tokenizer.add_tokens(new_tokens, special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = PAD_TOKEN
    if len(tokenizer) > language_model.get_input_embeddings().num_embeddings:
        # New rows start as the mean of the old ones, so that they hardly change probabilities before training.
        language_model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=VOCABULARY_MULTIPLE)


def load_vision_tower(vision: str, dtype: torch.dtype) -> torch.nn.Module:
    """Load the vision tower at `vision`, which may also be a model that contains one."""
    with naming_model(vision, "`--vision`"):
        config = AutoConfig.from_pretrained(vision)
    vision_config = getattr(config, "vision_config", config)
    return AutoModel.from_pretrained(vision, config=vision_config, dtype=dtype)


def image_processor_settings(vision: str) -> dict:
    """Mean and standard deviation that the tower at `vision` was trained with."""
    settings, _ = LoGraMedImageProcessor.get_image_processor_dict(vision)
    settings = settings.get("image_processor", settings)
    missing = [name for name in ("image_mean", "image_std") if name not in settings]
    if missing:
        raise ValueError(
            f"The image settings of {vision} have no {' and no '.join(missing)}: images must be normalized as in the "
            "tower's training. Add them to its preprocessor_config.json."
        )
    return {name: settings[name] for name in ("image_mean", "image_std")}


def assemble(
    config: LoGraMedConfig, vision_tower: torch.nn.Module, language_model: torch.nn.Module
) -> LoGraMedForConditionalGeneration:
    """Put loaded parts into a LoGra-Med without copying their weights; the rest gets new weights."""
    dtype = language_model.dtype
    with init_empty_weights():
        model = LoGraMedForConditionalGeneration(config)
    model.model.vision_tower = vision_tower
    model.model.language_model = language_model.base_model
    model.lm_head = language_model.get_output_embeddings()
    model.model.multi_modal_projector = LoGraMedProjector(config)
    for module in model.model.multi_modal_projector.modules():
        model._init_weights(module)
    model.model.multi_modal_projector.to(dtype)
    model.tie_weights()
    return model


def new_model(
    vision_config: dict,
    text_config: dict,
    texts: Iterable[str],
    vocab_size: int,
    config_values: dict | None = None,
    seed: int = 0,
    position_embedding_scale: float = 1.0,
) -> tuple[LoGraMedForConditionalGeneration, LoGraMedProcessor]:
    """
    Build a LoGra-Med from scratch, with its processor.

    Args:
        vision_config, text_config (`dict`): Configurations with their `model_type`; the vocabulary size is set here.
        texts (`Iterable[str]`): Texts to train the tokenizer on, which gets at most `vocab_size` tokens.
        config_values (`dict`, *optional*): Further values of `LoGraMedConfig`.
        seed (`int`): Seed of the weights.
        position_embedding_scale (`float`): Factor on the tower's position embeddings.
    """
    tokenizer = train_tokenizer(texts, vocab_size)
    config = LoGraMedConfig(
        vision_config=vision_config,
        text_config=with_vocabulary(text_config, tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        **(config_values or {}),
    )
    torch.manual_seed(seed)
    model = LoGraMedForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.model.vision_tower.named_parameters():
            if "position_embedding" in name:
                parameter.mul_(position_embedding_scale)
    set_generation_tokens(model, tokenizer)
    return model, build_processor(config, tokenizer, {})


def with_vocabulary(text_config: dict, tokenizer: PreTrainedTokenizerBase) -> dict:
    """The configuration of a new language model with the vocabulary and special tokens of `tokenizer`."""
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {**text_config, "vocab_size": len(tokenizer), **special}


def training_texts(rows: Iterable[dict]) -> Iterable[str]:
    """
    Texts to train a new tokenizer on: conversations as the default chat template writes them, and extended answers.
    The tokenizer thus sees role words and the space before an answer as often as the model will.
    """
    writer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token="", eos_token="\n")
    for row in rows:
        written = writer.apply_chat_template(row["messages"], chat_template=DEFAULT_CHAT_TEMPLATE, tokenize=False)
        yield written.replace(IMAGE_TOKEN, "")
        for extended in row["extended_answers"] or ():
            yield f" {extended}"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-pair tokenizer with at most `vocab_size` tokens on `texts`; it can encode any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special_tokens = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": PAD_TOKEN}
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*special_tokens.values(), IMAGE_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=[IMAGE_TOKEN], padding_side="left", **special_tokens
    )


def build_processor(
    config: LoGraMedConfig, tokenizer: PreTrainedTokenizerBase, image_settings: dict
) -> LoGraMedProcessor:
    """The processor for a model with `config`, with the model's image size and number of image tokens."""
    image_processor = LoGraMedImageProcessor(size=config.vision_config.image_size, **image_settings)
    template = tokenizer.chat_template
    template = template.get("default") if isinstance(template, dict) else template
    return LoGraMedProcessor(
        image_processor,
        tokenizer,
        num_image_tokens=config.num_image_tokens,
        image_token=IMAGE_TOKEN,
        chat_template=with_image_parts(template) if template else None,
    )


def set_generation_tokens(model: LoGraMedForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> None:
    """Copy the ids of the begin, end and padding tokens from the tokenizer to the model."""
    configs: tuple[PretrainedConfig, ...] = (model.config.get_text_config(), model.generation_config)
    for config in configs:
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(config, name, getattr(tokenizer, name))


def read_texts(sources: Iterable[str]) -> Iterable[str]:
    """All texts of training data in any format that `logramed-train` reads; unusable rows are skipped."""
    from logramed.trainer.data import load_training_rows

    for source in sources:
        rows = load_training_rows(source, require_extended=False, check_images=False, on_bad_row="skip")
        yield from training_texts(rows.dataset.select_columns(["messages", "extended_answers"]))


def main(argv: list[str] | None = None) -> int:
    parser = ArgumentParser(description="Join a vision tower and a language model into an untrained LoGra-Med.")
    parser.add_argument("--vision", required=True, help="Hub id or folder of the vision tower (CLIP, SigLIP, DINOv2)")
    parser.add_argument("--language", help="Hub id or folder of the causal language model")
    parser.add_argument(
        "--text_config", type=json.loads, help="instead of --language: configuration of a new one, as JSON"
    )
    parser.add_argument(
        "--tokenizer_data",
        nargs="+",
        help="training data to train a new tokenizer on",
    )
    parser.add_argument("--vocab_size", type=int, default=2000, help="largest vocabulary of a new tokenizer")
    parser.add_argument("--output", required=True, type=Path, help="folder to write the model to")
    parser.add_argument("--dense_connector", default="none", choices=["none", "sti", "sci", "dci"])
    parser.add_argument(
        "--image_token_pooling", type=int, metavar="K", help="pool each image to K x K tokens (default: one per patch)"
    )
    parser.add_argument("--projector_type", default="mlp2x_gelu", choices=["mlp2x_gelu", "linear"])
    parser.add_argument("--vision_feature_layer", type=int, default=-2, help="hidden state to project")
    parser.add_argument("--dtype", default="auto", help="of the weights: auto (the language model's), float32, ...")
    parser.add_argument("--seed", type=int, default=0, help="seed of the new weights")
    arguments = parser.parse_args(argv)
    if arguments.output.exists() and any(arguments.output.iterdir()):
        parser.error(f"--output {arguments.output} is not empty")
    if (arguments.language is None) == (arguments.text_config is None):
        parser.error("give --language, or --text_config and --tokenizer_data for a new language model")
    if (arguments.text_config is None) != (arguments.tokenizer_data is None):
        parser.error("--text_config and --tokenizer_data go together")
    config_values = {
        name: getattr(arguments, name)
        for name in ("dense_connector", "image_token_pooling", "projector_type", "vision_feature_layer")
    }
    if arguments.language is not None:
        options = {"dtype": arguments.dtype, "seed": arguments.seed, **config_values}
        model, processor = join_models(arguments.vision, arguments.language, **options)
    else:
        model, processor = join_new_language_model(
            arguments.vision,
            arguments.text_config,
            read_texts(arguments.tokenizer_data),
            arguments.vocab_size,
            seed=arguments.seed,
            **config_values,
        )
    model.save_pretrained(arguments.output)
    processor.save_pretrained(arguments.output)
    parts = {"vision": arguments.vision, "language": arguments.language}
    write_json(arguments.output / PARTS_NAME, {name: part for name, part in parts.items() if part is not None})
    print(
        f"{arguments.output}: {model.num_parameters() / 1e6:,.1f} million weights in {model.dtype}, "
        f"{model.config.num_image_tokens} tokens per image. Next: python trainer/train.py "
        f"--model {arguments.output} --train_data DATA --output_dir DIR"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
