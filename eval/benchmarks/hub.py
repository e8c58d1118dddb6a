"""Benchmarks from a folder or from the Hugging Face Hub, and images out of their archives and tables."""

import hashlib
import io
import os
import re
import shutil
import zipfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import huggingface_hub
import pyarrow.parquet
from huggingface_hub import constants
from PIL import Image, UnidentifiedImageError

from logramed.eval.volumes import image_exists


HUB_ID_PATTERN = re.compile(r"\w[\w.-]*/\w[\w.-]*")
ROWS_AT_ONCE = 64


def locate(data: str | Path, benchmark: str, hub_id: str, files: Sequence[str]) -> Path:
    """
    The folder with the files of a benchmark: `data` itself, or where they lie after a download.

    Args:
        data (`str` or `Path`): A folder, or the id of a data set of the Hugging Face Hub (a `Path` is never an id). A
            folder wins over an id of the same name.
        benchmark (`str`), hub_id (`str`): Its name and the id of its own data set, for the error.
        files (sequence of `str`): What to download, as patterns ("data/test-*.parquet").

    Raises:
        ValueError: If `data` is neither, or the download fails.
    """
    folder = Path(data).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if isinstance(data, str) and HUB_ID_PATTERN.fullmatch(data):
        return _download(data, benchmark, files)
    raise ValueError(
        f"`data` must be the folder with the files of {benchmark}, or a Hub id such as {hub_id}; there is no folder "
        f"{str(data)!r}."
    )


def _download(hub_id: str, benchmark: str, files: Sequence[str]) -> Path:
    try:
        return Path(huggingface_hub.snapshot_download(hub_id, repo_type="dataset", allow_patterns=list(files)))
    except (OSError, ValueError) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"`data`: there is no folder {hub_id!r}, and the data set of this id could not be had from the Hugging "
            f"Face Hub ({cause}). Check the id and the connection, or give a folder with the files of {benchmark}."
        ) from error


