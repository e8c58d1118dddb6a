"""Names of images in volumes."""

import os

import numpy as np
import pytest
from PIL import Image

from logramed.eval.volumes import (
    VolumeError,
    VolumeOptions,
    expand_volume,
    hash_image,
    image_status,
    is_volume,
    open_image_reference,
    references,
)
from logramed.eval.volumes.references import Reference, parse_reference

from .dicom_files import phantom, write_nifti, write_series, write_slice


@pytest.fixture
def folder(tmp_path):
    return write_series(tmp_path / "series", phantom())


@pytest.mark.parametrize("name", ["a.nii.gz", "a#b", "a#slices=1&window=auto#c", "a\nb é%20?&=", "#", " "])
@pytest.mark.parametrize("selection", [(1, 1), (4, 6)])
@pytest.mark.parametrize("window", ["auto", "soft_tissue", "-600,1500", "40.5,80"])
def test_paths_of_any_characters_come_back(name, selection, window):
    reference = Reference(name, selection, window)
    assert parse_reference(str(reference)) == reference


@pytest.mark.parametrize(
    "text", ["a.png", "a#b.png", "a#slices=4", "a#slices=x&window=auto", "#slices=1&window=auto", "a#slices=1&window="]
)
def test_other_texts_are_paths(text):
    assert parse_reference(text) == Reference(text)


def test_file_that_is_called_like_a_reference_is_that_file(tmp_path):
    path = write_slice(tmp_path / "a#slices=1&window=lung", phantom()[0])
    assert parse_reference(path) == Reference(path)
    assert expand_volume(path, 4) == [(path, "")]
    assert open_image_reference(f"{path}#slices=1&window=bone").size == (4, 5)


def test_volume_becomes_references_with_texts_that_open_as_images(folder):
    expanded = expand_volume(folder, 3)
    assert expanded == [
        (f"{folder}#slices=1&window=auto", "Slice 1 of 3, 0.0 mm"),
        (f"{folder}#slices=3&window=auto", "Slice 2 of 3, 5.0 mm"),
        (f"{folder}#slices=5&window=auto", "Slice 3 of 3, 10.0 mm"),
    ]
    for reference, _ in expanded:
        image = open_image_reference(reference)
        assert (image.mode, image.size) == ("L", (4, 5))
        assert expand_volume(reference, 3) == [(reference, "")]


def test_content_has_each_image_before_its_text(folder):
    images, content = VolumeOptions("slabs", "0,900", 256, lambda: 128).show(folder)
    assert images == [f"{folder}#slices=1-3&window=0,900", f"{folder}#slices=4-6&window=0,900"]
    assert content == [
        {"type": "image"},
        {"type": "text", "text": "Slice 1 of 2, 2.5 mm"},
        {"type": "image"},
        {"type": "text", "text": "Slice 2 of 2, 10.0 mm\n"},
    ]


def test_image_of_one_slice_stays_its_path_unless_a_window_is_named(tmp_path):
    path = write_slice(tmp_path / "scan", phantom()[0])
    assert VolumeOptions().show(path) == ([path], [{"type": "image"}])
    assert expand_volume(path, 8, window="bone") == [(f"{path}#slices=1&window=bone", "")]


def test_images_agree_with_their_window_by_hand(tmp_path):
    path = write_slice(tmp_path / "a", np.array([[-2000, 0, 20, 60, 80]], np.int16))
    assert np.asarray(open_image_reference(f"{path}#slices=1&window=brain")).tolist() == [[0, 0, 65, 194, 255]]


def test_inverted_slice_is_the_negative(tmp_path):
    plain = write_slice(tmp_path / "a", phantom()[0], WindowCenter=-900, WindowWidth=100)
    inverted = write_slice(
        tmp_path / "b", phantom()[0], WindowCenter=-900, WindowWidth=100, PhotometricInterpretation="MONOCHROME1"
    )
    assert np.array_equal(255 - np.asarray(open_image_reference(plain)), open_image_reference(inverted))


