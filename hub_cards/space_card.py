"""Cards of Spaces: of the demo, and of the metrics in `eval/metrics/`."""

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import yaml

from logramed import image_files_logramed
from logramed.eval import metrics
from logramed.hub_cards.contents import Contents, choose_all_files
from logramed.hub_cards.model_card import Card, render
from logramed.hub_cards.results import hub_ids


DEMO_FOLDER = Path(__file__).parent / "space"
IMAGE_READER = Path(image_files_logramed.__file__)
METRIC_PAGE = Path(metrics.__file__).with_name("page.py")
MODEL_FILE = "model_id.txt"  # which model a published demo asks


def choose_demo_files(folder: Path) -> Contents:
    """All files of the demo; its example images are phantoms that this project drew."""
    contents = choose_all_files(folder)
    contents.files.pop("README.md", None)
    if folder.resolve() == DEMO_FOLDER.resolve():
        contents.generated_images = {name for name in contents.files if name.endswith(".png")}
    return contents


def write_demo_card(repo_id: str, models: Sequence[str]) -> Card:
    """
    The card of the demo's Space.

    Raises:
        ValueError: Unless `models` names one model on the Hub.
    """
    ids = hub_ids(models)
    if len(ids) != 1:
        raise ValueError(
            "The demo's Space needs the one model that it asks, on the Hub: give `--base_model org/name`, got "
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
    return Card(text, {MODEL_FILE: f"{ids[0]}\n".encode(), IMAGE_READER.name: IMAGE_READER.read_bytes()})


def write_metric_card(folder: Path) -> Card:
    """
    The card of a metric's Space: the text of its `README.md`, with metadata for the gradio that is installed. With it
    travels the page, unless the folder has an `app.py` of its own.

    Raises:
        ValueError: If the folder's card has no title or description.
    """
    _, metadata_text, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    known = yaml.safe_load(metadata_text)
    missing = [name for name in ("title", "description") if not known.get(name)]
    if missing:
        raise ValueError(f"The metadata of {folder / 'README.md'} have no `{missing[0]}`.")
    front_matter = write_metadata(known["title"], ["evaluate", "metric"], description=known["description"])
    files = {} if (folder / "app.py").is_file() else {"app.py": METRIC_PAGE.read_bytes()}
    return Card(render("metric_card.md.jinja", front_matter=front_matter, body=body.strip()), files)


def write_metadata(title: str, tags: list[str], **further) -> str:
    """The front matter of a Space with gradio."""
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
    """
    Of the installed package, which the demo was tried with.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        return metadata.version("gradio")
    except metadata.PackageNotFoundError as error:
        raise ValueError("The card names the version of gradio: `pip install 'logramed[demo]'`.") from error
