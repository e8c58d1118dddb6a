"""From checkpoints of other codes to a LoGra-Med folder, one tensor at a time."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import snapshot_download
from safetensors.torch import save_file
from transformers import GenerationConfig

from logramed import LoGraMedConfig, LoGraMedImageProcessor, LoGraMedProcessor
from logramed.chat_templates_logramed import CHAT_TEMPLATES
from logramed.eval.files import require_empty, whole_folder, write_json
from logramed.eval.model_names import naming_model
from logramed.trainer.build_model import PARTS_NAME, VOCABULARY_MULTIPLE
from logramed.trainer.conversion.sources import (
    DELTA,
    EMBEDDINGS,
    GRAPH_NETWORK,
    HEAD,
    KINDS,
    KNOWN_TOWERS,
    TOWER_PREFIX,
    TOWER_RENAMES,
    UnknownWeightError,
    choose_dense_connector,
    expected_weights,
    read_config,
    refuse_other_kind,
    rename,
    text_config_of,
    vision_config_of,
)
from logramed.trainer.conversion.tokens import (
    add_former_image_tokens,
    add_image_token,
    find_stop_tokens,
    load_tokenizer,
)
from logramed.trainer.conversion.weights import ShardWriter, TensorInfo, WeightFiles, compare_names


# All that a conversion reads; other files of a repository (other weights, pictures) are left on the Hub.
READ_FILES = ("*.json", "*.safetensors", "*.bin", "tokenizer.model", "*.jinja", "README.md")
# Not beside the weights: engines load every safetensors file there.
GRAPH_NETWORK_FILE = "training/graph_network.safetensors"
# What a change of precision or padded rows may add to what is read.
DISK_MARGIN_BYTES = 10**8


@dataclass
class Plan:
    """
    A model that is to be written: everything but its weights, which are read one by one.

    Attributes:
        config (`LoGraMedConfig`): Of the model.
        processor (`LoGraMedProcessor`): With its tokenizer.
        end_token_ids (`list[int]`): Tokens that end an answer.
        weights (`list[Weights]`): Where its weights come from, each under its own names.
        parts (`dict`): What parts.json says.
        dtype (`torch.dtype`): Of all weights.
    """

    config: LoGraMedConfig
    processor: LoGraMedProcessor
    end_token_ids: list[int]
    weights: "list[Weights]"
    parts: dict[str, Any]
    dtype: torch.dtype

    def shapes(self) -> tuple[dict[str, tuple[int, ...]], list[str]]:
        """The weights that are written, and the names in the files that nobody knows."""
        shapes, unknown = {}, []
        for weights in self.weights:
            known, strange = weights.names()
            shapes |= {ours: weights.shapes.get(ours, info.shape) for ours, (_, info) in known.items()}
            unknown += strange
        if self.config.tie_word_embeddings:  # the embeddings are the head, whether the files have it twice or not
            shapes.pop(HEAD, None)
        return shapes, unknown

    def check(self, source: str) -> None:
        """
        Raises:
            ValueError: If weights are missing, left over or of another shape than the configuration says.
        """
        compare_names(*self.shapes(), expected_weights(self.config), source)


@dataclass
class Weights:
    """
    Files, how their weights are named in ours (`None`: left out), and what is done to a weight on the way.
    """

    files: WeightFiles
    rename: Callable[[str], str | None]
    change: Callable[[str, torch.Tensor], torch.Tensor] = lambda name, tensor: tensor
    # Shapes that `change` gives a weight, by our name.
    shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    def names(self) -> tuple[dict[str, tuple[str, TensorInfo]], list[str]]:
        """Our names with those in the files, and the names there that nobody knows."""
        known, unknown = {}, []
        for name, info in self.files.tensors.items():
            try:
                ours = self.rename(name)
            except UnknownWeightError:
                unknown.append(name)
                continue
            if ours is not None:
                known[ours] = (name, info)
        return known, unknown

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self.files:
            ours = self.rename(name)
            if ours is not None:
                yield ours, self.change(ours, tensor)


def fetch(name: str, argument: str) -> Path:
    """
    The folder of a model: itself, or a snapshot of a repository of the Hub.

    Raises:
        ValueError: If there is neither.
    """
    with naming_model(name, argument, foreign=True):
        return Path(name) if Path(name).is_dir() else Path(snapshot_download(name, allow_patterns=list(READ_FILES)))


def convert_to_logramed(
    kind: str,
    source: str,
    output: str | Path,
    *,
    dense_connector: str | None = None,
    base: str | None = None,
    vision_tower: str | None = None,
) -> Path:
    """
    Write a checkpoint of another code as a LoGra-Med folder, with its processor.

    Args:
        kind (`str`): Of `KINDS`.
        source (`str`): Folder or Hub id of the checkpoint.
        output (`str` or `Path`): A folder that does not exist yet, or is empty.
        dense_connector (`str`, *optional*): Which layers were joined, where the checkpoint does not tell.
        base (`str`, *optional*): Folder or Hub id of LLaMA, for a delta.
        vision_tower (`str`, *optional*): Folder or Hub id of CLIP; by default the tower in the checkpoint, or the one
            that its configuration names.

    Returns:
        `Path`: of the folder. A graph network of the checkpoint is in `training/graph_network.safetensors` there.

    Raises:
        ValueError: If the checkpoint is of another kind, incomplete, ambiguous or damaged, or `output` is not empty.
        OSError: If there is no room for what is to be written.
    """
    output = Path(output)
    require_empty(output)
    plan = plan_conversion(kind, source, dense_connector, base, vision_tower)
    plan.check(source)
    write_plan(plan, output)
    return output


def plan_conversion(
    kind: str, source: str, dense_connector: str | None, base: str | None, vision_tower: str | None
) -> Plan:
    """Read all but the weights of a checkpoint."""
    if (kind == DELTA) != (base is not None):
        needed = "is needed by" if kind == DELTA else "is for"
        raise ValueError(f"--base, the LLaMA that a delta was taken from, {needed} --from {DELTA} alone.")
    folder = fetch(source, "SOURCE")
    config = read_config(folder)
    refuse_other_kind(kind, config, source)
    if kind == "llava" and "text_config" in config:
        from logramed.trainer.conversion.stock import plan_stock

        return plan_stock(folder, source, config)
    return plan_original(kind, source, folder, config, dense_connector, base, vision_tower)


def plan_original(
    kind: str,
    source: str,
    folder: Path,
    config: dict[str, Any],
    dense_connector: str | None,
    base: str | None,
    vision_tower: str | None,
) -> Plan:
    files = WeightFiles(folder)
    if "model.embed_tokens.weight" not in files.tensors:
        raise ValueError(f"{source} holds no model.embed_tokens.weight: it is no whole checkpoint.")
    embeddings = files.tensors["model.embed_tokens.weight"]
    num_rows, dtype = embeddings.shape[0], embeddings.dtype
    if config.get("vocab_size") not in (None, num_rows):
        raise ValueError(
            f"{source} has {num_rows} rows of embeddings, and config.json says {config['vocab_size']} (`vocab_size`)."
        )
    base_folder = None if base is None else fetch(base, "--base")
    tokenizer = load_tokenizer([folder, *([base_folder] if base_folder else [])])
    add_tokens = add_former_image_tokens if config.get("mm_use_im_start_end") else add_image_token
    image_tokens = add_tokens(tokenizer, num_rows)
    tower_name, tower_folder = find_tower(config, files, vision_tower)
    vision_config = tower_config(tower_name, tower_folder, files)
    projector = find_projector(files, vision_config["hidden_size"], dense_connector)
    text_config = {
        **text_config_of(config, KINDS[kind].language_model, round_up(len(tokenizer), num_rows)),
        **{name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
    }
    logramed_config = LoGraMedConfig(
        vision_config=vision_config,
        text_config=text_config,
        image_token_index=tokenizer.convert_tokens_to_ids(image_tokens["image_token"]),
        vision_feature_layer=config.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy="full" if config.get("mm_vision_select_feature") == "cls_patch" else "default",
        **projector,
    )
    weights = Weights(files, rename_without_graph(tower_folder is not None))
    weights.change, weights.shapes = pad_rows(num_rows, logramed_config)
    if base_folder is not None:
        weights.change = adding_base(WeightFiles(base_folder), source, base)
    from_tower = []
    if tower_folder is not None:
        from_tower = [Weights(WeightFiles(tower_folder), lambda name: rename(name, TOWER_RENAMES))]
    processor = LoGraMedProcessor(
        image_processor(config, vision_config, tower_folder),
        tokenizer,
        num_image_tokens=logramed_config.num_image_tokens,
        chat_template=CHAT_TEMPLATES[KINDS[kind].chat_template],
        stop_string=KINDS[kind].stop_string,
        **image_tokens,
    )
    return Plan(
        config=logramed_config,
        processor=processor,
        end_token_ids=find_stop_tokens(tokenizer, KINDS[kind].stop_string),
        weights=[weights, *from_tower],
        parts=describe_parts(kind, source, folder, tower_name, base),
        dtype=dtype,
    )


def round_up(num_tokens: int, num_rows: int) -> int:
    """
    Rows of embeddings for so many tokens: as many as there are, or with new ones a multiple of `VOCABULARY_MULTIPLE`.

    Example:
        >>> round_up(32004, 32004), round_up(32002, 32000)
        (32004, 32064)
    """
    if num_tokens <= num_rows:
        return num_rows
    return -(-num_tokens // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def find_projector(files: WeightFiles, tower_size: int, dense_connector: str | None) -> dict[str, Any]:
    """What the configuration says of the projector, by its weights."""
    is_linear = "model.mm_projector.weight" in files.tensors
    layer = "model.mm_projector" if is_linear else "model.mm_projector.0"
    first = files.tensors.get(f"{layer}.weight")
    if first is None:
        raise ValueError(f"{files.folder} holds no model.mm_projector weights: no projector that is known here.")
    return {
        "projector_type": "linear" if is_linear else "mlp2x_gelu",
        "dense_connector": choose_dense_connector(first.shape[1], tower_size, dense_connector),
        "multimodal_projector_bias": f"{layer}.bias" in files.tensors,
    }


def find_tower(config: Mapping[str, Any], files: WeightFiles, given: str | None) -> tuple[str, Path | None]:
    """The name of the vision tower and the folder of its weights, which is `None` where the checkpoint has them."""
    name = given or config.get("mm_vision_tower") or ""
    if given is None and any("vision_tower." in tensor for tensor in files.tensors):
        return str(name), None
    if not name:
        raise ValueError(f"{files.folder} holds no vision tower and names none. Name it with --vision_tower.")
    argument = "--vision_tower" if given else "The vision tower that config.json names (--vision_tower names another)"
    return str(name), fetch(str(name), argument)


def tower_config(name: str, folder: Path | None, files: WeightFiles) -> dict[str, Any]:
    """The configuration of the tower, from its folder, or where the checkpoint holds it from what its name says."""
    if folder is not None:
        return vision_config_of(read_config(folder, "--vision_tower"))
    if name in KNOWN_TOWERS:
        return vision_config_of(KNOWN_TOWERS[name])
    if name:
        return vision_config_of(read_config(fetch(name, "The vision tower that config.json names"), "vision tower"))
    raise ValueError(f"{files.folder} does not say which vision tower it holds. Name it with --vision_tower.")


def image_processor(
    config: Mapping[str, Any], vision_config: Mapping[str, Any], tower_folder: Path | None
) -> LoGraMedImageProcessor:
    """Of the tower's size, mean and deviation; all images are padded to squares, so that nothing is cropped."""
    path = None if tower_folder is None else tower_folder / "preprocessor_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else {}
    statistics = {name: settings[name] for name in ("image_mean", "image_std") if settings.get(name)}
    return LoGraMedImageProcessor(size=vision_config["image_size"], **statistics)