def test_window_in_hounsfield_units_is_for_ct(tmp_path):
    path = write_slice(tmp_path / "a", phantom()[0], Modality="MR")
    words = "lung is in Hounsfield units, but this is not CT"
    with pytest.raises(VolumeError, match=words):
        expand_volume(path, 4, window="lung")
    with pytest.raises(VolumeError, match=words):
        open_image_reference(f"{path}#slices=1&window=lung")
    assert expand_volume(write_nifti(tmp_path / "a.nii", phantom()), 1, window="lung")


def test_budget():
    counts = {
        tokens: VolumeOptions(tokens_per_image=lambda tokens=tokens: tokens).count for tokens in (1, 32, 100, 256, 576)
    }
    assert counts == {1: 256, 32: 8, 100: 2, 256: 1, 576: 1}


@pytest.mark.parametrize(
    ("slices", "words"),
    [("99", "names slice 99, but there are only 6"), ("1,2,3,4", "room for 3"), ("all", "must be uniform")],
)
def test_selections_that_a_volume_has_not_are_refused_with_its_path(folder, slices, words):
    with pytest.raises(VolumeError, match=f"^{folder}: .*{words}"):
        expand_volume(folder, 3, slices)


def test_missing_and_other_files_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(VolumeError, match="it is not a DICOM or NIfTI file"):
        expand_volume(str(tmp_path / "a.txt"), 3)
    for text in (f"{tmp_path}/none", f"{tmp_path}/none#slices=1&window=auto", "a\0b#slices=1&window=auto"):
        with pytest.raises(VolumeError, match="no such file"):
            open_image_reference(text)
    with pytest.raises(VolumeError, match="`window` must be one of"):
        open_image_reference(f"{write_slice(tmp_path / 'a', phantom()[0])}#slices=1&window=liver")


def test_several_slices_cannot_be_opened_as_one(folder):
    with pytest.raises(VolumeError, match=r"6 slices where one image is needed; .* as in #slices=1&window=auto"):
        open_image_reference(folder)


def test_what_is_a_volume_is_told_by_content(tmp_path, folder):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    os.rename(write_slice(tmp_path / "b", phantom()[0]), tmp_path / "b.png")
    assert [is_volume(str(tmp_path / name)) for name in ("a.png", "b.png", "none", "series")] == [
        False,
        True,
        False,
        True,
    ]
    assert is_volume("gone.nii#slices=1&window=auto")
    assert not is_volume("https://example.org/a.png")


def test_volume_opened_last_is_kept_until_its_files_change(folder, monkeypatch, tmp_path):
    opened = []
    real = references.open_volume
    monkeypatch.setattr(references, "open_volume", lambda path: opened.append(path) or real(path))
    for reference, _ in expand_volume(folder, 3):
        open_image_reference(reference)
    assert opened == [folder]
    other = write_nifti(tmp_path / "a.nii", phantom())
    open_image_reference(f"{other}#slices=1&window=auto")
    before = np.asarray(open_image_reference(f"{folder}#slices=1&window=0,3000"))
    assert opened == [folder, other, folder]
    write_slice(tmp_path / "series" / "000", phantom()[0] + 500, (10.0, -20.0, 100.0))
    after = np.asarray(open_image_reference(f"{folder}#slices=1&window=0,3000"))
    assert len(opened) == 4
    assert not np.array_equal(before, after)


def test_hash_tells_slices_and_windows_apart_and_not_where_files_lie(tmp_path, folder):
    ends = ["", *(f"#slices={part}" for part in ("1&window=auto", "1-2&window=auto", "1&window=lung"))]
    hashes = [hash_image(folder + end) for end in ends]
    assert len(set(hashes)) == 4
    os.rename(folder, tmp_path / "moved")
    assert [hash_image(str(tmp_path / "moved") + end) for end in ends] == hashes
    write_slice(tmp_path / "moved" / "000", phantom()[1], (10.0, -20.0, 100.0))
    assert not set(hashes) & {hash_image(str(tmp_path / "moved") + end) for end in ends}


def test_status_is_that_of_the_files(tmp_path):
    path = write_slice(tmp_path / "a", phantom()[0])
    assert image_status(path) == image_status(f"{path}#slices=1&window=auto")
    assert image_status(path)[0] == os.path.getsize(path)
