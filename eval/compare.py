"""
Compare runs of `eval/run.py` on the same questions: tables, tests and the questions worth looking at.

    python eval/compare.py RUN1 RUN2 ... --output FOLDER

`logramed-compare` does the same. It writes `comparison.html` (one file, works offline), `comparison.md` and
`comparison.json` to FOLDER.
"""

from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from logramed.eval.command_line import run_command
from logramed.eval.comparison.html_report import render_html, render_markdown
from logramed.eval.comparison.run_folder import read_run_folder
from logramed.eval.comparison.runs import Comparison, PairTest, compare_runs
from logramed.eval.comparison.summary import remarks, summary_sentences
from logramed.eval.files import write_json, write_whole


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: `sys.argv[1:]`), print the summary and return 0."""
    parser = ArgumentParser("logramed-compare", description="Compare runs of logramed-eval on the same questions.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="Output folder of logramed-eval.")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="Folder for the comparison.")
    parser.add_argument("--no_images", action="store_true", help="Do not embed images of the data set in the HTML.")
    arguments = parser.parse_args(argv)
    comparison = write_comparison(arguments.runs, arguments.output, images=not arguments.no_images)
    for line in (*summary_sentences(comparison), *remarks(comparison)):
        print(line)
    print(f"Written: {arguments.output / 'comparison.html'}")
    return 0


def write_comparison(folders: Sequence[str | Path], output: str | Path, images: bool = True) -> Comparison:
    """
    Compare the runs in `folders` and write `comparison.html`, `.md` and `.json` to `output`; with `images` the HTML
    embeds thumbnails for the worst questions. Raises `ValueError` if a folder is not a finished run, or the runs did
    not ask the same questions.
    """
    comparison = compare_runs([read_run_folder(folder) for folder in folders])
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / "comparison.html", render_html(comparison, images=images))
    write_whole(output / "comparison.md", render_markdown(comparison))
    write_json(output / "comparison.json", describe_comparison(comparison))
    return comparison


def describe_comparison(comparison: Comparison) -> dict:
    """Figures and tests of a comparison for `comparison.json`, without questions, answers and local paths."""

    def describe(pair: PairTest) -> dict:
        names = {"figure": pair.figure, "first": comparison.names[pair.first], "second": comparison.names[pair.second]}
        return names | asdict(pair.test) | {"corrected_p_value": pair.corrected_p_value}

    return {
        "test_unit": comparison.unit,
        "systems": {name: run.overall for name, run in zip(comparison.names, comparison.runs, strict=True)},
        "paired_bootstrap": [describe(pair) for pair in comparison.bootstrap_tests],
        "mcnemar": [describe(pair) for pair in comparison.mcnemar_tests],
        "with_and_without_sight": [describe(pair) for pair in comparison.sight_tests],
        "remarks": remarks(comparison),
    }


def command() -> int:
    return run_command(main)


if __name__ == "__main__":
    raise SystemExit(command())
