"""LoGra-Med as transformers' own `LlavaForConditionalGeneration`, without remote code, and back."""

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, GenerationConfig, LlavaConfig, PreTrainedTokenizerBase

import logramed  # noqa: F401  (registers LoGra-Med with the Auto classes)
from logramed import LoGraMedConfig, LoGraMedImageProcessor, LoGraMedProcessor
from logramed.configuration_logramed import with_former_rope_names
from logramed.eval.files import require_empty, whole_folder, write_json
from logramed.eval.model_names import ADAPTER_CONFIG
from logramed.processing_logramed import write_shared_tokenizer_config
from logramed.trainer.build_model import PARTS_NAME
from logramed.trainer.conversion.plans import Plan, Weights, fetch, read_license
from logramed.trainer.conversion.sources import (
    FIRST_LAYER,
    KINDS,
    TOWERS_WITH_LEVEL,
    expected_weights,
    read_config,
    read_json_object,
    rename,
)
from logramed.trainer.conversion.tokens import load_tokenizer
from logramed.trainer.conversion.weights import ShardWriter, WeightFiles, compare_names
from logramed.trainer.merge import merge_adapter


# What a stock LLaVA has no field for, so that nothing is lost on the way back.
SIDE_FILE = "logramed.json"
FIRST_LAYER_FILE = "training/first_layer.safetensors"
SECOND_LAYER, SECOND_BIAS = "multi_modal_projector.linear_2.weight", "multi_modal_projector.linear_2.bias"
# vLLM looks for such a loop to see that a template takes contents of parts, and else writes `<image>` itself.
TAKES_PARTS = (
    "{%- if false -%}{%- for message in messages -%}{%- for part in message['content'] -%}{%- endfor -%}{%- endfor -%}"
    "{%- endif -%}"
)
PLACEHOLDER = "{%- set placeholder = image_token | default('<image>') -%}"
# Names of weights in the files of transformers' LLaVA, of several years.
STOCK_RENAMES = (
    (r".*\.rotary_emb\.inv_freq|.*\.embeddings\.position_ids", None),
    (r"model\.language_model\.(.*)", r"language_model.model.\1"),
    (r"(language_model\.model\..*)", r"\1"),
    (r"(?:language_model\.)?lm_head\.(.*)", r"language_model.lm_head.\1"),
    (r"(?:model\.)?multi_modal_projector\.(.*)", r"multi_modal_projector.\1"),
    (r"(?:model\.)?vision_tower\.(?:vision_model\.)?(.*)", r"vision_tower.\1"),
)


def rename_stock(name: str, tower: str) -> str | None:
    """
    Our name in files of a weight of transformers' LLaVA whose tower is of the model type `tower`; raises
    `UnknownWeightError` if it has no such weight.
    """
    ours = rename(name, STOCK_RENAMES)
    level = "vision_tower.vision_model." if tower in TOWERS_WITH_LEVEL else "vision_tower."
    return None if ours is None else re.sub(r"^vision_tower\.", level, ours)


# --- out ---


def convert_to_llava(model: str, output: str | Path) -> Path:
    """
    Write a LoGra-Med as `LlavaForConditionalGeneration` with a `LlavaProcessor`, which transformers 4.57 and 5, and
    engines that know LLaVA, load without remote code. Logits are the same.

    A linear projector gets a second layer that changes nothing. The layers that `sci` and `dci` join are taken as a
    list of layers; of `dci`, whose means have no place there, the first layer of the projector has each mean's weights
    once for every layer, divided by their number. The layer as it was is kept beside it, for the way back.

    Args:
        model (`str`): Folder or Hub id, or an adapter, which is merged first.
        output (`str` or `Path`): A folder that does not exist yet, or is empty.

    Raises:
        ValueError: If LLaVA has no such model, with the reason, or `output` is not empty.
    """
    output = Path(output)
    require_empty(output, "OUTPUT")
    with merged(fetch(model, "DIR"), output) as folder:
        settings = read_config(folder, "DIR")
        if settings.get("model_type") != "logramed":
            raise ValueError(f"DIR {model} has the model type {settings.get('model_type')!r}, and is not a LoGra-Med.")
        config = LoGraMedConfig.from_pretrained(folder)
        refuse_what_llava_lacks(config)
        files = WeightFiles(folder)
        shapes = {name: info.shape for name, info in files.tensors.items() if "graph_network." not in name}
        compare_names(shapes, [], expected_weights(config), model)
        with whole_folder(output, "OUTPUT") as unfinished:
            writer = ShardWriter(unfinished)
            for name, tensor in files:
                if "graph_network." not in name:
                    writer.add(name, fold(tensor, config) if name == FIRST_LAYER else tensor)
            keep_first_layer(config, files, unfinished)
            for name, tensor in identity_layer(config, files).items():
                writer.add(name, tensor)
            writer.close()
            write_stock_config(config, files, unfinished)
            write_stock_processor(folder, config, unfinished)
            copy_records(folder, unfinished)
    return output


