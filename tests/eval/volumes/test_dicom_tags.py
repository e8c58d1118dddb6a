"""What tags say of pixels, and what they cannot be right about."""

import io
import sys
import zlib

import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit, RTPlanStorage

from logramed.eval.volumes import VolumeError, errors, open_image_reference, open_volume
from logramed.eval.volumes.windows import LookupTable, Range, Window

from .dicom_files import phantom, read, write_slice


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"Rows": None}, "its Rows is missing"),
        ({"Rows": 0}, "its Rows is not a whole number of 1 or more"),
        ({"Rows": 6}, "its PixelData is shorter than Rows, Columns and NumberOfFrames say"),
        ({"NumberOfFrames": 2}, "its PixelData is shorter"),
        ({"NumberOfFrames": 0}, "its NumberOfFrames is not a whole number of 1 or more"),
        ({"NumberOfFrames": 9000}, "are too large"),
        ({"Rows": 60000, "Columns": 60000}, "its Rows, Columns and NumberOfFrames are too large"),
        ({"BitsAllocated": None}, "its BitsAllocated is missing"),
        ({"BitsAllocated": 12}, "its BitsAllocated is not 8, 16 or 32"),
        ({"BitsStored": 17}, "its BitsStored is more than its BitsAllocated"),
        ({"BitsStored": 12}, "its HighBit and BitsStored contradict"),
        ({"PixelRepresentation": 2}, "its PixelRepresentation is not 0 or 1"),
        ({"PixelRepresentation": None}, "its PixelRepresentation is missing"),
        ({"SamplesPerPixel": 3}, "its SamplesPerPixel and PhotometricInterpretation contradict"),
        ({"PhotometricInterpretation": "RGB"}, "its SamplesPerPixel and PhotometricInterpretation contradict"),
        ({"PhotometricInterpretation": "HSV"}, "its PhotometricInterpretation is not one of MONOCHROME1, "),
        ({"PhotometricInterpretation": None}, "its PhotometricInterpretation is not one of"),
        ({"RescaleSlope": 1}, "its RescaleIntercept is missing"),
        ({"RescaleIntercept": 1}, "its RescaleSlope is missing"),
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, "its RescaleSlope is 0"),
        ({"WindowCenter": 40}, "its WindowCenter and WindowWidth contradict"),
        ({"WindowCenter": [40, 50], "WindowWidth": 400}, "its WindowCenter and WindowWidth contradict"),
        ({"WindowCenter": 40, "WindowWidth": 0}, "its WindowWidth is too small"),
        ({"WindowCenter": 40, "WindowWidth": 0.5}, "its WindowWidth is too small"),
        ({"WindowCenter": 40, "WindowWidth": 1, "VOILUTFunction": "LOG"}, "its VOILUTFunction is not one of LINEAR, "),
        (
            {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]},
            "its ImageOrientationPatient is not two perpendicular directions",
        ),
        ({"ImageOrientationPatient": [1, 0, 0]}, "its ImageOrientationPatient is not 6 finite"),
        ({"ImagePositionPatient": [1, 2]}, "its ImagePositionPatient is not 3 finite"),
        ({"PixelSpacing": [0, 1]}, "its PixelSpacing is not above 0"),
        ({"PixelData": None}, "its PixelData is shorter"),
        ({"SOPClassUID": RTPlanStorage, "Rows": None, "Columns": None}, "of the kind RT Plan Storage .* not an image"),
    ],
    ids=str,
)
def test_wrong_missing_and_contradictory_tags_are_refused_by_name(tmp_path, tags, words):
    path = write_slice(tmp_path / "a.dcm", phantom()[0], **tags)
    with pytest.raises(VolumeError, match=f"^{path}: .*{words}"):
        open_image_reference(path)


def test_text_in_place_of_a_number_is_refused_by_its_tag(tmp_path):
    path = write_slice(tmp_path / "a.dcm", phantom()[0], RescaleIntercept="1", RescaleSlope="1")
    content = (tmp_path / "a.dcm").read_bytes()
    mark = b"\x28\x00\x53\x10DS\x02\x00"
    (tmp_path / "a.dcm").write_bytes(content.replace(mark + b"1 ", mark + b"xy"))
    with pytest.raises(VolumeError, match=r"its RescaleSlope is not 1 finite number") as caught:
        open_volume(path)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_first_of_several_windows_and_its_function(tmp_path):
    tags = {"WindowCenter": [40, 50], "WindowWidth": [400, 100], "VOILUTFunction": "SIGMOID"}
    assert open_volume(write_slice(tmp_path / "a", phantom()[0], **tags)).mapping == Window(40, 400, "SIGMOID")


