"""Folders of DICOM slices, and files of several frames."""

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from logramed.eval.volumes import VolumeError, open_volume

from .dicom_files import phantom, write_series, write_slice


def test_slices_are_sorted_by_their_places_not_their_names(tmp_path):
    values = phantom()
    volume = open_volume(write_series(tmp_path / "series", values))
    assert np.array_equal(volume.values, values)
    assert volume.spacing == (2.5, 0.8, 0.5)
    assert volume.positions == (0.0, 2.5, 5.0, 7.5, 10.0, 12.5)
    assert volume.orientation == "axial"
    assert volume.is_hounsfield


def test_rescaling_of_each_slice_counts(tmp_path):
    values = phantom()
    for number, stored in enumerate(values):
        tags = {"RescaleSlope": number + 0.5, "RescaleIntercept": -1024}
        write_slice(tmp_path / f"{number}.dcm", stored, (0, 0, number), **tags)
    expected = values * (np.arange(6)[:, None, None] + 0.5) - 1024
    assert np.array_equal(open_volume(str(tmp_path)).values, expected.astype(np.float32))


@pytest.mark.parametrize(
    ("directions", "plane", "flips"),
    [
        ([1, 0, 0, 0, 1, 0], "axial", ()),
        ([-1, 0, 0, 0, 1, 0], "axial", (0, 2)),  # the normal then points to the feet
        ([1, 0, 0, 0, -1, 0], "axial", (0, 1)),
        ([1, 0, 0, 0, 0, -1], "coronal", ()),
        ([0, 1, 0, 0, 0, -1], "sagittal", ()),
        ([0, -1, 0, 0, 0, 1], "sagittal", (1, 2)),
    ],
)
def test_slices_are_shown_as_radiologists_see_them_whatever_way_they_are_stored(tmp_path, directions, plane, flips):
    values = phantom()
    normal = np.cross(directions[:3], directions[3:])
    for number, stored in enumerate(values):
        tags = {"ImageOrientationPatient": directions}
        write_slice(tmp_path / f"{number}", stored, (normal * number * 3.0).tolist(), **tags)
    volume = open_volume(str(tmp_path))
    assert volume.orientation == plane
    assert volume.spacing == (3.0, 0.8, 0.5)
    assert np.array_equal(volume.values, np.flip(values, flips) if flips else values)


def test_transposed_slices_are_laid_out_as_others(tmp_path):
    values = phantom()
    for number, stored in enumerate(values):
        tags = {"ImageOrientationPatient": [0, 1, 0, 1, 0, 0], "PixelSpacing": [0.5, 0.8]}
        write_slice(tmp_path / f"{number}", stored.T.copy(), (0, 0, number * 2.0), **tags)
    volume = open_volume(str(tmp_path))
    assert volume.size == (6, 5, 4)
    assert volume.spacing == (2.0, 0.8, 0.5)
    assert np.array_equal(volume.values, values)


def test_slice_that_stands_twice_counts_once_and_another_at_its_place_is_refused(tmp_path):
    values = phantom()
    write_series(tmp_path, values)
    write_slice(tmp_path / "copy", values[2], (10.0, -20.0, 105.0))
    assert np.array_equal(open_volume(str(tmp_path)).values, values)
    write_slice(tmp_path / "copy", values[3], (10.0, -20.0, 105.0))
    with pytest.raises(VolumeError, match="several different slices have the same ImagePositionPatient"):
        open_volume(str(tmp_path))