@contextmanager
def merged(folder: Path, output: Path) -> Iterator[Path]:
    """The folder, or where it is an adapter a folder beside `output` of the model that it is merged into."""
    if not (folder / ADAPTER_CONFIG).is_file():
        yield folder
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f"{output.name}-merged-") as place:
        yield merge_adapter(str(folder), Path(place) / "model")


def refuse_what_llava_lacks(config: LoGraMedConfig) -> None:
    """Raises `ValueError` if transformers' LLaVA cannot be made to compute the same."""
    reason = None
    if config.dense_connector == "sti":
        reason = "the connector sti makes tokens of further layers, and LLaVA joins layers as channels alone"
    elif config.image_token_pooling:
        reason = f"it pools the patches of an image (`image_token_pooling={config.image_token_pooling}`)"
    elif config.num_prefix_tokens > 1 and config.vision_feature_select_strategy == "default":
        reason = "its vision tower has register tokens, and LLaVA leaves out the class token alone"
    elif config.lm_head_bias:
        reason = "its head has biases"
    if reason:
        raise ValueError(f"This model cannot be a stock LLaVA: {reason}. Serve it with its own code.")


def stock_layers(config: LoGraMedConfig) -> int | list[int]:
    """The `vision_feature_layer` of LLaVA: the selected hidden state, and those that are joined to it."""
    if not config.connected_layers:
        return config.vision_feature_layer
    num_states = config.vision_config.num_hidden_layers + 1
    return [config.vision_feature_layer % num_states, *config.connected_layers]


def fold(weight: torch.Tensor, config: LoGraMedConfig) -> torch.Tensor:
    """
    The projector's first layer `(hidden_size, 3 * vision_hidden_size)` of a `dci` model, for hidden states that are
    not averaged before it, `(hidden_size, (1 + num_layers) * vision_hidden_size)`: a mean's weights, divided by the
    number of layers, stand once for each. Others are left as they are.
    """
    if config.dense_connector != "dci":
        return weight
    selected, *means = weight.split(config.vision_config.hidden_size, dim=1)
    blocks = [selected]
    for mean, number in zip(means, halves(config), strict=True):
        blocks += [(mean.float() / number).to(weight.dtype)] * number
    return torch.cat(blocks, dim=1)


def halves(config: LoGraMedConfig) -> tuple[int, int]:
    """How many layers each mean of `dci` is of."""
    num_layers = len(config.connected_layers)
    return num_layers // 2, num_layers - num_layers // 2


def keep_first_layer(config: LoGraMedConfig, files: WeightFiles, folder: Path) -> None:
    """A first layer that was folded, as it was: dividing and multiplying again may change a weight's last digit."""
    if config.dense_connector == "dci":
        (folder / FIRST_LAYER_FILE).parent.mkdir()
        state = {FIRST_LAYER: files.read(FIRST_LAYER).contiguous()}
        save_file(state, folder / FIRST_LAYER_FILE, metadata={"format": "pt"})


def identity_layer(config: LoGraMedConfig, files: WeightFiles) -> dict[str, torch.Tensor]:
    """The second layer of a linear projector in LLaVA, which changes nothing."""
    if config.projector_type != "linear":
        return {}
    size, dtype = config.text_config.hidden_size, files.tensors[FIRST_LAYER].dtype
    layer = {SECOND_LAYER: torch.eye(size, dtype=dtype)}
    return layer | ({SECOND_BIAS: torch.zeros(size, dtype=dtype)} if config.multimodal_projector_bias else {})


