"""Exports LoGra-Med as transformers' own `LlavaForConditionalGeneration`, which needs no remote code."""

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
# vLLM looks for this loop to detect that a template accepts content parts, and otherwise writes `<image>` itself.
TAKES_PARTS = (
    "{%- if false -%}{%- for message in messages -%}{%- for part in message['content'] -%}{%- endfor -%}{%- endfor -%}"
    "{%- endif -%}"
)
PLACEHOLDER = "{%- set placeholder = image_token | default('<image>') -%}"


def convert_to_llava(model: str, output: str | Path) -> Path:
    """
    Write a LoGra-Med as `LlavaForConditionalGeneration` with a `LlavaProcessor`, which transformers 4.57 and 5, and
    engines that support LLaVA, load without remote code. Logits are the same.

    A linear projector gets an identity as second layer. The layers that `sci` and `dci` join become a list of layers.
    LLaVA cannot average layers as `dci` does, so the projector's first layer repeats each mean's weights for every
    layer, divided by the number of layers.

    Args:
        model (`str`): Folder or Hub id of a model, or of an adapter, which is merged first.
        output (`str` or `Path`): A folder that does not exist yet, or is empty.

    Raises:
        ValueError: If LLaVA cannot represent the model (the message says why), or `output` is not empty.
    """
    output = Path(output)
    require_empty(output, "OUTPUT")
    with merged(fetch(model, "DIR"), output) as folder:
        settings = read_config(folder, "DIR")
        if settings.get("model_type") != "logramed":
            raise ValueError(f"DIR {model} is not a LoGra-Med: its model type is {settings.get('model_type')!r}.")
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
    """The folder, or for an adapter a temporary folder next to `output` with the merged model."""
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
        reason = "the connector sti turns further layers into tokens, and LLaVA joins layers only as channels"
    elif config.image_token_pooling:
        reason = f"it pools the patches of an image (`image_token_pooling={config.image_token_pooling}`)"
    elif config.num_prefix_tokens > 1 and config.vision_feature_select_strategy == "default":
        reason = "its vision tower has register tokens, and LLaVA leaves out only the class token"
    elif config.lm_head_bias:
        reason = "its head has biases"
    if reason:
        raise ValueError(f"This model cannot be a stock LLaVA: {reason}. Serve it with its own code.")


def fold(weight: torch.Tensor, config: LoGraMedConfig) -> torch.Tensor:
    """
    Rewrite the projector's first layer `(hidden_size, 3 * vision_hidden_size)` of a `dci` model for hidden states that
    are not averaged, `(hidden_size, (1 + num_layers) * vision_hidden_size)`: each mean's weights are divided by its
    number of layers and repeated for each. Returned unchanged for other models.
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
    """An identity as LLaVA's second projector layer, for models with a linear projector."""
    if config.projector_type != "linear":
        return {}
    size, dtype = config.text_config.hidden_size, files.tensors[FIRST_LAYER].dtype
    layer = {SECOND_LAYER: torch.eye(size, dtype=dtype)}
    return layer | ({SECOND_BIAS: torch.zeros(size, dtype=dtype)} if config.multimodal_projector_bias else {})


def write_stock_config(config: LoGraMedConfig, files: WeightFiles, folder: Path) -> None:
    layers = config.vision_feature_layer
    if config.connected_layers:  # the selected hidden state, and those joined to it
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
    # transformers 4.57 and engines read the token's id by this name.
    content |= {"image_token_index": config.image_token_index, "image_token_id": config.image_token_index}
    write_json(folder / "config.json", content)


def write_stock_processor(source: Path, config: LoGraMedConfig, folder: Path) -> None:
    """Write the processor as a `LlavaProcessor`."""
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
    """Make the chat template write the tokens around an image itself, since `LlavaProcessor` does not."""
    written = "".join(
        token or "" for token in (processor.image_start_token, processor.image_token, processor.image_end_token)
    )
    if "bos_token" not in template:  # engines add no special tokens to a template's output
        template = "{{- bos_token or '' -}}" + template
    template = TAKES_PARTS + template
    if PLACEHOLDER in template:
        return template.replace(PLACEHOLDER, "{%- set placeholder = " + repr(written) + " -%}")
    if written != processor.image_token:
        raise ValueError(
            f"The chat template does not mark where it writes an image, so {written} cannot be put there."
        )
    return template


def stock_image_settings(image_processor: LoGraMedImageProcessor) -> dict[str, Any]:
    """The preprocessor_config.json with which LLaVA's image processor gives the same pixels."""
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