def test_missing_slice_is_refused_and_uneven_distances_are_kept(tmp_path):
    for number, place in enumerate([0.0, 2.0, 4.2, 6.0, 8.9]):
        write_slice(tmp_path / f"{number}", phantom()[number], (0, 0, place))
    assert open_volume(str(tmp_path)).positions == pytest.approx((0, 2, 4.2, 6, 8.9))
    write_slice(tmp_path / "9", phantom()[5], (0, 0, 15.0))
    with pytest.raises(VolumeError, match=r"missing between slices 5 and 6 of 6 .*, 6\.10 mm apart where 2\.20"):
        open_volume(str(tmp_path))


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"series": generate_uid()}, "several series"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, "differ in ImageOrientationPatient"),
        ({"PixelSpacing": [0.8, 0.6]}, "differ in PixelSpacing"),
        ({"Modality": "MR"}, "differ in Modality"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "differ in PhotometricInterpretation"),
        ({"ImagePositionPatient": None}, "ImagePositionPatient, .* is missing"),
        ({"stored": np.zeros((5, 3), np.int16)}, "differ in Columns"),
        ({"stored": np.zeros((2, 5, 4), np.int16), "NumberOfFrames": 2}, "NumberOfFrames is above 1"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value,
)
def test_mixed_folders_are_refused(tmp_path, tags, words):
    write_series(tmp_path, phantom())
    tags = dict(tags)
    write_slice(tmp_path / "999", tags.pop("stored", phantom()[0]), (10.0, -20.0, 115.0), **tags)
    with pytest.raises(VolumeError, match=words):
        open_volume(str(tmp_path))


def test_other_files_are_passed_over_and_a_folder_without_dicom_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "README.txt").write_text("nothing")
    with pytest.raises(VolumeError, match="holds no DICOM file"):
        open_volume(str(tmp_path))
    write_series(tmp_path, phantom())
    assert open_volume(str(tmp_path)).num_slices == 6


def test_windows_that_differ_between_slices_give_way_to_one_range(tmp_path):
    for number, stored in enumerate(phantom()):
        tags = {"WindowCenter": 40, "WindowWidth": 400 + number}
        write_slice(tmp_path / f"{number}", stored, (0, 0, number), **tags)
    volume = open_volume(str(tmp_path))
    assert volume.mapping is None
    assert volume.find_mapping() == volume.robust_range
    write_series(tmp_path / "same", phantom(), WindowCenter=40, WindowWidth=400)
    assert open_volume(str(tmp_path / "same")).find_mapping().width == 400


def enhanced(values, places):
    """Functional groups as enhanced CT has them: rescaling shared, places and windows of each frame."""
    measures, plane, shift = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing = [0.8, 0.5]
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shift.RescaleSlope, shift.RescaleIntercept = 2, -1000
    shared = pydicom.Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    shared.PixelValueTransformationSequence = [shift]
    frames = []
    for place in places:
        position, frame = pydicom.Dataset(), pydicom.Dataset()
        position.ImagePositionPatient = [0, 0, place]
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    return {
        "SharedFunctionalGroupsSequence": [shared],
        "PerFrameFunctionalGroupsSequence": frames,
        "NumberOfFrames": len(values),
        "ImageOrientationPatient": None,
        "ImagePositionPatient": None,
        "PixelSpacing": None,
    }


def test_frames_of_one_file_are_sorted_by_their_functional_groups(tmp_path):
    values = phantom()
    path = write_slice(tmp_path / "a.dcm", values, **enhanced(values, [0, 4, 8, 2, 6, 10]))
    volume = open_volume(path)
    assert np.array_equal(volume.values, values[[0, 3, 1, 4, 2, 5]] * 2.0 - 1000)
    assert volume.spacing == (2.0, 0.8, 0.5)


def test_frames_without_places_come_as_they_are(tmp_path):
    values = phantom()
    path = write_slice(tmp_path / "a.dcm", values, NumberOfFrames=6, ImagePositionPatient=None)
    volume = open_volume(path)
    assert np.array_equal(volume.values, values)
    assert (volume.positions, volume.spacing, volume.orientation) == (None, None, "frames")


def test_single_file_of_a_folder_is_an_image(tmp_path):
    write_slice(tmp_path / "a", phantom()[0])
    volume = open_volume(str(tmp_path))
    assert (volume.num_slices, volume.path) == (1, str(tmp_path))
