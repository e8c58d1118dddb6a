"""pydicom's own test files: each loads as another reader has it (SimpleITK, by GDCM), or is refused."""

import numpy as np
import pydicom
import pytest

from logramed.eval.volumes import VolumeError, open_image_reference, open_volume
from tests.benchmarks.dicom_table import FILES, build_table, list_files, read_table


simpleitk = pytest.importorskip("SimpleITK")
simpleitk.ProcessObject.SetGlobalWarningDisplay(False)
# Rounding in the transformation of colours and in the cosine transform of lossy JPEG, in grey levels.
LOSSY = 3


def opened(path):
    try:
        return open_volume(str(path)).values
    except VolumeError:
        return None


# GDCM mixes up the bytes of deep colours in RLE; they show the picture of the file with 8 bits, and then its negative.
DEEP_COLOURS = "SC_rgb_rle_[13]*.dcm"
LOADED = {path: values for path in list_files() if (values := opened(path)) is not None}


def expected_values(path):
    """The values of all frames by SimpleITK: of the modality, or colours with 8 bits."""
    values = simpleitk.GetArrayFromImage(simpleitk.ReadImage(str(path))).astype(np.float64)
    header = pydicom.dcmread(path, stop_before_pixels=True)
    if header.PhotometricInterpretation == "MONOCHROME1":  # which it inverts
        stored = (values - header.RescaleIntercept) / header.RescaleSlope
        values = (2**header.BitsStored - 1 - stored) * header.RescaleSlope + header.RescaleIntercept
    return values, header.file_meta.TransferSyntaxUID.name


@pytest.mark.parametrize(
    "path",
    [path for path in LOADED if not path.match(DEEP_COLOURS)],
    ids=lambda path: path.relative_to(FILES).as_posix(),
)
@pytest.mark.filterwarnings("ignore:Expected explicit VR")
def test_values_equal_another_readers(path):
    expected, syntax = expected_values(path)
    lossy = "JPEG Baseline" in syntax or "JPEG Extended" in syntax or path.name == "examples_palette.dcm"
    assert LOADED[path].shape == expected.shape
    assert np.abs(LOADED[path] - expected).max() <= (LOSSY if lossy else 1e-3)


def test_deep_colours_equal_those_with_8_bits():
    plain = LOADED[FILES / "SC_rgb_rle.dcm"]
    deep = [path for path in LOADED if path.match(DEEP_COLOURS)]
    assert len(deep) == 4
    for path in deep:
        frames = LOADED[path]
        assert np.array_equal(frames, np.concatenate([plain, 255 - plain])[: len(frames)])


def test_most_files_with_pixels_load():
    assert len(LOADED) == 79


def test_what_needs_a_decoder_under_the_gpl_says_so():
    with pytest.raises(VolumeError, match=r"jpeg_gdcm.dcm: its transfer syntax .*'logramed\[volumes-gpl\]'$"):
        open_image_reference(str(FILES / "SC_rgb_jpeg_gdcm.dcm"))


def test_table_of_the_readme_is_that_of_the_files():
    assert read_table() == build_table()


def test_windowed_image_equals_pydicoms():
    path = FILES / "MR_small.dcm"
    dataset = pydicom.dcmread(path)
    windowed = pydicom.pixels.apply_windowing(dataset.pixel_array, dataset)
    low, high = -(2**15), 2**15 - 1  # what 16 signed bits hold
    assert np.array_equal(open_image_reference(str(path)), np.round((windowed - low) / (high - low) * 255))


def test_series_of_pydicom_is_laid_out_in_space():
    volume = open_volume(str(FILES / "dicomdirtests" / "98892001" / "CT5N"))
    reader = simpleitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(volume.path))
    image = reader.Execute()
    assert np.array_equal(volume.values, simpleitk.GetArrayFromImage(image))
    assert volume.spacing == pytest.approx(image.GetSpacing()[::-1], abs=1e-3)