def write_stock_config(config: LoGraMedConfig, files: WeightFiles, folder: Path) -> None:
    stock = LlavaConfig(
        vision_config=config.vision_config.to_dict(),
        text_config=config.text_config.to_dict(),
        image_token_index=config.image_token_index,
        projector_hidden_act=config.projector_hidden_act,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        vision_feature_layer=stock_layers(config),
        image_seq_length=config.num_image_tokens,
        multimodal_projector_bias=config.multimodal_projector_bias,
        tie_word_embeddings=config.tie_word_embeddings,
        architectures=["LlavaForConditionalGeneration"],
        dtype=files.tensors[FIRST_LAYER].dtype,
    )
    content = json.loads(stock.to_json_string(use_diff=False))
    for name in ("text_config", "vision_config"):
        content[name] = with_former_rope_names(content[name])
    # transformers 4.57 and engines read this name of the token's id.
    content |= {"image_token_index": config.image_token_index, "image_token_id": config.image_token_index}
    write_json(folder / "config.json", content)


def write_stock_processor(source: Path, config: LoGraMedConfig, folder: Path) -> None:
    """The processor as a `LlavaProcessor`, and what it has no field for in a file of its own."""
    processor = AutoProcessor.from_pretrained(source)
    template = processor.chat_template
    template = template.get("default") if isinstance(template, dict) else template
    tokenizer = processor.tokenizer
    tokenizer.chat_template = stock_template(template, processor)
    tokenizer._set_processor_class("LlavaProcessor")
    tokenizer.save_pretrained(str(folder))
    write_shared_tokenizer_config(folder, tokenizer)
    (folder / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")
    write_json(folder / "preprocessor_config.json", stock_image_settings(processor.image_processor))
    write_json(
        folder / "processor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "image_token": processor.image_token,
            "patch_size": config.vision_config.patch_size,
            "vision_feature_select_strategy": config.vision_feature_select_strategy,
            "num_additional_image_tokens": config.num_prefix_tokens,
        },
    )
    kept = ("image_token", "image_start_token", "image_end_token", "stop_string")
    write_json(
        folder / SIDE_FILE,
        {"chat_template": template, **{name: getattr(processor, name, None) for name in kept}},
    )


def stock_template(template: str, processor: LoGraMedProcessor) -> str:
    """A chat template that writes the tokens around an image itself, which `LlavaProcessor` does not."""
    written = "".join(
        token or "" for token in (processor.image_start_token, processor.image_token, processor.image_end_token)
    )
    if "bos_token" not in template:  # engines add no special tokens to what a template wrote
        template = "{{- bos_token or '' -}}" + template
    template = TAKES_PARTS + template
    if PLACEHOLDER in template:
        return template.replace(PLACEHOLDER, "{%- set placeholder = " + repr(written) + " -%}")
    if written != processor.image_token:
        raise ValueError(
            f"The chat template of this model does not say where it writes an image, so {written} cannot be put there."
        )
    return template


def stock_image_settings(image_processor: LoGraMedImageProcessor) -> dict[str, Any]:
    """preprocessor_config.json of LLaVA's image processor, which gives the same pixels."""
    return {
        "image_processor_type": "LlavaImageProcessor",
        "processor_class": "LlavaProcessor",
        "do_pad": image_processor.do_pad_to_square,
        "do_resize": True,
        "size": dict(image_processor.size),
        "resample": image_processor.resample,
        "do_center_crop": False,
        "crop_size": dict(image_processor.size),
        "do_rescale": image_processor.do_rescale,
        "rescale_factor": image_processor.rescale_factor,
        "do_normalize": image_processor.do_normalize,
        "image_mean": image_processor.image_mean,
        "image_std": image_processor.image_std,
        "do_convert_rgb": image_processor.do_convert_rgb,
    }


def copy_records(source: Path, folder: Path) -> None:
    """Where the model comes from, and what it generates by."""
    for name in ("generation_config.json", PARTS_NAME):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


# --- in ---


