"""DICOM and NIfTI files of phantoms, and the names that are planted in their tags."""

from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pydicom.data
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


# pydicom's own test files.
FILES = Path(pydicom.data.__file__).parent / "test_files"
PLANTED = "Zzyzx^Quibble"
# One tag of each kind of text, with a value that would identify somebody.
TEXT_TAGS = {
    "PatientName": PLANTED,
    "PatientID": "ZZYZX-4711",
    "PatientBirthDate": "19610713",
    "InstitutionName": "Zzyzx General",
    "InstitutionAddress": "7 Zzyzx Road",
    "ReferringPhysicianName": "Zzyzx^Ref",
    "StudyDate": "20190713",
    "StudyTime": "071307",
    "StudyDescription": "zzyzx study",
    "SeriesDescription": "zzyzx series",
    "AccessionNumber": "ZZYZX0815",
    "StationName": "ZZYZXSTATION",
    "PatientComments": "zzyzx comments",
    "ImageComments": "zzyzx image",
    "PatientAddress": "13 Zzyzx Street",
    "EthnicGroup": "zzyzxian",
    "DeviceSerialNumber": "ZZYZX99",
    "OtherPatientIDs": "ZZYZX-ALT",
}
SERIES = generate_uid(entropy_srcs=["series"])
AXIAL = [1, 0, 0, 0, 1, 0]


def phantom(shape=(6, 5, 4)):
    """Values that differ in every voxel: `(slices, rows, columns)` int16, from -1000."""
    return (np.arange(np.prod(shape)).reshape(shape) * 7 - 1000).astype(np.int16)


def write_slice(path, stored, position=(0.0, 0.0, 0.0), series=SERIES, **tags):
    """A CT slice of stored values `(rows, columns)` int16; `tags` change it, and `None` removes one."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    for keyword, value in TEXT_TAGS.items():
        setattr(dataset, keyword, value)
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.SeriesInstanceUID, dataset.Modality = series, "CT"
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.ImageOrientationPatient, dataset.ImagePositionPatient = AXIAL, list(position)
    dataset.PixelSpacing = [0.8, 0.5]
    dataset.PixelData = np.ascontiguousarray(stored).tobytes()
    for keyword, value in tags.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path, enforce_file_format=True)
    return str(path)


def write_series(folder, values, step=2.5, order=None, **tags):
    """A file a slice, one above the other from the feet up, under names in another order."""
    folder.mkdir(parents=True, exist_ok=True)
    order = order or [(number * 7) % len(values) for number in range(len(values))]
    for number, slice_values in enumerate(values):
        write_slice(folder / f"{order[number]:03d}", slice_values, (10.0, -20.0, 100.0 + number * step), **tags)
    return str(folder)


def write_nifti(path, values, codes="RAS", spacing=(0.5, 0.8, 2.5), slope=None):
    """
    A NIfTI file whose first axis goes along `codes[0]`, and so on, of `values` `(x, y, z)` in RAS+ with the `spacing`
    of x, y and z.
    """
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-11.0, 7.0, 3.0)
    image = nibabel.Nifti1Image(values, affine)
    wanted = nibabel.orientations.axcodes2ornt(tuple(codes))
    image = image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), wanted))
    if slope is not None:
        image.header.set_slope_inter(*slope)
    image.header["descrip"] = PLANTED
    nibabel.save(image, path)
    return str(path)


def read(path):
    return pydicom.dcmread(path)
