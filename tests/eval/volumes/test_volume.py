"""Which slices are shown, and what an image of several is."""

import numpy as np
import pytest

from logramed.eval.volumes import VolumeError
from logramed.eval.volumes.volume import Volume, find_orientation, parse_slices, select
from logramed.eval.volumes.windows import Range, Window


def make(values, **options):
    return Volume("scan", values.shape[:3], lambda number: values[number], **options)


@pytest.mark.parametrize("num_slices", [1, 2, 7, 8, 9, 100])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_slabs_hold_each_slice_once_and_sizes_differ_by_one(num_slices, count):
    slabs = select(num_slices, count, "slabs")
    assert [number for first, last in slabs for number in range(first, last + 1)] == list(range(1, num_slices + 1))
    sizes = [last - first + 1 for first, last in slabs]
    assert len(slabs) == min(count, num_slices)
    assert max(sizes) - min(sizes) <= 1
    middles = select(num_slices, count)
    assert all(first == last for first, last in middles)
    assert all(slab[0] <= middle <= slab[1] for slab, (middle, _) in zip(slabs, middles, strict=True))


def test_selections_by_hand():
    assert select(40, 4) == [(5, 5), (15, 15), (25, 25), (35, 35)]
    assert select(10, 3, "slabs") == [(1, 3), (4, 6), (7, 10)]
    assert select(10, 3, "9, 2-4") == [(9, 9), (2, 4)]


@pytest.mark.parametrize("text", ["", "0", "3-2", "a", "1;2", "-1", "1-", "1-2-3", "٣", "9999999"])
def test_other_selections_are_refused(text):
    with pytest.raises(ValueError, match="`slices` must be uniform, slabs, or numbers and ranges"):
        parse_slices(text)


def test_selections_beyond_the_budget_or_the_volume_are_refused():
    with pytest.raises(ValueError, match=r"3 images.*`volume_tokens` has room for 2"):
        select(10, 2, "1,2,3")
    with pytest.raises(ValueError, match="names slice 11, but there are only 10"):
        select(10, 2, "11")


def test_slab_is_the_mean_of_its_slices_before_windowing():
    values = np.zeros((3, 1, 2), np.float32)
    values[:, 0, 0], values[:, 0, 1] = (0, 0, 300), (-3000, 30, 30)
    volume = make(values, mapping=Range(0, 300))
    assert np.asarray(volume.image((1, 3))).tolist() == [[85, 0]]  # means 100 and -980
    assert np.asarray(volume.image((3, 3))).tolist() == [[255, 26]]


def test_one_range_holds_for_all_slices():
    values = np.stack([np.full((8, 8), level, np.float32) for level in (0, 20, 100)])
    volume = make(values)
    assert [int(np.asarray(volume.image((number, number)))[0, 0]) for number in (1, 2, 3)] == [0, 51, 255]


def test_robust_range_is_that_of_the_percentiles():
    values = np.random.default_rng(0).normal(100, 20, (4, 64, 64)).astype(np.float32)
    values[0, 0, 0] = 1e6  # a single hot pixel
    volume = make(values)
    assert (volume.robust_range.low, volume.robust_range.high) == pytest.approx(np.percentile(values, (0.5, 99.5)))


def test_range_of_a_large_volume_reads_32_slices():
    read = []
    volume = Volume("scan", (500, 4, 4), lambda number: read.append(number) or np.full((4, 4), float(number)))
    assert volume.robust_range == Range(0.0, 499.0)
    assert len(read) == 32


def test_inverted_volume_is_the_negative():
    values = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    plain, inverted = (make(values, mapping=Window(6, 12), inverted=way) for way in (False, True))
    assert np.array_equal(np.asarray(plain.image((1, 1))), 255 - np.asarray(inverted.image((1, 1))))


def test_colour_slices_stay_what_they_are_and_slabs_are_their_mean():
    values = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3)).astype(np.uint8)
    volume = make(values)
    assert np.array_equal(np.asarray(volume.image((2, 2))), values[1])
    assert np.array_equal(np.asarray(volume.image((1, 2))), np.round(values.astype(float).mean(0)).astype(np.uint8))


def test_slices_that_there_are_not_are_refused():
    volume = make(np.zeros((3, 2, 2), np.float32))
    with pytest.raises(VolumeError, match="no slices 4 to 4, only 1 to 3"):
        volume.image((4, 4))


def test_positions_are_millimetres_of_the_middle_of_what_is_shown():
    volume = make(np.zeros((5, 2, 2), np.float32), positions=(0.0, 2.5, 5.0, 7.5, 10.0))
    assert volume.describe([(1, 1), (2, 5)]) == ["Slice 1 of 2, 0.0 mm", "Slice 2 of 2, 6.2 mm"]
    assert make(np.zeros((2, 2, 2), np.float32)).describe([(1, 1), (2, 2)]) == ["Frame 1 of 2", "Frame 2 of 2"]


def test_slices_lie_across_the_axis_of_the_largest_spacing():
    for spacing, plane in [
        ((1, 1, 5), "axial"),
        ((1, 5, 1), "coronal"),
        ((5, 1, 1), "sagittal"),
        ((1, 1, 1), "axial"),
    ]:
        assert find_orientation(np.diag([*spacing, 1.0]))[0] == plane
