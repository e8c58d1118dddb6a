"""Tests of downloads, archives and tables. No network: the download call is replaced, or the Hub is offline."""

import hashlib
from pathlib import Path

import pytest

from logramed.eval.benchmarks import hub
from logramed.eval.benchmarks.converted import read_table_rows
from tests.eval.benchmarks.conftest import write_image, write_parquet, write_zip


def test_a_folder_is_taken_as_it_is(tmp_path, monkeypatch, local_hub):
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.locate("org/name", "SLAKE", "a/b", ["x"]) == tmp_path / "org" / "name"
    assert hub.locate(Path("org/name"), "SLAKE", "a/b", ["x"]).is_absolute()
    assert local_hub.downloads == []


def test_an_id_is_downloaded_with_only_the_files_asked_for(local_hub):
    repository = local_hub.repository("org/name")
    write_image(repository / "data" / "a.png")
    write_image(repository / "other" / "b.png")
    folder = hub.locate("org/name", "SLAKE", "a/b", ["data/*.png"])
    assert [path.name for path in folder.rglob("*.png")] == ["a.png"]


@pytest.mark.parametrize("data", ["missing", "a/b/c", "/nowhere/here", "./org/name", "org/", Path("org/name")])
def test_what_is_neither_folder_nor_id_is_refused_with_both_choices(data, local_hub):
    words = (
        r"`data` must be the folder with the files of SLAKE, or a Hub id such as BoKelvin/SLAKE; there is no folder"
    )
    with pytest.raises(ValueError, match=words):
        hub.locate(data, "SLAKE", "BoKelvin/SLAKE", ["test.json"])


def test_a_download_that_fails_names_the_id_and_the_local_alternative(local_hub):
    words = (
        r"no folder 'org/gone'.*not be downloaded.*\(No such data set\.\).*or give a folder with the files of SLAKE"
    )
    with pytest.raises(ValueError, match=words):
        hub.locate("org/gone", "SLAKE", "BoKelvin/SLAKE", ["test.json", "imgs.zip"])


def test_without_a_network_the_same_error_is_given(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"no folder 'org/gone'.*could not be downloaded from the Hugging Face Hub"):
        hub.locate("org/gone", "SLAKE", "BoKelvin/SLAKE", ["test.json"])


def test_archives_are_unpacked_once_and_only_what_is_asked_for(tmp_path, cache):
    archive = write_zip(tmp_path / "imgs.zip", {"imgs/x1/a.png": b"a", "imgs/x2/a.png": b"b", "imgs/x3/a.png": b"c"})
    folder = hub.unpack(archive, ["x1/a.png", "x2/a.png", "gone.png"])
    assert (folder / "x1" / "a.png").read_bytes() == b"a"
    assert (folder / "x2" / "a.png").read_bytes() == b"b"
    assert sorted(path.name for path in folder.iterdir()) == ["x1", "x2"]
    assert folder.is_relative_to(cache)
    archive_time = (folder / "x1" / "a.png").stat().st_mtime_ns
    assert hub.unpack(archive, ["x1/a.png", "x3/a.png"]) == folder
    assert (folder / "x1" / "a.png").stat().st_mtime_ns == archive_time
    assert (folder / "x3" / "a.png").read_bytes() == b"c"


