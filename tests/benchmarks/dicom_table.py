"""
What becomes of each file that pydicom ships for its own tests, as the table in `eval/volumes/README.md`:

    python -m tests.benchmarks.dicom_table --write

Without `--write` the table is printed.
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pydicom.data
from pydicom.pixels import get_decoder
from pydicom.uid import JPEGTransferSyntaxes

from logramed.eval.volumes import VolumeError, open_image_reference, open_volume


FILES = Path(pydicom.data.__file__).parent / "test_files"
README = Path(__file__).parents[2] / "eval" / "volumes" / "README.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"

# The extra `volumes` installs no pylibjpeg-libjpeg; where it is installed all the same, it is not used here.
for syntax in JPEGTransferSyntaxes:
    if "pylibjpeg" in get_decoder(syntax).available_plugins:
        get_decoder(syntax).remove_plugin("pylibjpeg")


def list_files() -> list[Path]:
    """All files, those in folders too, in the order of their names."""
    return sorted(path for path in FILES.rglob("*") if path.is_file())


def find_outcome(path: Path) -> str:
    """What a file loads as, or the error."""
    try:
        volume = open_volume(str(path))
        for number in range(1, volume.num_slices + 1):
            image = open_image_reference(f"{path}#slices={number}&window=auto")
    except VolumeError as error:
        return "error: " + str(error).removeprefix(f"{path}: ")
    return f"{'colour' if image.mode == 'RGB' else 'grey'} image{'' if volume.num_slices == 1 else 's, one a frame'}"


def name_groups(names: list[str]) -> Iterator[str]:
    """Names, with the number of files in place of those of a folder that has more than two."""
    folders = defaultdict(list)
    for name in names:
        folders[name.rpartition("/")[0]].append(name)
    for folder, inside in folders.items():
        yield from (
            [f"{len(inside)} in `{folder}/`"] if folder and len(inside) > 2 else [f"`{name}`" for name in inside]
        )


def build_table() -> str:
    """One row for each outcome, refusals last, with the number of its files and their names."""
    by_outcome = defaultdict(list)
    for path in list_files():
        name = re.sub(r"(dicomdirtests/)(TINY_ALPHA)?.*/(?=[^/]*$)", r"\1\2/", path.relative_to(FILES).as_posix())
        by_outcome[find_outcome(path)].append(name.replace("//", "/"))
    rows = sorted(by_outcome.items(), key=lambda row: (row[0].startswith("error: "), -len(row[1]), row[0]))
    lines = ["| outcome | files | which |", "| --- | --- | --- |"]
    lines += [f"| {outcome} | {len(names)} | {', '.join(name_groups(names))} |" for outcome, names in rows]
    return "\n".join(lines) + "\n"


def read_table() -> str:
    """The table that stands in the README."""
    return README.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into the README")
    arguments = parser.parse_args()
    table = build_table()
    if not arguments.write:
        print(table)
        return
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    README.write_text(before + BEGIN + table + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
