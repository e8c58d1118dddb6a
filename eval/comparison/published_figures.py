"""Figures that others have published, to stand beside ours: never run here, and never tested against."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path


FILE = Path(__file__).with_name("published_figures.json")


@dataclass(frozen=True)
class PublishedFigures:
    """
    What one source says of one method on one benchmark.

    Attributes:
        method (`str`): Its name there.
        figures (`dict[str, float]`): In percent; what the source does not give is absent.
        training_data_share (`float`, *optional*): Percentage of the pre-training data used, where the source says it.
        source (`str`): Key of the source.
        short (`str`): The source in a few words.
        where, provenance (`str`): The place in the literature, and how it was read.
        protocol (`str`): `"release"` or `"as quoted"`.
    """

    method: str
    figures: dict[str, float]
    training_data_share: float | None
    source: str
    short: str
    where: str
    provenance: str
    protocol: str

    @property
    def name(self) -> str:
        """The method, with its share of training data where the source says it."""
        return self.method if self.training_data_share is None else f"{self.method}, {self.training_data_share:g}%"


@cache
def read_published() -> dict:
    """The content of `published_figures.json`."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def published_for(benchmark: str) -> list[PublishedFigures]:
    """
    All published figures of a benchmark.

    Example:
        >>> [row.figures["average"] for row in published_for("vqa_rad") if row.source == "project_page_figure"][:4]
        [72.5, 73.75, 74.6, 74.9]
        >>> published_for("phantoms")
        []
    """
    content = read_published()
    rows = []
    for row in content["figures"]:
        if row["benchmark"] == benchmark:
            source = content["sources"][row["source"]]
            rows.append(
                PublishedFigures(row["method"], row["figures"], row["training_data_share"], row["source"], **source)
            )
    return rows


def oddities_of(benchmark: str) -> list[str]:
    """What is odd about the published figures of a benchmark, in sentences."""
    return [oddity["text"] for oddity in read_published()["oddities"] if oddity["benchmark"] == benchmark]


def why_not_beside(run: dict) -> str | None:
    """
    Why published figures must not stand beside those of a run; `None` if they may.

    Args:
        run (`dict`): The settings of the run.

    Example:
        >>> why_not_beside({"benchmark": "vqa_rad", "split": "test", "limit": 8})
        'Only the first 8 questions were asked: no published figure is over these.'
        >>> why_not_beside({"benchmark": "phantoms", "split": "test"})
        'No published figures of phantoms are known here.'
    """
    benchmark = read_published()["benchmarks"].get(run["benchmark"])
    if benchmark is None:
        return f"No published figures of {run['benchmark']} are known here."
    if run.get("limit") is not None:
        return f"Only the first {run['limit']} questions were asked: no published figure is over these."
    for name, expected in (("split", benchmark["split"]), ("subset", benchmark.get("subset"))):
        if run.get(name) not in (expected, None):
            return f"The published figures are over the {name} {expected!r}, this run is over {run[name]!r}."
    return None


def provenance_lines(rows: Sequence[PublishedFigures]) -> list[str]:
    """One sentence for each source of `rows`: where its figures stand, how they were read, by which protocol."""
    protocols = read_published()["protocols"]
    lines = {}
    for row in rows:
        where = row.where[0].upper() + row.where[1:]
        lines[row.source] = f"{where}: {row.provenance}. Protocol, {row.protocol}: {protocols[row.protocol]}."
    return list(lines.values())
