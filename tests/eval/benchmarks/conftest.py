"""Generated images, and a Hub that is a folder of this machine."""

import fnmatch
import json
import shutil
import zipfile
from pathlib import Path

import huggingface_hub
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from logramed.eval.benchmarks import hub


def write_image(path: Path, seed: int = 0) -> Path:
    """Noise; the same `seed` gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_json(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def write_parquet(path: Path, rows: list[dict]) -> Path:
    """A table as `datasets` writes it: `image` as encoded bytes with a path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def converted_row(row_id, image: str, question: str, answer, answer_type: str, field: str = "conversations") -> dict:
    """A row in the form of LLaVA-Med's `test_w_options_new.json`."""
    turns = [{"from": "human", "value": f"{question}\n<image>"}, {"from": "gpt", "value": answer}]
    return {"id": row_id, "image": image, "answer_type": answer_type, field: turns}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache for unpacked images."""
    monkeypatch.setattr(hub.constants, "HF_HOME", str(tmp_path / "hub_home"))
    return tmp_path / "hub_home" / "logramed"


class LocalHub:
    """Data sets by id, each a folder; downloads copy what the patterns ask for and are noted."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.downloads: list[tuple[str, tuple[str, ...]]] = []

    def repository(self, hub_id: str) -> Path:
        folder = self.root / "repositories" / hub_id
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def snapshot_download(self, repo_id: str, *, repo_type: str, allow_patterns: list[str]) -> str:
        assert repo_type == "dataset"
        repository = self.root / "repositories" / repo_id
        if not repository.is_dir():
            raise huggingface_hub.errors.LocalEntryNotFoundError("No such data set.\nMore lines.")
        self.downloads.append((repo_id, tuple(allow_patterns)))
        snapshot = self.root / "snapshots" / repo_id
        for path in repository.rglob("*"):
            name = path.relative_to(repository).as_posix()
            if path.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, snapshot / name)
        return str(snapshot)


@pytest.fixture
def local_hub(tmp_path, monkeypatch) -> LocalHub:
    local = LocalHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", local.snapshot_download)
    return local
