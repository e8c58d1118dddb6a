"""Damaged files: one clear error or an image, in bounded time and memory."""

import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest

from logramed.eval.volumes import VolumeError, expand_volume, open_image_reference
from tests.benchmarks.dicom_table import list_files

from .dicom_files import phantom, write_series, write_slice


LONGEST_SECONDS, MOST_MEMORY = 30, 1 << 30


def damage(content, seed):
    """A copy that is cut off (one in four), or has 1, 4 or 20 bytes changed: anywhere, or in the last quarter."""
    draw = random.Random(seed)
    if draw.randrange(4) == 0:
        return content[: draw.randrange(len(content))]
    damaged = bytearray(content)
    first = draw.choice([0, len(damaged) * 3 // 4])
    for _ in range(draw.choice([1, 4, 20])):
        damaged[draw.randrange(first, len(damaged))] = draw.randrange(256)
    return bytes(damaged)


def use(path):
    """Open the images of a path, four at most: that works in time, or gives one sentence that names the path."""
    start, said = time.monotonic(), str(path)
    try:
        for reference, _ in expand_volume(str(path), 4, "slabs"):
            open_image_reference(reference)
    except VolumeError as error:
        said = str(error)
    assert said.startswith(str(path))
    assert said.count("\n") == 0
    assert time.monotonic() - start < LONGEST_SECONDS


def sources(folder):
    """Files of all kinds, small ones: pydicom's, and NIfTI packed and not."""
    values = np.random.default_rng(0).integers(0, 99, (9, 8, 7)).astype(np.int16)
    for name in ("a.nii", "a.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(values, np.diag([1, 1, 3, 1])), folder / name)
    dicom = [path for path in list_files() if path.stat().st_size > 132 and "TINY_ALPHA" not in path.parts]
    return [folder / "a.nii", folder / "a.nii.gz", *dicom]


def use_damaged(folder, copies, part=0, parts=1):
    """Use so many damaged copies of each of some sources, one after another at one path."""
    for number, source in enumerate(sources(folder)):
        if number % parts == part:
            content = source.read_bytes()
            for copy in range(copies):
                path = folder / "damaged"
                path.write_bytes(damage(content, f"{source.name} {copy}"))
                use(path)


def run_apart(folder, copies, part=0, parts=1):
    """Use damaged copies in a process of its own, which a crash would end, and look at its memory."""
    code = f"""
import resource, sys
from pathlib import Path
import logramed.eval.volumes
from tests.eval.volumes import test_damage
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
test_damage.use_damaged(Path({str(folder)!r}), {copies}, {part}, {parts})
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) < MOST_MEMORY


def test_damaged_copies_are_refused_or_shown(tmp_path):
    run_apart(tmp_path, copies=4)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_many_damaged_copies_are_refused_or_shown(tmp_path, part):
    run_apart(tmp_path, copies=400, part=part, parts=4)


@pytest.mark.parametrize("folder_of", ["series", "mixed"])
def test_damaged_series_are_refused_or_shown(tmp_path, folder_of):
    for seed in range(40):
        folder = tmp_path / f"{folder_of}{seed}"
        write_series(folder, phantom())
        for file in sorted(folder.iterdir())[: 1 if folder_of == "series" else 6]:
            file.write_bytes(damage(file.read_bytes(), f"{file.name} {seed}"))
        use(folder)


def test_huge_claims_are_refused_before_memory_is_taken(tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for tags in ({"Rows": 65535, "Columns": 65535}, {"NumberOfFrames": 2**31 - 1}, {"Rows": 5000, "Columns": 5000}):
        with pytest.raises(VolumeError, match=r"are too large|shorter than"):
            open_image_reference(write_slice(Path(tmp_path) / "a", phantom()[0], **tags))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024  # KiB
