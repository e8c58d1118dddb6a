"""What can be published, and the files and card of each kind."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from logramed.hub_cards.contents import Contents, choose_all_files, choose_model_files
from logramed.hub_cards.data_card import EXTENDED_NAME, PREDICTIONS_NAME, write_extended_card, write_predictions_card
from logramed.hub_cards.model_card import CURVES, choose_license, write_model_card
from logramed.hub_cards.results import as_json, hub_ids, read_evaluations
from logramed.hub_cards.space_card import choose_demo_files, write_demo_card, write_metric_card


CARD_NAME = "README.md"
# What is published, and the type of its repository on the Hub.
REPO_TYPES = {
    "adapter": "model",
    "model": "model",
    "predictions": "dataset",
    "extended_answers": "dataset",
    "metric": "space",
    "demo": "space",
}
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@dataclass
class Publication:
    """
    What is published: the local `folder`, its `kind` (of `REPO_TYPES`), and the files in `contents`, which include
    the `card`.
    """

    folder: Path
    kind: str
    contents: Contents
    card: str


def find_kind(folder: Path) -> str:
    """The kind of a folder by its files, one of `REPO_TYPES`. Raises `ValueError` if no kind fits."""
    files = {
        "adapter": ["adapter_config.json"],
        "model": ["config.json"],
        "predictions": [PREDICTIONS_NAME, "metrics.json"],
        "extended_answers": [EXTENDED_NAME],
        "metric": [f"{folder.resolve().name}.py"],
        "demo": ["app.py"],
    }
    for kind, names in files.items():
        if all((folder / name).is_file() for name in names):
            return kind
    known = ", ".join(f"{' and '.join(names)} ({kind})" for kind, names in files.items())
    raise ValueError(f"{folder} holds nothing that can be published: none of {known}.")


def prepare(
    folder: str | Path,
    repo_id: str,
    *,
    license: str | None = None,
    evaluations: Sequence[Path] | None = None,
    datasets: Sequence[str] = (),
    base_models: Sequence[str] = (),
    include: Sequence[str] = (),
    language: str = "en",
) -> Publication:
    """
    Choose the files of a folder to publish as `repo_id` (`owner/name`), and write the card.

    `license` is required except for Spaces (this project's licence) and converted models (recorded in the folder).
    `evaluations` are folders of `logramed-eval` with figures for the card, by default those found in and next to the
    model; `datasets` and `base_models` are Hub ids for the card; `include` has patterns of additional files of a
    model's folder; `language` is the language code of the answers. Raises `FileNotFoundError` if there is no such
    folder, and `ValueError` if something is missing or the card would be wrong.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    if not hub_ids([repo_id]):
        raise ValueError(f"`repo` must be an owner and a name, such as org/logramed-mini, got {repo_id!r}.")
    kind = find_kind(folder)
    check_license(license or choose_license(folder, None)["license"], folder, REPO_TYPES[kind])
    if include and REPO_TYPES[kind] != "model":
        raise ValueError(f"`include` names additional files of a model's folder, but {folder} is no model ({kind}).")
    if REPO_TYPES[kind] == "model":
        card = write_model_card(
            folder,
            repo_id,
            license=license,
            evaluations=read_evaluations(folder, evaluations),
            datasets=datasets,
            base_models=base_models,
            language=language,
        )
        contents = choose_model_files(folder, include)
        contents.generated_images.add(CURVES)
        if kind == "adapter":
            contents.files["adapter_config.json"] = name_base_model(folder, card.text)
    elif kind == "extended_answers":
        contents, card = Contents(), write_extended_card(folder, repo_id, license, datasets, language)
    elif kind == "predictions":
        contents, card = Contents(), write_predictions_card(folder, repo_id, license, datasets, language)
    elif kind == "demo":
        contents, card = choose_demo_files(folder), write_demo_card(repo_id, base_models)
    else:
        contents, card = choose_all_files(folder), write_metric_card(folder)
    contents.files |= {**card.files, CARD_NAME: card.text.encode()}
    contents.left_out = [name for name in contents.left_out if name not in contents.files]
    return Publication(folder, kind, contents, card.text)


def check_license(license: str | None, folder: Path, repo_type: str) -> None:
    """Raise `ValueError` if a required licence is missing, or `license` is not a licence identifier."""
    if license is None and repo_type != "space":
        raise ValueError(
            f"Give the licence of {folder} with `--license`, such as apache-2.0 or cc-by-nc-4.0. It must respect the "
            "licences of its base models and data."
        )
    if license is not None and not LICENSE.fullmatch(license):
        raise ValueError(f"`license` must be an identifier such as apache-2.0, got {license!r}.")


def name_base_model(folder: Path, card: str) -> bytes:
    """
    `adapter_config.json` with the base model of the card instead of a local folder. Raises `ValueError` if none.
    """
    bases = read_front_matter(card).get("base_model")
    if not bases:
        raise ValueError(
            f"The adapter in {folder} names no base model on the Hub, without which nobody can load it. Publish the "
            "base model, and name it with `--base_model`."
        )
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return as_json(settings | {"base_model_name_or_path": bases[0]})


def read_front_matter(card: str) -> dict:
    """Parse the metadata at the beginning of a card."""
    return yaml.safe_load(card.split("---\n", 2)[1])
