"""What can be published, and how the files and the card of each kind come together."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from logramed.hub_cards.card_schema import check_card
from logramed.hub_cards.contents import Contents, choose_all_files, choose_model_files
from logramed.hub_cards.data_card import EXTENDED_NAME, PREDICTIONS_NAME, write_extended_card, write_predictions_card
from logramed.hub_cards.model_card import Card, recorded_license, write_model_card
from logramed.hub_cards.results import find_evaluations, hub_ids, read_evaluations
from logramed.hub_cards.space_card import choose_demo_files, write_demo_card, write_metric_card


CARD_NAME = "README.md"


@dataclass(frozen=True)
class Kind:
    """A kind of publication: how people call it, and what the Hub calls it."""

    title: str
    repo_type: str


KINDS = {
    "model": Kind("The model", "model"),
    "adapter": Kind("The adapter", "model"),
    "extended_answers": Kind("The data set of extended answers", "dataset"),
    "predictions": Kind("The prediction set", "dataset"),
    "metric": Kind("The metric's Space", "space"),
    "demo": Kind("The demo's Space", "space"),
}


@dataclass
class Publication:
    """
    What is published.

    Attributes:
        folder (`Path`): Where it lies on this machine.
        kind (`str`): Of `KINDS`.
        contents (`Contents`): The files.
        card (`str`): `README.md` among them.
    """

    folder: Path
    kind: str
    contents: Contents
    card: str


def find_kind(folder: Path) -> str:
    """
    What a folder holds, by its files.

    Raises:
        ValueError: If it cannot be told.
    """
    if (folder / "adapter_config.json").is_file():
        return "adapter"
    if (folder / "config.json").is_file():
        return "model"
    if (folder / PREDICTIONS_NAME).is_file() and (folder / "metrics.json").is_file():
        return "predictions"
    if (folder / EXTENDED_NAME).is_file():
        return "extended_answers"
    if (folder / f"{folder.resolve().name}.py").is_file():
        return "metric"
    if (folder / "app.py").is_file():
        return "demo"
    raise ValueError(
        f"It cannot be told what {folder} holds: neither a model (config.json), nor an adapter (adapter_config.json), "
        f"nor an evaluation ({PREDICTIONS_NAME}), nor extended answers ({EXTENDED_NAME}), nor a metric "
        f"({folder.resolve().name}.py), nor a Space (app.py). Give `--kind`."
    )


def prepare(
    folder: str | Path,
    repo_id: str,
    *,
    kind: str | None = None,
    license: str | None = None,
    evaluations: Sequence[Path] | None = None,
    datasets: Sequence[str] = (),
    base_models: Sequence[str] = (),
    include: Sequence[str] = (),
    share_included_images: bool = False,
    share_images_of: Sequence[str] = (),
    language: str = "en",
) -> Publication:
    """
    Choose the files of a folder that travel, and write the card.

    Args:
        folder (`str` or `Path`): What is published.
        repo_id (`str`): `owner/name` on the Hub.
        kind (`str`, *optional*): Of `KINDS`; by default seen from the files.
        license (`str`): Identifier of the licence. Needed but for Spaces, which have this project's, and for converted
            models, whose folder records it.
        evaluations: Folders of `logramed-eval` whose figures the card shows; by default those found beside the model.
        datasets, base_models: Ids on the Hub, for the card.
        include: Patterns of further files of a model's folder.
        share_included_images (`bool`): Images among these may be shared, by their terms.
        share_images_of: Benchmarks whose images may be shown.
        language (`str`): Code of the language of the answers.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If something is missing, or the card would be wrong.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    if not hub_ids([repo_id]):
        raise ValueError(f"`repo` must be an owner and a name, such as org/logramed-mini, got {repo_id!r}.")
    kind = kind or find_kind(folder)
    if license is None and kind == "model":
        license = recorded_license(folder).get("license")
    if license is None and KINDS[kind].repo_type != "space":
        raise ValueError(
            f"Say with `--license` under which terms {folder} is published, such as apache-2.0 or cc-by-nc-4.0. Those "
            "of its base models and data bind it."
        )
    if include and kind not in ("model", "adapter"):
        raise ValueError(f"`include` names further files of a model's folder, and {folder} holds none ({kind}).")
    if kind in ("model", "adapter"):
        found = find_evaluations(folder) if evaluations is None else evaluations
        card = write_model_card(
            folder,
            repo_id,
            kind=kind,
            license=license,
            evaluations=read_evaluations(found, folder),
            datasets=datasets,
            base_models=base_models,
            share_images_of=share_images_of,
            language=language,
        )
        contents = choose_model_files(folder, include, share_included_images)
        if kind == "adapter":
            _name_base_model(contents, folder, card)
    elif kind == "extended_answers":
        contents, card = Contents(), write_extended_card(folder, repo_id, license, datasets, language)
    elif kind == "predictions":
        contents, card = Contents(), write_predictions_card(folder, repo_id, license, datasets, language)
    elif kind == "demo":
        contents = choose_demo_files(folder)
        card = write_demo_card(repo_id, base_models)
    else:
        contents = choose_all_files(folder)
        card = write_metric_card(folder)
    contents.files |= card.files
    contents.left_out = {name: why for name, why in contents.left_out.items() if name not in contents.files}
    contents.shareable_images |= card.images
    contents.files[CARD_NAME] = card.text.encode()
    check_card(card.text, kind)
    return Publication(folder, kind, contents, card.text)


def _name_base_model(contents: Contents, folder: Path, card: Card) -> None:
    """An adapter's settings name its base model as the card does: a folder of this machine is nothing to others."""
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    base = read_front_matter(card.text)["base_model"]
    settings["base_model_name_or_path"] = base if isinstance(base, str) else base[0]
    contents.files["adapter_config.json"] = json.dumps(settings, indent=2, sort_keys=True).encode() + b"\n"


def read_front_matter(card: str) -> dict:
    """The metadata at the head of a card."""
    return yaml.safe_load(card.split("---\n", 2)[1])
