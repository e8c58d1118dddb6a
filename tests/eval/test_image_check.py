import os
import threading
from pathlib import Path

import pytest
import torch
from datasets import config as datasets_config
from huggingface_hub.utils import WeakFileLock
from PIL import Image

from logramed.eval import image_check
from logramed.eval.image_check import find_unreadable, image_key
from logramed.trainer.data.rows import RowError
from logramed.trainer.data.sources import load_training_rows
from tests.trainer.data.test_sources import instruct_row, write_json


BROKEN = (3, 10, 21)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets_config, "HF_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(image_check, "CHUNK_SIZE", 4)
    return tmp_path / "cache" / image_check.MEMORY


@pytest.fixture
def images(tmp_path):
    """Paths of 22 images of which those of `BROKEN` are damaged."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    paths = [tmp_path / "data" / "images" / f"{number}.png" for number in range(22)]
    for number, path in enumerate(paths):
        Image.new("L", (9, 7), number).save(path)
        if number in BROKEN:
            path.write_bytes(path.read_bytes()[:50])
    return [str(path) for path in paths]


def spoil(path):
    """Other content of the same size and time of change: only an image that is not opened passes."""
    status = os.stat(path)
    Path(path).write_bytes(b"x" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_damaged_images_are_found_and_good_ones_are_not_opened_again(cache, images):
    expected = {image_key(images[number]) for number in BROKEN}
    first = find_unreadable(images)
    assert first.keys() == expected
    assert all("OSError" in problem or "UnidentifiedImage" in problem for problem in first.values())
    assert set(cache.read_text().split()) == {image_key(path) for path in images} - expected
    for number in (0, 1, 2, 4, 5, 6):
        spoil(images[number])
    assert find_unreadable(images).keys() == expected
    os.utime(images[0])  # another time of change is another image
    assert find_unreadable(images).keys() == expected | {image_key(images[0])}


def test_a_mended_image_is_good_and_another_check_looks_again(cache, images, monkeypatch):
    find_unreadable(images)
    for number in BROKEN:
        Image.new("L", (9, 7)).save(images[number])
    assert find_unreadable(images) == {}
    spoil(images[0])
    monkeypatch.setattr(image_check, "CHECK", "2")
    assert find_unreadable(images).keys() == {image_key(images[0])}


def test_a_memory_with_half_a_line_is_read_on(cache, images):
    find_unreadable(images)
    text = cache.read_text()
    cache.write_text(text[: len(text) // 2])
    assert find_unreadable(images).keys() == {image_key(images[number]) for number in BROKEN}


def test_a_process_that_waited_finds_what_the_other_one_checked(cache, images):
    cache.parent.mkdir(parents=True)
    found = []
    with WeakFileLock(cache.with_suffix(".lock")):
        waiting = threading.Thread(target=lambda: found.append(find_unreadable(images)))
        waiting.start()
        waiting.join(timeout=1)
        assert waiting.is_alive()
        cache.write_text("".join(image_key(path) + "\n" for path in images))  # the damaged ones, too
    waiting.join()
    assert found == [{}]


def test_embedded_images_are_known_by_their_bytes(cache, images):
    embedded = [{"bytes": Path(path).read_bytes(), "path": None} for path in images]
    expected = {image_key(embedded[number]) for number in BROKEN}
    assert find_unreadable(embedded).keys() == expected
    assert len(cache.read_text().split()) == 19
    assert find_unreadable([{**image, "path": "elsewhere.png"} for image in embedded]).keys() == expected


def test_a_cache_that_cannot_be_written_to_stops_nothing(cache, images):
    Path(datasets_config.HF_CACHE_HOME).write_text("no folder")
    assert find_unreadable(images).keys() == {image_key(images[number]) for number in BROKEN}


def test_the_check_draws_no_random_number(cache, images):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    find_unreadable(images)
    assert torch.equal(torch.get_rng_state(), before)


def test_rows_with_damaged_images_are_named_or_left_out(cache, images):
    rows = [instruct_row(f"row{number}", image=f"{number}.png") for number in range(22)]
    path = write_json(Path(images[0]).parents[1] / "train.json", rows)
    with pytest.raises(RowError, match=r"row 3 \(id 'row3'\), field `image`: unreadable image .*3\.png"):
        load_training_rows(path)
    for _ in range(2):
        loaded = load_training_rows(path, on_bad_row="skip")
        assert [error.row_id for error in loaded.skipped] == [f"row{number}" for number in BROKEN]
        assert loaded.dataset["id"][:] == [f"row{number}" for number in range(22) if number not in BROKEN]
    assert len(load_training_rows(path, check_images=False)) == 22