def test_an_unpacking_that_was_stopped_goes_on(tmp_path, monkeypatch):
    archive = write_zip(tmp_path / "imgs.zip", {f"{name}.png": name.encode() for name in "abc"})
    written, write = [], hub.write_bytes_whole

    def stop_at_the_second(path, content):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write(path, content)

    monkeypatch.setattr(hub, "write_bytes_whole", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        hub.unpack(archive, ["a.png", "b.png", "c.png"])
    monkeypatch.setattr(hub, "write_bytes_whole", write)
    folder = hub.unpack(archive, ["a.png", "b.png", "c.png"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "a.png": b"a",
        "b.png": b"b",
        "c.png": b"c",
    }


def test_another_archive_of_the_same_name_has_its_own_folder(tmp_path):
    first = hub.unpack(write_zip(tmp_path / "imgs.zip", {"a.png": b"old"}), ["a.png"])
    second = hub.unpack(write_zip(tmp_path / "imgs.zip", {"a.png": b"newer"}), ["a.png"])
    assert first != second
    assert (second / "a.png").read_bytes() == b"newer"


def test_what_macos_adds_is_left_out(tmp_path):
    archive = write_zip(
        tmp_path / "imgs.zip", {"__MACOSX/imgs/a.png": b"junk", "imgs/._a.png": b"junk", "imgs/a.png": b"image"}
    )
    assert (hub.unpack(archive, ["a.png"]) / "a.png").read_bytes() == b"image"


def test_two_different_files_for_a_name_are_refused(tmp_path):
    archive = write_zip(tmp_path / "imgs.zip", {"train/a.png": b"one", "test/a.png": b"two"})
    with pytest.raises(ValueError, match=r"imgs\.zip holds two files for a\.png: train/a\.png and test/a\.png"):
        hub.unpack(archive, ["a.png"])


def test_archives_cannot_write_outside_the_cache(tmp_path, cache):
    archive = write_zip(tmp_path / "imgs.zip", {"x/../../../../../evil.png": b"evil", "/evil.png": b"evil"})
    hub.unpack(archive, ["../../../evil.png", "../evil.png", "/evil.png"])
    assert not list(tmp_path.rglob("evil.png"))


def test_damaged_archives_are_refused_by_name(tmp_path, cache):
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04 not all of it")
    with pytest.raises(ValueError, match=r"cut\.zip is damaged"):
        hub.unpack(tmp_path / "cut.zip", ["a.png"])
    archive = write_zip(tmp_path / "bad.zip", {"a.png": b"image of a lung"})
    archive.write_bytes(archive.read_bytes().replace(b"image of a lung", b"image of a LUNG", 1))
    with pytest.raises(ValueError, match=r"bad\.zip is damaged: .*a\.png"):
        hub.unpack(archive, ["a.png"])
    assert not list(cache.rglob("a.png"))


def test_the_image_folder_is_the_first_that_has_any_of_the_images(tmp_path):
    write_image(tmp_path / "images" / "other.png")
    write_image(tmp_path / "b" / "a.png")
    assert hub.image_folder(tmp_path, ["images", "b"], ["a.png", "gone.png"]) == tmp_path / "b"
    assert hub.image_folder(tmp_path, ["c", "images", "b"], ["gone.png"]) == tmp_path / "images"
    assert hub.image_folder(tmp_path, ["c"], ["gone.png"]) == tmp_path / "c"


def test_equal_images_of_a_table_are_one_file_named_for_its_content(tmp_path, cache):
    first = write_image(tmp_path / "first.png", seed=1).read_bytes()
    second = write_image(tmp_path / "second.jpg", seed=2).read_bytes()
    images = ((first, "a.png"), (second, "b.jpg"), (first, "c.png"))
    rows = [{"image": {"bytes": content, "path": name}, "answer": "no"} for content, name in images]
    table = write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", rows)
    rows = [record for _, record in hub.read_parquet_rows([table])]
    paths = [Path(row["image"]) for row in rows]
    assert [path.read_bytes() for path in paths] == [first, second, first]
    assert paths[0] == paths[2]
    assert [path.name for path in paths[:2]] == [
        hashlib.sha256(first).hexdigest() + ".png",
        hashlib.sha256(second).hexdigest() + ".jpg",
    ]
    assert len([path for path in cache.rglob("*") if path.is_file()]) == 2


def test_tables_without_a_column_or_an_image_are_refused(tmp_path):
    image = write_image(tmp_path / "a.png").read_bytes()
    table = write_parquet(tmp_path / "a.parquet", [{"image": {"bytes": image, "path": None}, "label": 1}])
    with pytest.raises(ValueError, match=r"a\.parquet, row 0 has no `answer`"):
        read_table_rows([table])
    rows = [{"image": {"bytes": content, "path": "x"}} for content in (image, None)]
    table = write_parquet(tmp_path / "b.parquet", rows)
    with pytest.raises(ValueError, match=r"b\.parquet, row 1, `image`: expected the bytes of an image, got none"):
        list(hub.read_parquet_rows([table]))
    (tmp_path / "c.parquet").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"c\.parquet is not a readable parquet file"):
        list(hub.read_parquet_rows([tmp_path / "c.parquet"]))


def test_lists_of_images_of_a_table_become_lists_of_paths(tmp_path, cache):
    encoded = [write_image(tmp_path / f"{seed}.png", seed).read_bytes() for seed in range(2)]
    rows = [{"images": [{"bytes": content, "path": None} for content in encoded], "question": "<image> or <image>?"}]
    rows.append({"images": rows[0]["images"][:1], "question": "Which?"})
    table = write_parquet(tmp_path / "test.parquet", [row | {"answer": "left"} for row in rows])
    questions = read_table_rows([table])
    assert [[Path(path).read_bytes() for path in row["images"]] for row in questions] == [encoded, encoded[:1]]
    assert [row["question"] for row in questions] == ["<image> or <image>?", "Which?"]
    rows[1]["images"] = []
    write_parquet(table, [row | {"answer": "left"} for row in rows])
    with pytest.raises(ValueError, match=r"test\.parquet, row 1, `images` is an empty list"):
        read_table_rows([table])