def table(descriptor, entries, kind="US"):
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "SS" if descriptor[1] < 0 else "US", descriptor)
    item.add_new("LUTData", kind, entries)
    return [item]


def test_lookup_tables_of_modality_and_view(tmp_path):
    stored = np.array([[-2, -1, 0, 1, 2]], np.int16)
    tags = {
        "ModalityLUTSequence": table([3, -1, 12], [100, 200, 300]),
        "VOILUTSequence": table([2, 100, 8], bytes([0, 0, 51, 0]), "OW"),
        "WindowCenter": 1,
        "WindowWidth": 2,
    }
    path = write_slice(tmp_path / "a", stored, **tags)
    volume = open_volume(path)
    assert volume.values.tolist() == [[[100, 100, 200, 300, 300]]]
    assert volume.mapping == LookupTable(100, (0, 51), 8)
    assert np.asarray(open_image_reference(path)).tolist() == [[0, 0, 51, 51, 51]]


def test_table_of_packed_bytes_and_one_that_does_not_fit(tmp_path):
    packed = {"VOILUTSequence": table([4, 0, 8], bytes([1, 2, 3, 4]), "OW")}
    assert open_volume(write_slice(tmp_path / "a", phantom()[0], **packed)).mapping.entries == (1, 2, 3, 4)
    short = {"VOILUTSequence": table([9, 0, 16], bytes([1, 2, 3, 4]), "OW")}
    with pytest.raises(VolumeError, match="the LUTDescriptor of its VOILUTSequence does not fit its LUTData"):
        open_volume(write_slice(tmp_path / "b", phantom()[0], **short))


def test_table_beside_a_slope_is_refused(tmp_path):
    tags = {"ModalityLUTSequence": table([3, 0, 12], [1, 2, 3]), "RescaleSlope": 1, "RescaleIntercept": 0}
    with pytest.raises(VolumeError, match="ModalityLUTSequence and RescaleSlope contradict"):
        open_image_reference(write_slice(tmp_path / "a", phantom()[0], **tags))


def test_grey_levels_of_8_bits_without_window_stay_what_they_are(tmp_path):
    stored = np.arange(20, dtype=np.uint8).reshape(4, 5) * 3
    path = write_slice(tmp_path / "a", stored, BitsAllocated=8, BitsStored=8, HighBit=7)
    assert open_volume(path).mapping == Range(0, 255)
    assert np.array_equal(open_image_reference(path), stored)


def test_frame_that_claims_another_size_than_the_tags_is_not_decoded(tmp_path):
    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (40, 30)).save(file, "JPEG")
    path = write_slice(tmp_path / "a.dcm", np.zeros((4, 5), np.uint8), BitsAllocated=8, BitsStored=8, HighBit=7)
    for rows, fits in ((30, True), (31, False)):
        dataset = read(path)
        dataset.Rows, dataset.Columns = rows, 40
        dataset.PixelData = pydicom.encaps.encapsulate([file.getvalue()])
        dataset["PixelData"].VR = "OB"
        dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        dataset.save_as(tmp_path / f"{rows}.dcm", enforce_file_format=True)
        if fits:
            assert open_image_reference(str(tmp_path / f"{rows}.dcm")).size == (40, 30)
        else:
            with pytest.raises(VolumeError, match="PixelData does not match its Rows and Columns"):
                open_image_reference(str(tmp_path / f"{rows}.dcm"))


def test_deflated_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "a.dcm"
    dataset = read(write_slice(path, phantom()[0]))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    assert open_image_reference(str(path)).size == (4, 5)
    pack = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    start = 132 + 12 + read(path).file_meta.FileMetaInformationGroupLength
    packed = pack.compress(bytes(300 << 20)) + pack.flush()
    path.write_bytes(path.read_bytes()[:start] + packed)
    with pytest.raises(VolumeError, match="it unpacks to more than 256 MiB"):
        open_image_reference(str(path))


def test_file_without_its_mark_is_no_dicom(tmp_path):
    path = tmp_path / "a.dcm"
    write_slice(path, phantom()[0])
    path.write_bytes(path.read_bytes()[132:])
    with pytest.raises(VolumeError, match="not a DICOM or NIfTI file"):
        open_image_reference(str(path))


@pytest.mark.parametrize("name", ["pydicom", "nibabel"])
def test_missing_package_names_the_extra(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"need {name}: pip install 'logramed\[volumes\]'"):
        errors.import_optional(name)
