"""Nothing that a tag holds is said, logged, kept or shown."""

import logging
import pickle
import traceback
import warnings

import pydicom
import pytest

from logramed.eval.volumes import VolumeError, errors, expand_volume, hash_image, open_image_reference, open_volume
from logramed.eval.volumes.dicom_header import KEYWORDS

from .dicom_files import PLANTED, SERIES, TEXT_TAGS, phantom, read, write_nifti, write_series, write_slice


SECRETS = [*TEXT_TAGS.values(), SERIES, "Zzyzx", "zzyzx", "ZZYZX", "TOP-SECRET"]
# Each of these once holds a planted name in place of what belongs there.
FAULTY = (
    "PhotometricInterpretation",
    "Modality",
    "VOILUTFunction",
    "NumberOfFrames",
    "WindowCenter",
    "RescaleSlope",
    "PixelSpacing",
    "ImagePositionPatient",
    "SeriesInstanceUID",
    "SOPClassUID",
)


def assert_clean(text):
    assert not [secret for secret in SECRETS if secret in text], text


def use(path):
    """Everything that is done with a path, and all that it says."""
    said = []
    try:
        for reference, text in expand_volume(str(path), 4):
            image = open_image_reference(reference)
            said += [reference, text, repr(image.info), image.tobytes().decode("latin-1")]
        said.append(repr(open_volume(str(path))))
        said.append(hash_image(str(path)).hex())
    except VolumeError as error:
        said += [str(error), repr(error), "".join(traceback.format_exception(error)), repr(pickle.dumps(error))]
        seen = error
        while seen is not None:
            said.append(repr(seen))
            seen = seen.__cause__ or seen.__context__
    return "\n".join(said)


@pytest.fixture
def heard(capfd, caplog):
    """All that was printed, warned of and logged, by Python and by the decoders."""
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lambda: "\n".join([*capfd.readouterr(), caplog.text, *(str(one.message) for one in caught)])


def test_no_name_leaves_files_that_load(tmp_path, heard):
    paths = [
        write_slice(tmp_path / "a.dcm", phantom()[0]),
        write_series(tmp_path / "series", phantom()),
        write_nifti(tmp_path / "a.nii.gz", phantom()),
    ]
    assert PLANTED in (tmp_path / "a.dcm").read_bytes().decode("latin-1")
    for path in paths:
        assert_clean(use(path))
    assert_clean(heard())


@pytest.mark.parametrize("keyword", FAULTY)
def test_no_name_leaves_files_that_are_refused(tmp_path, heard, keyword):
    path = tmp_path / "a.dcm"
    tag = pydicom.datadict.tag_for_keyword(keyword)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = read(write_slice(path, phantom()[0]))
        dataset.pop(tag, None)
        raw = pydicom.dataelem.RawDataElement(
            pydicom.tag.Tag(tag), pydicom.datadict.dictionary_VR(tag), 10, b"TOP-SECRET", 0, False, True
        )
        dataset._dict[pydicom.tag.Tag(tag)] = raw
        dataset.save_as(path)
    assert b"TOP-SECRET" in path.read_bytes()
    heard()
    assert_clean(use(path))
    assert_clean(heard())


def test_no_name_leaves_mixed_and_damaged_series(tmp_path, heard):
    folder = write_series(tmp_path / "series", phantom())
    write_slice(tmp_path / "series" / "other", phantom()[0], (10.0, -20.0, 100.0), series="1.2.3.4711")
    said = use(folder)
    assert "several series" in said
    assert "4711" not in said
    content = (tmp_path / "series" / "000").read_bytes()
    for length in range(140, len(content), 37):
        path = tmp_path / "cut"
        path.write_bytes(content[:length])
        assert_clean(use(path))
    assert_clean(heard())


def test_only_tags_of_the_image_are_kept(tmp_path):
    volume = open_volume(write_slice(tmp_path / "a.dcm", phantom()[0], OperatorsName=PLANTED))
    header = next(cell.cell_contents for cell in volume.read.__closure__)[0].header
    assert_clean(str(header).replace(SERIES, ""))
    assert {element.keyword for element in header} <= {*KEYWORDS, "SpecificCharacterSet"}


def test_libraries_may_speak_again_afterwards():
    logger = logging.getLogger("pydicom")
    states = []

    def fail(error):
        with errors.reading("a"):
            states.append(logger.disabled)
            raise error

    with pytest.raises(VolumeError, match=r"^a: it cannot be read \(RuntimeError\)$"):
        fail(RuntimeError("TOP-SECRET"))
    with pytest.raises(VolumeError, match=r"^a: it cannot be read \(No such file\)$"):
        fail(OSError(2, "No such file"))
    assert (states, logger.disabled) == ([True, True], False)