def plan_stock(folder: Path, source: str, settings: dict[str, Any]) -> Plan:
    """
    A LoGra-Med of a folder of transformers' LLaVA, such as `convert_to_llava` writes; `ValueError` if it has a
    projector that is neither LLaVA's nor one that `convert_to_llava` writes.
    """
    files = WeightFiles(folder)
    stock = LlavaConfig.from_pretrained(folder)
    tower = stock.vision_config.model_type
    first = next((name for name in files.tensors if name.endswith(FIRST_LAYER)), None)
    image_token_id = settings.get("image_token_index", settings.get("image_token_id"))
    if first is None or image_token_id is None:
        missing = FIRST_LAYER if first is None else "image_token_index in its config.json"
        raise ValueError(f"{source} has no {missing}: it is not a complete LLaVA.")
    is_linear = stock.projector_hidden_act == "linear"
    if is_linear:
        refuse_second_layer(files, first, source)
    elif stock.projector_hidden_act != "gelu":
        raise ValueError(f"{source} has a projector with {stock.projector_hidden_act!r}, and LoGra-Med's has 'gelu'.")
    tokenizer = load_tokenizer([folder], is_stock=True)
    text_config = stock.text_config.to_dict()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if text_config.get(name) is None:
            text_config[name] = getattr(tokenizer, name)
    config = LoGraMedConfig(
        vision_config=stock.vision_config.to_dict(),
        text_config=text_config,
        image_token_index=image_token_id,
        vision_feature_select_strategy=stock.vision_feature_select_strategy,
        projector_type="linear" if is_linear else "mlp2x_gelu",
        multimodal_projector_bias=stock.multimodal_projector_bias,
        tie_word_embeddings=settings.get("tie_word_embeddings", False),
        **read_layers(stock, files, first, source),
    )
    weights = Weights(files, without_second_layer(tower, is_linear))
    if config.dense_connector == "dci":
        shape = (files.tensors[first].shape[0], 3 * config.vision_config.hidden_size)
        weights.change, weights.shapes = unfolding(config, folder), {FIRST_LAYER: shape}
    processor = read_stock_processor(folder, config, tokenizer)
    generation = folder / "generation_config.json"
    ends = GenerationConfig.from_pretrained(folder).eos_token_id if generation.is_file() else None
    ends = processor.tokenizer.eos_token_id if ends is None else ends
    return Plan(
        config=config,
        processor=processor,
        end_token_ids=ends if isinstance(ends, list) else [ends],
        weights=[weights],
        parts=stock_parts(folder, source),
    )


def without_second_layer(tower: str, is_linear: bool) -> Callable[[str], str | None]:
    def renamed(name: str) -> str | None:
        ours = rename_stock(name, tower)
        return None if is_linear and ours in (SECOND_LAYER, SECOND_BIAS) else ours

    return renamed


def refuse_second_layer(files: WeightFiles, first: str, source: str) -> None:
    """Raises `ValueError` if the second layer of a projector without activation changes anything."""
    second = first.replace(FIRST_LAYER, SECOND_LAYER)
    if second not in files.tensors:
        raise ValueError(f"{source} holds no {second}.")
    weight = files.read(second)
    bias_name = first.replace(FIRST_LAYER, SECOND_BIAS)
    has_bias = bias_name in files.tensors and bool(files.read(bias_name).any())
    if has_bias or not torch.equal(weight, torch.eye(len(weight), dtype=weight.dtype)):
        raise ValueError(
            f"{source} has a projector of two layers without an activation between them, and LoGra-Med's has one "
            "such layer: multiply the two first."
        )


