"""NIfTI volumes in all ways of storing them."""

import gzip
import itertools
import struct

import nibabel
import numpy as np
import pytest

from logramed.eval.volumes import VolumeError, expand_volume, open_image_reference, open_volume

from .dicom_files import phantom, write_nifti, write_series


CODES = ["".join(code) for axes in itertools.permutations(("RL", "AP", "SI")) for code in itertools.product(*axes)]


@pytest.fixture
def ras():
    """Voxels `(x, y, z)` to the right, front and head."""
    return np.random.default_rng(0).integers(-1000, 2000, (4, 5, 6)).astype(np.int16)


@pytest.mark.parametrize("codes", CODES)
def test_same_phantom_gives_equal_slices_whatever_way_it_is_stored(tmp_path, ras, codes):
    volume = open_volume(write_nifti(tmp_path / "a.nii.gz", ras, codes))
    # From the feet up; the patient's right is at the left of the image, the front is above.
    assert np.array_equal(volume.values, ras.transpose(2, 1, 0)[:, ::-1, ::-1])
    assert volume.spacing == pytest.approx((2.5, 0.8, 0.5))
    assert volume.positions == pytest.approx((0, 2.5, 5, 7.5, 10, 12.5))
    assert (volume.size, volume.orientation) == ((6, 5, 4), "axial")


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SRA"])
@pytest.mark.parametrize(
    ("spacing", "plane", "axes", "flips"),
    [
        ((1, 4, 1), "coronal", (1, 2, 0), (0, 1, 2)),  # front to back, head above, right at the left
        ((4, 1, 1), "sagittal", (0, 2, 1), (1, 2)),  # left to right, head above, front at the left
    ],
)
def test_other_planes(tmp_path, ras, codes, spacing, plane, axes, flips):
    volume = open_volume(write_nifti(tmp_path / "a.nii", ras, codes, spacing))
    assert volume.orientation == plane
    assert np.array_equal(volume.values, np.flip(ras.transpose(axes), flips))


def test_nifti_and_dicom_of_one_phantom_give_equal_images_and_texts(tmp_path):
    values = phantom()
    folder = write_series(tmp_path / "series", values)
    file = write_nifti(tmp_path / "a.nii", values[:, ::-1, ::-1].transpose(2, 1, 0))
    shown = [expand_volume(path, 3, "slabs", "0,900") for path in (folder, file)]
    assert [text for _, text in shown[0]] == [text for _, text in shown[1]]
    for (dicom, _), (nifti, _) in zip(*shown, strict=True):
        assert np.array_equal(open_image_reference(dicom), open_image_reference(nifti))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_types_and_scaling_as_nibabel_reads_them(tmp_path, ras, dtype):
    path = write_nifti(tmp_path / "a.nii.gz", np.abs(ras % 200).astype(dtype), slope=(0.5, -3))
    expected = nibabel.as_closest_canonical(nibabel.load(path)).get_fdata().transpose(2, 1, 0)[:, ::-1, ::-1]
    assert np.allclose(open_volume(path).values, expected)
    assert open_volume(path).values.dtype == np.float32


def test_units_are_turned_into_millimetres(tmp_path, ras):
    image = nibabel.Nifti1Image(ras, np.diag([0.001, 0.001, 0.003, 1]))
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "a.nii")
    assert open_volume(str(tmp_path / "a.nii")).spacing == pytest.approx((3, 1, 1))


def test_nifti_2_and_names_without_ending(tmp_path, ras):
    nibabel.save(nibabel.Nifti2Image(ras, np.diag([1, 1, 2, 1])), tmp_path / "a.nii")
    (tmp_path / "a.nii").rename(tmp_path / "noending")
    assert np.array_equal(open_volume(str(tmp_path / "noending")).values, ras.transpose(2, 1, 0)[:, ::-1, ::-1])


def test_voxels_that_are_not_finite_are_black(tmp_path):
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4) + 5
    values[0, 0, 0], values[1, 1, 1] = np.nan, np.inf
    volume = open_volume(write_nifti(tmp_path / "a.nii", values))
    assert sorted(volume.values.ravel())[:3] == [6, 6, 6]
    assert volume.values.max() == 28
    with pytest.raises(VolumeError, match="it has no finite voxels"):
        open_volume(write_nifti(tmp_path / "b.nii", values * np.nan)).values  # noqa: B018


def test_volume_after_volume_is_refused_and_a_single_one_is_taken(tmp_path, ras):
    for length in (1, 3):
        values = np.repeat(ras[..., None], length, axis=3)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / f"{length}.nii.gz")
    assert open_volume(str(tmp_path / "1.nii.gz")).num_slices == 6
    with pytest.raises(VolumeError, match="its dim is not three-dimensional"):
        open_volume(str(tmp_path / "3.nii.gz"))


def change(path, place, form, *values):
    """Overwrite header fields of an unpacked NIfTI-1 file."""
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, place, *values)
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize(
    ("place", "form", "values", "words"),
    [
        (42, "<3h", (30000, 30000, 30000), "its dim needs more than 512 MiB"),
        (42, "<h", (-4,), "its dim has a length below 1"),
        (42, "<h", (40,), "fewer voxels than its dim says"),
        (40, "<h", (2,), "not three-dimensional"),
        (70, "<h", (128,), "its datatype"),
        (70, "<h", (32,), "its datatype"),
        (70, "<h", (9999,), "cannot be read"),
        (108, "<f", (1e30,), "vox_offset"),
        (252, "<2h", (0, 0), "sform_code and qform_code are 0"),
        (280, "<4f", (0, 0, 0, 0), "not an invertible affine"),
        (280, "<f", (float("nan"),), "not an invertible affine"),
    ],
)
def test_impossible_headers_are_refused(tmp_path, ras, place, form, values, words):
    write_nifti(tmp_path / "a.nii", ras)
    path = change(tmp_path / "a.nii", place, form, *values)
    with pytest.raises(VolumeError, match=words):
        open_volume(path).values  # noqa: B018


def test_packed_file_that_is_cut_off_is_refused(tmp_path, ras):
    path = tmp_path / "a.nii.gz"
    write_nifti(path, ras)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(VolumeError, match="its voxels cannot be read"):
        open_volume(str(path)).values  # noqa: B018


def test_packed_bomb_is_not_unpacked(tmp_path):
    header = nibabel.Nifti1Header()
    header.set_data_shape((2000, 2000, 2000))
    header["magic"], header["sform_code"] = b"n+1", 1
    with gzip.open(tmp_path / "a.nii.gz", "wb") as file:
        file.write(header.binaryblock + bytes(4 << 20))
    with pytest.raises(VolumeError, match="more than 512 MiB"):
        open_volume(str(tmp_path / "a.nii.gz"))
