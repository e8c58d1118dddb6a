"""Loading benchmarks from a folder or the Hugging Face Hub, and images from their archives and tables."""

import hashlib
import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import huggingface_hub
import pyarrow.parquet
from huggingface_hub import constants

from logramed.eval.benchmarks.rows import Located, collect_image_names, read_records, read_rows
from logramed.eval.files import write_bytes_whole
from logramed.eval.volumes import image_exists


HUB_ID_PATTERN = re.compile(r"\w[\w.-]*/\w[\w.-]*")
ROWS_AT_ONCE = 64


def locate(data: str | Path, benchmark: str, hub_id: str, files: Sequence[str]) -> Path:
    """
    The folder with the files of a benchmark: `data` itself or, if `data` is the id of a data set on the Hugging Face
    Hub, the folder to which `files` (patterns) are downloaded; a `Path` is never an id. Raises `ValueError` if `data`
    is neither, or the download fails.
    """
    folder = Path(data).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if not isinstance(data, str) or not HUB_ID_PATTERN.fullmatch(data):
        raise ValueError(
            f"`data` must be the folder with the files of {benchmark}, or a Hub id such as {hub_id}; there is no "
            f"folder {str(data)!r}."
        )
    try:
        return Path(huggingface_hub.snapshot_download(data, repo_type="dataset", allow_patterns=list(files)))
    except (OSError, ValueError) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"`data`: there is no folder {data!r}, and the data set of this id could not be downloaded from the "
            f"Hugging Face Hub ({cause}). Check the id and the connection, or give a folder with the files of "
            f"{benchmark}."
        ) from error


def find_file(folder: Path, names: Sequence[str]) -> Path | None:
    """The first file in `folder` that matches `names` (patterns, tried in order), or `None`."""
    paths = (path for name in names for path in sorted(folder.glob(name)))
    return next((path for path in paths if path.is_file()), None)


def require_file(folder: Path, names: Sequence[str], benchmark: str) -> Path:
    """Like `find_file`, but raises `ValueError` if there is none."""
    path = find_file(folder, names)
    if path is None:
        raise refuse_folder(folder, names, benchmark)
    return path


def refuse_folder(folder: Path, names: Sequence[str], benchmark: str) -> ValueError:
    """The error for a `folder` with none of the files `names`."""
    others = f" (nor {', '.join(names[1:])})" if names[1:] else ""
    return ValueError(f"`data` holds no {names[0]}{others}: {folder}. It must be the folder of the {benchmark} files.")


def read_questions(
    records: Path | Sequence[Located],
    read_row: Callable[[dict, str, Path], dict],
    skipped: list[str] | None,
    *,
    image_fields: Sequence[str],
    image_folders: Sequence[str],
    archives: Sequence[str] = (),
    folder: Path | None = None,
    id_field: str | None = None,
) -> list[dict]:
    """
    The question rows of a file, or of records from it, with all images in one folder. `read_row` converts a record,
    given with its location and the image folder; `image_fields` are the fields with image names. `image_folders` and
    `archives` are searched in `folder`, by default that of the file. For `skipped` and `id_field` see `read_rows`.
    """
    if isinstance(records, Path):
        folder = folder or records.parent
        records = read_records(records)
    names = collect_image_names((record for _, record in records), *image_fields)
    images = image_folder(folder, image_folders, names, archives).resolve()
    return read_rows(records, lambda record, where: read_row(record, where, images), skipped, id_field)


def image_folder(
    folder: Path, candidates: Sequence[str], names: Collection[str], archives: Sequence[str] = ()
) -> Path:
    """
    The folder of the images `names`: the first of `candidates` in `folder` ("." is `folder` itself) that has any of
    them, otherwise the folder to which the first existing zip file of `archives` is unpacked. If nothing is found, the
    first candidate that exists, so that the error about the image names it.
    """
    for candidate in candidates:
        if any(image_exists(str(folder / candidate / name)) for name in names):
            return folder / candidate
    archive = find_file(folder, archives)
    if archive is not None:
        return unpack(archive, names)
    existing = [folder / candidate for candidate in candidates if (folder / candidate).is_dir()]
    return (existing or [folder / candidates[0]])[0]


def cache_folder() -> Path:
    """The folder for unpacked images: `logramed` in the Hugging Face cache (see `HF_HOME`)."""
    return Path(constants.HF_HOME).absolute() / "logramed"


def parquet_files(folder: Path, split: str) -> list[Path]:
    """The parquet files of a split as `datasets` names them on the Hub, in row order; `[]` if there are none."""
    return sorted(folder.glob(f"data/{split}-*.parquet"))


def read_parquet_rows(paths: Sequence[Path]) -> Iterator[Located]:
    """
    Yield the rows of a table with images. Their bytes are saved to files: `image` becomes a path, or `images` a list
    of paths. An unreadable file or a row without an image raises `ValueError` with file and row.
    """
    for path in paths:
        try:
            batches = pyarrow.parquet.ParquetFile(path).iter_batches(ROWS_AT_ONCE)
        except (OSError, pyarrow.ArrowInvalid) as error:
            raise ValueError(f"{path} is not a readable parquet file: {error}.") from error
        records = (record for batch in batches for record in batch.to_pylist())
        for number, record in enumerate(records):
            where = f"{path}, row {number}"
            yield where, record | _save_images(record, where)


def _save_images(record: dict[str, Any], where: str) -> dict[str, Any]:
    images = record.get("images")
    if images is None or record.get("image") is not None:
        return {"image": save_image(record.get("image"), f"{where}, `image`")}
    if not images:
        raise ValueError(f"{where}, `images` is an empty list.")
    return {"images": [save_image(image, f"{where}, `images[{n}]`") for n, image in enumerate(images)]}


def save_image(image: Any, where: str) -> str:
    """Save an encoded image of a table to the cache and return its absolute path. Equal images share a file."""
    encoded = image.get("bytes") if isinstance(image, dict) else None
    if not encoded:
        raise ValueError(f"{where}: expected the bytes of an image, got none.")
    digest = hashlib.sha256(encoded).hexdigest()
    suffix = PurePosixPath(image.get("path") or "image.png").suffix
    path = cache_folder() / "images" / digest[:2] / f"{digest}{suffix}"
    if not path.is_file():
        write_bytes_whole(path, encoded)
    return str(path)


def unpack(archive: Path, names: Collection[str]) -> Path:
    """
    Unpack the files `names` of a zip archive to the cache, once, and return their folder.

    Names are matched at the end of the path, as an archive may have additional parent folders ("figures/a.jpg" for
    "a.jpg"). An interrupted unpacking is resumed. Each archive and each version of it has its own folder. Names not in
    the archive are left out. Raises `ValueError` if it is damaged or has two files for a name.
    """
    status = archive.stat()
    identity = hashlib.sha256(f"{archive.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()
    folder = cache_folder() / "archives" / f"{archive.stem}-{identity[:16]}"
    missing = {name for name in names if not (folder / name).is_file()}
    if not missing:
        return folder
    found: dict[str, str] = {}
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in opened.namelist():
                parts = PurePosixPath(member).parts
                if {"..", "/", "__MACOSX"} & set(parts):  # macOS adds the last one
                    continue
                for name in missing.intersection("/".join(parts[start:]) for start in range(len(parts))):
                    if name in found:
                        raise ValueError(f"{archive} holds two files for {name}: {found[name]} and {member}.")
                    found[name] = member
                    write_bytes_whole(folder / name, opened.read(member))
    except zipfile.BadZipFile as error:
        raise ValueError(f"{archive} is damaged: {error}. Download it again.") from error
    return folder
