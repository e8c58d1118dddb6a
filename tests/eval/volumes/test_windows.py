"""Grey levels worked out by hand, and against pydicom where it is right."""

import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_voi

from logramed.eval.volumes.windows import NAMED_WINDOWS, LookupTable, Range, Window, parse_window


def test_brain_window_by_hand():
    values = np.array([[-1000.0, 0.0, 1.0, 20.0, 39.5, 40.0, 60.0, 79.0, 80.0, 3000.0]])
    # PS3.3 C.11.2.1.2.1 with c = 40 and w = 80: ((x - 39.5) / 79 + 0.5) * 255 between 0 and 79.
    assert Window(40, 80)(values).tolist() == [[0, 0, 3, 65, 128, 129, 194, 255, 255, 255]]


def test_exact_and_sigmoid_windows_by_hand():
    values = np.array([[0.0, 30.0, 40.0, 50.0, 80.0]])
    # ((x - c) / w + 0.5) * 255 between 0 and 80; halves are rounded to even.
    assert Window(40, 80, "LINEAR_EXACT")(values).tolist() == [[0, 96, 128, 159, 255]]
    # 255 / (1 + exp(-4 (x - c) / w)), e.g. 255 / (1 + e^2) = 30.4
    assert Window(40, 80, "SIGMOID")(values).tolist() == [[30, 96, 128, 159, 225]]


def test_named_windows_are_those_of_the_source():
    """Widths and levels as https://doi.org/10.53347/rID-52108 writes them."""
    written = {"brain": "W:80 L:40", "lung": "W:1500 L:-600", "mediastinum": "W:350 L:50"}
    written |= {"soft_tissue": "W:400 L:50", "bone": "W:1800 L:400"}
    assert {name: f"W:{w['width']} L:{w['center']}" for name, w in NAMED_WINDOWS.items()} == written


@pytest.mark.parametrize("name", NAMED_WINDOWS)
def test_named_windows_are_black_below_and_white_above(name):
    window = parse_window(name)
    ends = np.array([[window.center - window.width / 2, window.center, window.center + window.width / 2]])
    black, middle, white = window(ends)[0].tolist()
    assert (black, white) == (0, 255)
    assert 126 <= middle <= 130


def test_windows_by_number():
    assert parse_window("-600,1500") == Window(-600.0, 1500.0) == parse_window("lung")


@pytest.mark.parametrize("text", ["liver", "", "40", "40,0", "40,nan", "1,2,3", "inf,4"])
def test_unknown_windows_are_refused(text):
    with pytest.raises(ValueError, match=r"`window` must be one of auto, range, lung, bone, .*got"):
        parse_window(text)


def test_range_clips_and_a_flat_one_is_black():
    assert Range(-10, 10)(np.array([[-99.0, -10.0, 0.0, 5.0, 10.0, 99.0]])).tolist() == [[0, 0, 128, 191, 255, 255]]
    assert Range(3, 3)(np.array([[3.0, 9.0]])).tolist() == [[0, 0]]


def test_large_images_are_mapped_in_parts_as_in_one():
    values = np.random.default_rng(0).normal(0, 500, (1500, 1700)).astype(np.float32)
    by_hand = np.round(np.clip((values.astype(np.float64) - 39.5) / 399 + 0.5, 0, 1) * 255)
    assert np.array_equal(Window(40, 400)(values), by_hand)


def test_table_with_12_bits_equals_pydicoms():
    entries = (np.arange(4096) ** 2 // 4096).tolist()
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US", [4096, 100, 12])
    item.add_new("LUTData", "US", entries)
    dataset = pydicom.Dataset()
    dataset.VOILUTSequence = [item]
    values = np.random.default_rng(1).integers(0, 6000, (40, 50))
    ours = LookupTable(100, tuple(entries), 12).look_up(values)
    assert np.array_equal(ours, apply_voi(values, dataset))


def test_table_with_8_bits_and_more_entries_than_256():
    table = LookupTable(-2, (0, 10, 20, *[30] * 400, 255), 8)
    assert table(np.array([[-50.0, -2.0, -1.0, 0.0, 300.0, 401.0, 9999.0]])).tolist() == [[0, 0, 10, 20, 30, 255, 255]]
