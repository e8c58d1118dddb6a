"""LoGra-Med as transformers' own `LlavaForConditionalGeneration`, without remote code."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, LlavaConfig

import logramed  # noqa: F401  (registers LoGra-Med with the Auto classes)
from logramed import LoGraMedConfig, LoGraMedImageProcessor, LoGraMedProcessor
from logramed.configuration_logramed import with_former_rope_names
from logramed.eval.files import require_empty, whole_folder, write_json
from logramed.eval.model_names import ADAPTER_CONFIG
from logramed.processing_logramed import write_shared_tokenizer_config
from logramed.trainer.build_model import PARTS_NAME
from logramed.trainer.conversion.sources import FIRST_LAYER, expected_weights, fetch, read_config
from logramed.trainer.conversion.weights import WeightFiles, compare_names, write_shards
from logramed.trainer.merge import merge_adapter


SECOND_LAYER, SECOND_BIAS = "multi_modal_projector.linear_2.weight", "multi_modal_projector.linear_2.bias"
# vLLM looks for such a loop to see that a template takes contents of parts, and else writes `<image>` itself.
TAKES_PARTS = (
    "{%- if false -%}{%- for message in messages -%}{%- for part in message['content'] -%}{%- endfor -%}{%- endfor -%}"
    "{%- endif -%}"
)
PLACEHOLDER = "{%- set placeholder = image_token | default('<image>') -%}"


def convert_to_llava(model: str, output: str | Path) -> Path:
    """
    Write a LoGra-Med as `LlavaForConditionalGeneration` with a `LlavaProcessor`, which transformers 4.57 and 5, and
    engines that know LLaVA, load without remote code. Logits are the same.

    A linear projector gets a second layer that changes nothing. The layers that `sci` and `dci` join are taken as a
    list of layers; of `dci`, whose means have no place there, the first layer of the projector has each mean's weights
    once for every layer, divided by their number.

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
        tensors = {name: tensor for name, tensor in files.tensors.items() if "graph_network." not in name}
        compare_names({name: tensor.shape for name, tensor in tensors.items()}, [], expected_weights(config), model)
        changed = {FIRST_LAYER: fold(files.read(FIRST_LAYER), config), **identity_layer(config, files)}
        with whole_folder(output, "OUTPUT") as unfinished:
            write_shards(
                unfinished, tensors | changed, lambda name: changed[name] if name in changed else files.read(name)
            )
            write_stock_config(config, files, unfinished)
            write_stock_processor(folder, config, unfinished)
            for name in ("generation_config.json", PARTS_NAME):
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, unfinished / name)
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


def fold(weight: torch.Tensor, config: LoGraMedConfig) -> torch.Tensor:
    """
    The projector's first layer `(hidden_size, 3 * vision_hidden_size)` of a `dci` model, for hidden states that are
    not averaged before it, `(hidden_size, (1 + num_layers) * vision_hidden_size)`: a mean's weights, divided by the
    number of layers, stand once for each. Others are left as they are.
    """
    if config.dense_connector != "dci":
        return weight
    selected, *means = weight.split(config.vision_config.hidden_size, dim=1)
    num_layers = len(config.connected_layers)
    blocks = [selected]
    for mean, number in zip(means, (num_layers // 2, num_layers - num_layers // 2), strict=True):
        blocks += [(mean.float() / number).to(weight.dtype)] * number
    return torch.cat(blocks, dim=1)


def identity_layer(config: LoGraMedConfig, files: WeightFiles) -> dict[str, torch.Tensor]:
    """The second layer of a linear projector in LLaVA, which changes nothing."""
    if config.projector_type != "linear":
        return {}
    size, dtype = config.text_config.hidden_size, files.tensors[FIRST_LAYER].dtype
    layer = {SECOND_LAYER: torch.eye(size, dtype=dtype)}
    return layer | ({SECOND_BIAS: torch.zeros(size, dtype=dtype)} if config.multimodal_projector_bias else {})


def write_stock_config(config: LoGraMedConfig, files: WeightFiles, folder: Path) -> None:
    layers = config.vision_feature_layer
    if config.connected_layers:  # the selected hidden state, and those that are joined to it
        layers = [layers % (config.vision_config.num_hidden_layers + 1), *config.connected_layers]
    stock = LlavaConfig(
        vision_config=config.vision_config.to_dict(),
        text_config=config.text_config.to_dict(),
        image_token_index=config.image_token_index,
        projector_hidden_act=config.projector_hidden_act,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        vision_feature_layer=layers,
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
    """The processor as a `LlavaProcessor`."""
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
