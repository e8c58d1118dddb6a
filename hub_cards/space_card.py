"""Write cards of Spaces: the demo, and the metrics in `eval/metrics/`."""

import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import yaml

from logramed import image_files_logramed
from logramed.eval import metrics, model_names
from logramed.eval.grounding import boxes, region_weights, tints
from logramed.hub_cards.contents import Contents, choose_all_files
from logramed.hub_cards.model_card import Card, render
from logramed.hub_cards.results import hub_ids


DEMO_FOLDER = Path(__file__).parent / "space"
# Modules that the demo imports; its Space has copies of them.
DEMO_MODULES = [Path(module.__file__) for module in (image_files_logramed, boxes, model_names, region_weights, tints)]
METRICS_FOLDER = Path(metrics.__file__).parent
IMPORTED_MODULE = re.compile(r"(?<=^from )logramed\.eval\.metrics\.(?:\w+\.)?(\w+)(?= import )", re.MULTILINE)
MODEL_FILE = "model_id.txt"  # the model of a published demo


def choose_demo_files(folder: Path) -> Contents:
    """Choose all files of the demo; its example images are phantoms drawn by this project."""
    contents = choose_all_files(folder)
    contents.files.pop("README.md", None)
    if folder.resolve() == DEMO_FOLDER.resolve():
        contents.generated_images = {name for name in contents.files if name.endswith(".png")}
    return contents


def write_demo_card(repo_id: str, models: Sequence[str]) -> Card:
    """Write the card of the demo's Space. Raises `ValueError` unless `models` names one model on the Hub."""
    ids = hub_ids(models)
    if len(ids) != 1:
        raise ValueError(
            "The demo's Space needs exactly one model on the Hub: give `--base_model org/name`, got "
            f"{', '.join(models) or 'none'}."
        )
    title = repo_id.rpartition("/")[2].replace("-", " ")
    front_matter = write_metadata(
        title,
        ["logramed", "medical"],
        models=ids,
        short_description="Ask a medical vision-language model about an image",
    )
    text = render("demo_card.md.jinja", front_matter=front_matter, title=title, model_id=ids[0])
    modules = {path.name: path.read_bytes() for path in DEMO_MODULES}
    return Card(text, {MODEL_FILE: f"{ids[0]}\n".encode()} | modules)


def write_metric_card(folder: Path) -> Card:
    """
    Write the card of a metric's Space: the text of its `README.md`, with metadata for the installed gradio. Includes
    the page and the modules that the metric imports, so that the Space needs nothing else from this project. Raises
    `ValueError` if the folder's card has no title or description.
    """
    _, metadata_text, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    known = yaml.safe_load(metadata_text)
    missing = [name for name in ("title", "description") if not known.get(name)]
    if missing:
        raise ValueError(f"The metadata of {folder / 'README.md'} have no `{missing[0]}`.")
    front_matter = write_metadata(known["title"], ["evaluate", "metric"], description=known["description"])
    files = gather_modules(folder)
    if not (folder / "app.py").is_file():
        files["app.py"] = (METRICS_FOLDER / "page.py").read_bytes()
    return Card(render("metric_card.md.jinja", front_matter=front_matter, body=body.strip()), files)


def gather_modules(folder: Path) -> dict[str, bytes]:
    """
    Gather a metric's module and those of `eval/metrics/` that it needs, rewritten to import each other as siblings.

    `evaluate` downloads only siblings that the metric's module imports itself, so all are imported at its end.
    """
    metric = folder.resolve().name
    names, texts = [metric], {}
    while names:
        name = names.pop()
        path = folder / f"{name}.py"
        text = (path if path.is_file() else METRICS_FOLDER / path.name).read_text(encoding="utf-8")
        names += [found for found in IMPORTED_MODULE.findall(text) if found not in texts]
        texts[name] = IMPORTED_MODULE.sub(r".\1", text)
    siblings = [f"from .{name} import __name__ as _{name}\n" for name in sorted(texts) if name != metric]
    texts[metric] += "\n\n# `evaluate` downloads these modules because they are imported here.\n" + "".join(siblings)
    return {f"{name}.py": text.encode() for name, text in texts.items()}


def write_metadata(title: str, tags: list[str], **further) -> str:
    """Front matter of a gradio Space."""
    metadata = {
        "title": title,
        "emoji": "🩻",
        "colorFrom": "blue",
        "colorTo": "green",
        "sdk": "gradio",
        "sdk_version": gradio_version(),
        "app_file": "app.py",
        "pinned": False,
        "license": "apache-2.0",
        "tags": tags,
        **further,
    }
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---"


def gradio_version() -> str:
    """Version of the installed gradio, on which the demo was tested. Raises `ValueError` if not installed."""
    try:
        return metadata.version("gradio")
    except metadata.PackageNotFoundError as error:
        raise ValueError("The card needs the version of gradio: `pip install 'logramed[demo]'`.") from error
