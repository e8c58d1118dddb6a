"""The demo's Space: its files and its card. Metrics are Spaces as they stand in `eval/metrics/`."""

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import yaml

from logramed.hub_cards.contents import Contents, choose_all_files
from logramed.hub_cards.model_card import Card, render
from logramed.hub_cards.results import hub_ids


DEMO_FOLDER = Path(__file__).parent / "space"


def choose_demo_files(folder: Path) -> Contents:
    """All files of the demo; its example images are phantoms that this project drew."""
    contents = choose_all_files(folder)
    contents.files.pop("README.md", None)
    if folder.resolve() == DEMO_FOLDER.resolve():
        contents.shareable_images = {
            name for name in contents.files if name.startswith("examples/") and name.endswith(".png")
        }
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
    front_matter = {
        "title": title,
        "emoji": "🩻",
        "colorFrom": "blue",
        "colorTo": "green",
        "sdk": "gradio",
        "sdk_version": gradio_version(),
        "app_file": "app.py",
        "pinned": False,
        "license": "apache-2.0",
        "models": ids,
        "tags": ["logramed", "medical"],
        "short_description": "Ask a medical vision-language model about an image",
    }
    dumped = yaml.safe_dump(front_matter, sort_keys=False, allow_unicode=True)
    text = render("demo_card.md.jinja", front_matter=f"---\n{dumped}---", title=title, model_id=ids[0])
    return Card(text)


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