def find_file(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of the files `names` (patterns) that `folder` has, in their order; `None` if it has none."""
    for name in names:
        for path in sorted(folder.glob(name)):
            if path.is_file():
                return path
    return None


def refuse_folder(folder: Path, names: Sequence[str], benchmark: str) -> ValueError:
    """The error for a `folder` that has none of the files `names`."""
    others = f" (nor {', '.join(names[1:])})" if names[1:] else ""
    return ValueError(f"`data` holds no {names[0]}{others}: {folder}. It must be the folder of the {benchmark} files.")


def image_folder(
    folder: Path, candidates: Sequence[str], names: Collection[str], archives: Sequence[str] = ()
) -> Path:
    """
    The folder that the images `names` lie in.

    Args:
        folder (`Path`): Folder of the benchmark.
        candidates (sequence of `str`): Folders in it where they may lie ("." is itself); the first that has any of
            them is taken.
        names (collection of `str`): The images' paths, as the rows name them.
        archives (sequence of `str`): Zip files, the first of which is unpacked where no folder has any of them.

    Returns:
        `Path`: where nothing is found, the first candidate that exists, so that the error about the image names it.
    """
    safe = [name for name in names if _stays_inside(name)]
    for candidate in candidates:
        if any(image_exists(str(folder / candidate / name)) for name in safe):
            return folder / candidate
    archive = find_file(folder, archives)
    if archive is not None:
        return unpack(archive, safe)
    existing = [folder / candidate for candidate in candidates if (folder / candidate).is_dir()]
    return (existing or [folder / candidates[0]])[0]


def cache_folder() -> Path:
    """Where unpacked images are kept: `logramed` in the Hugging Face cache (moved by the variable `HF_HOME`)."""
    return Path(constants.HF_HOME).absolute() / "logramed"


def parquet_files(folder: Path, split: str) -> list[Path]:
    """The files of a split as `datasets` writes them to the Hub, in the order of their rows; `[]` if none."""
    return sorted(folder.glob(f"data/{split}-*.parquet"))


def read_parquet_rows(paths: Sequence[Path], columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """
    Rows of a table with images, each with its place in words. `image` becomes the path of a file (see `save_image`);
    a table may have `images` in its place, lists, which become lists of paths.

    Raises:
        ValueError: If a file cannot be read or lacks one of `columns`, a list is empty, or an image is damaged; with
            file and row.
    """
    for path in paths:
        try:
            table = pyarrow.parquet.ParquetFile(path)
        except (OSError, pyarrow.ArrowInvalid) as error:
            raise ValueError(f"{path} is no readable parquet file: {error}.") from error
        names = table.schema_arrow.names
        if "images" in names:
            columns = ["images" if column == "image" else column for column in columns]
        missing = [column for column in columns if column not in names]
        if missing:
            raise ValueError(f"{path} has no column {', '.join(missing)}; it has {', '.join(names)}.")
        records = (
            record for batch in table.iter_batches(ROWS_AT_ONCE, columns=columns) for record in batch.to_pylist()
        )
        for number, record in enumerate(records):
            where = f"{path}, row {number}"
            yield where, record | _save_images(record, where)


def _save_images(record: dict[str, Any], where: str) -> dict[str, Any]:
    if "images" not in record:
        return {"image": save_image(record["image"], where)}
    if not record["images"]:
        raise ValueError(f"{where}, `images` is an empty list: expected at least one image.")
    return {"images": [save_image(image, where, f"images[{n}]") for n, image in enumerate(record["images"])]}


def save_image(image: Any, where: str, field: str = "image") -> str:
    """
    Write the encoded image of a table (`{"bytes": ..., "path": ...}`) to the cache, once: equal images are one file.

    Returns:
        `str`: the absolute path, named for the SHA-256 of the bytes.

    Raises:
        ValueError: If there are no bytes or no image can be read from them; with `where`.
    """
    encoded = image.get("bytes") if isinstance(image, dict) else None
    if not encoded:
        raise ValueError(f"{where}, `{field}`: expected the bytes of an image, got none.")
    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            suffix = str(opened.format).lower()
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{where}, `{field}`: {len(encoded)} bytes that are no image.") from error
    digest = hashlib.sha256(encoded).hexdigest()
    path = cache_folder() / "images" / digest[:2] / f"{digest}.{suffix}"
    if not path.is_file():
        _write(path, io.BytesIO(encoded))
    return str(path)


def list_members(archive: Path) -> list[str]:
    """The files of a zip archive, without what macOS adds (`__MACOSX/`, `._*`)."""
    with _open_zip(archive) as opened:
        return [info.filename for info in _members(opened)]


def unpack(archive: Path, names: Collection[str]) -> Path:
    """
    Write files of a zip archive to the cache, once, and return the folder they are in.

    An archive may hold more folders above a name than the rows that name it ("figures/a.jpg" for "a.jpg"): the end of
    the path counts. A name that the archive does not hold, or that leads out of the folder, is left out. Files are
    written one by one, each whole or not at all: an unpacking that was stopped goes on.

    Args:
        archive (`Path`): The zip file. Another file, or a changed one, has another folder.
        names (collection of `str`): Paths of the files, as they are to lie in the folder.

    Raises:
        ValueError: If the file is no zip archive, is damaged, or holds two different files for a name.
    """
    folder = _unpacked_folder(archive)
    missing = {name for name in names if _stays_inside(name) and not os.path.isfile(folder / name)}
    if missing:
        with _open_zip(archive) as opened:
            for name, info in _match_members(opened, missing, archive).items():
                try:
                    with opened.open(info) as member:
                        _write(folder / name, member)
                except zipfile.BadZipFile as error:
                    raise ValueError(
                        f"{archive} is damaged at {info.filename}: {error}. Download it again."
                    ) from error
    return folder


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _unpacked_folder(archive: Path) -> Path:
    status = archive.stat()
    identity = f"{archive.resolve()} {status.st_size} {status.st_mtime_ns}"
    return cache_folder() / "archives" / f"{archive.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def _open_zip(archive: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(archive)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{archive} is no whole zip archive ({error}). Download it again.") from error


def _members(opened: zipfile.ZipFile) -> Iterator[zipfile.ZipInfo]:
    for info in opened.infolist():
        path = PurePosixPath(info.filename)
        if not info.is_dir() and "__MACOSX" not in path.parts and not path.name.startswith("._"):
            yield info


def _match_members(opened: zipfile.ZipFile, names: set[str], archive: Path) -> dict[str, zipfile.ZipInfo]:
    """The member for each of `names` that the archive holds."""
    matched: dict[str, zipfile.ZipInfo] = {}
    for info in _members(opened):
        parts = PurePosixPath(info.filename).parts
        for start in range(len(parts)):
            name = "/".join(parts[start:])
            if name not in names:
                continue
            if name in matched and (matched[name].CRC, matched[name].file_size) != (info.CRC, info.file_size):
                raise ValueError(
                    f"{archive} holds two files for {name}: {matched[name].filename} and {info.filename}."
                )
            matched.setdefault(name, info)
    return matched


def _write(path: Path, content: Any) -> None:
    """Write a stream to `path`, whole or not at all; several processes may do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    with unfinished.open("wb") as file:
        shutil.copyfileobj(content, file)
    unfinished.replace(path)