def rename_without_graph(replaces_tower: bool) -> Callable[[str], str | None]:
    """`rename`, without the graph network, and without a tower whose weights are taken from elsewhere."""

    def renamed(name: str) -> str | None:
        if GRAPH_NETWORK.fullmatch(name):
            return None
        ours = rename(name)
        return None if replaces_tower and ours is not None and ours.startswith(TOWER_PREFIX) else ours

    return renamed


def pad_rows(
    num_rows: int, config: LoGraMedConfig
) -> tuple[Callable[[str, torch.Tensor], torch.Tensor], dict[str, tuple[int, ...]]]:
    """
    Embeddings and head with rows for new tokens: the mean of the old ones, so that none of them is ever the likeliest.
    """
    wanted = config.text_config.vocab_size
    if wanted == num_rows:
        return lambda name, tensor: tensor, {}

    def padded(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name not in (EMBEDDINGS, HEAD):
            return tensor
        mean = tensor.float().mean(dim=0, keepdim=True).to(tensor.dtype)
        return torch.cat([tensor, mean.expand(wanted - len(tensor), -1)])

    shape = (wanted, config.text_config.hidden_size)
    return padded, {EMBEDDINGS: shape, HEAD: shape}


def adding_base(base: WeightFiles, source: str, base_name: str) -> Callable[[str, torch.Tensor], torch.Tensor]:
    """
    Adds the base's weights to a delta: all but the projector, and of embeddings and head the base's rows alone.

    Raises:
        ValueError: If the base lacks a weight, or has another shape.
    """
    by_name = {ours: name for name in base.tensors if (ours := rename(name)) is not None}

    def added(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name.startswith(("multi_modal_projector.", TOWER_PREFIX)):
            return tensor
        if name not in by_name:
            raise ValueError(f"--base {base_name} lacks {by_name.get(name, name)}, which {source} is a delta of.")
        other = base.read(by_name[name])
        rows_may_differ = name in (EMBEDDINGS, HEAD) and len(other) <= len(tensor)
        if other.shape[1:] != tensor.shape[1:] or (len(other) != len(tensor) and not rows_may_differ):
            raise ValueError(
                f"--base {base_name} has {name} of shape {list(other.shape)}, and {source} of {list(tensor.shape)}."
            )
        whole = tensor.float()
        whole[: len(other)] += other.float()
        return whole.to(tensor.dtype)

    return added


def describe_parts(kind: str, source: str, folder: Path, tower: str, base: str | None) -> dict[str, Any]:
    """What parts.json says of where a converted model comes from."""
    names = [source, base, tower]
    return {
        "source": source,
        "format": kind,
        **(read_license(folder) or KINDS[kind].license),
        "base_models": [name for name in names if name],
    }


def read_license(folder: Path) -> dict[str, str]:
    """The licence that the card of a checkpoint names, under the names of the Hub's front matter."""
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    front_matter = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    found = yaml.safe_load(front_matter.group(1)) if front_matter else {}
    return {name: found[name] for name in ("license", "license_name", "license_link") if found.get(name)}


def write_plan(plan: Plan, output: Path) -> None:
    """Write a model that was planned, whole or not at all."""
    shapes, _ = plan.shapes()
    require_disk(output, plan.dtype.itemsize * sum(torch.Size(shape).numel() for shape in shapes.values()))
    with whole_folder(output) as unfinished:
        writer = ShardWriter(unfinished)
        for weights in plan.weights:
            for name, tensor in weights:
                if name in shapes:
                    writer.add(name, tensor.to(plan.dtype) if tensor.is_floating_point() else tensor)
        writer.close()
        save_graph_network(plan.weights[0].files, unfinished)
        plan.config.dtype = plan.dtype
        plan.config.architectures = ["LoGraMedForConditionalGeneration"]
        plan.config.save_pretrained(unfinished)
        plan.processor.save_pretrained(unfinished)
        text = plan.config.text_config
        tokens = {"bos_token_id": text.bos_token_id, "pad_token_id": text.pad_token_id}
        GenerationConfig(eos_token_id=plan.end_token_ids, **tokens).save_pretrained(unfinished)
        write_json(unfinished / PARTS_NAME, plan.parts)


def save_graph_network(files: WeightFiles, folder: Path) -> None:
    """The graph network of a checkpoint, if it has one, as `GraphNetwork.load_state_dict` takes it."""
    found = {match.group(1): name for name in files.tensors if (match := GRAPH_NETWORK.fullmatch(name))}
    if found:
        path = folder / GRAPH_NETWORK_FILE
        path.parent.mkdir()
        state = {ours: files.read(name).contiguous() for ours, name in found.items()}
        save_file(state, path, metadata={"format": "pt"})


def require_disk(output: Path, num_bytes: int) -> None:
    """
    Raises:
        OSError: If there is less room than `num_bytes` where `output` will be.
    """
    place = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if free < num_bytes + DISK_MARGIN_BYTES:
        raise OSError(
            f"The converted model takes {num_bytes / 1e9:.1f} GB, and {place} has {free / 1e9:.1f} GB left. Nothing "
            "was written."
        )