def read_layers(stock: LlavaConfig, files: WeightFiles, first: str, source: str) -> dict[str, Any]:
    """
    `vision_feature_layer` and `dense_connector` of LLaVA's layers; `ValueError` if several layers are joined in a way
    that no dense connector does.
    """
    layers, num_layers = stock.vision_feature_layer, stock.vision_config.num_hidden_layers
    if isinstance(layers, int):
        return {"vision_feature_layer": layers, "dense_connector": "none"}
    layers = [layer % (num_layers + 1) for layer in layers]
    if len(layers) == 1:
        return {"vision_feature_layer": layers[0], "dense_connector": "none"}
    width, wanted = files.tensors[first].shape[1], len(layers) * stock.vision_config.hidden_size
    if width != wanted:
        raise ValueError(f"{source} joins {len(layers)} layers, {wanted} features, and its projector takes {width}.")
    for connector in ("sci", "dci"):
        vision_config = stock.vision_config.to_dict()
        config = LoGraMedConfig(vision_config, None, vision_feature_layer=layers[0], dense_connector=connector)
        if layers == stock_layers(config) and is_folded(files.read(first), config):
            # Counted from the end, as configurations say it.
            return {"vision_feature_layer": layers[0] - num_layers - 1, "dense_connector": connector}
    raise ValueError(
        f"{source} joins the layers {layers} of its vision tower in a way that no dense connector of LoGra-Med does."
    )


def is_folded(weight: torch.Tensor, config: LoGraMedConfig) -> bool:
    """Whether a first layer has equal weights for all layers of one mean; always for connectors without means."""
    if config.dense_connector != "dci":
        return True
    _, *blocks = weight.split(config.vision_config.hidden_size, dim=1)
    lower = halves(config)[0]
    return all(torch.equal(block, part[0]) for part in (blocks[:lower], blocks[lower:]) if part for block in part)


def unfolding(config: LoGraMedConfig, folder: Path) -> Callable[[str, torch.Tensor], torch.Tensor]:
    """What `fold` did, undone: by the layer as it was, if it is kept in `folder` and was not trained since."""
    kept = load_file(folder / FIRST_LAYER_FILE)[FIRST_LAYER] if (folder / FIRST_LAYER_FILE).is_file() else None

    def unfolded(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name != FIRST_LAYER:
            return tensor
        if kept is not None and torch.equal(fold(kept, config), tensor):
            return kept
        selected, *blocks = tensor.split(config.vision_config.hidden_size, dim=1)
        lower, upper = halves(config)
        means = [(blocks[place].float() * number).to(tensor.dtype) for place, number in ((0, lower), (lower, upper))]
        return torch.cat([selected, *means], dim=1)

    return unfolded


def read_stock_processor(
    folder: Path, config: LoGraMedConfig, tokenizer: PreTrainedTokenizerBase
) -> LoGraMedProcessor:
    """A LoGra-Med processor of what stands in a folder of LLaVA."""
    side = read_json_object(folder / SIDE_FILE) if (folder / SIDE_FILE).is_file() else {}
    image_token = tokenizer.convert_ids_to_tokens(config.image_token_index)
    kept = {name: side.get(name) for name in ("image_start_token", "image_end_token", "stop_string")}
    return LoGraMedProcessor(
        LoGraMedImageProcessor(size=config.vision_config.image_size, **read_image_settings(folder)),
        tokenizer,
        num_image_tokens=config.num_image_tokens,
        image_token=image_token,
        chat_template=side.get("chat_template") or read_template(folder, tokenizer),
        **kept,
    )


def read_image_settings(folder: Path) -> dict[str, Any]:
    """What of an image processor's settings LoGra-Med's has too, from either file that transformers writes."""
    settings: dict[str, Any] = {}
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            content = read_json_object(folder / name)
            settings |= content.get("image_processor", content)
    names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "do_convert_rgb", "resample")
    found = {name: settings[name] for name in names if settings.get(name) is not None}
    # LLaVA's other image processor crops; here nothing is, so images are padded unless they are squeezed.
    return found | {"do_pad_to_square": settings.get("do_pad", True)}


def read_template(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The chat template of a folder, wherever transformers wrote it."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if (folder / "chat_template.json").is_file():
        return read_json_object(folder / "chat_template.json").get("chat_template", tokenizer.chat_template)
    return tokenizer.chat_template


def stock_parts(folder: Path, source: str) -> dict[str, Any]:
    """Those that `convert_to_llava` copied, or the folder itself."""
    if (folder / PARTS_NAME).is_file():
        return read_json_object(folder / PARTS_NAME)
    return {
        "source": source,
        "format": "llava",
        **(read_license(folder) or KINDS["llava"].license),
        "base_models": [source],
    }
