"""Tests of the plots: nothing outside the picture, no text lost, SVG that fits a page."""

import re
from xml.etree import ElementTree

import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from logramed.eval.comparison.plots import (
    COLORS,
    Look,
    Mark,
    draw_bars,
    draw_curves,
    draw_groups,
    draw_published,
    draw_sight,
    make_looks,
    save_png,
    to_svg,
)


LONG = "logramed-7b-vqa-rad-two-stage-extended-captions-checkpoint-1200"
NAMES = [LONG, "costs $5 and $6", "a < b & c"]
LOOKS = make_looks(NAMES, NAMES)
MARKS = [Mark(72.5, (68.0, 77.1), 179), Mark(100.0, (100.0, 100.0), 179), None]


def all_plots():
    groups = {f"group {number} with a name that goes on and on and on": MARKS for number in range(12)}
    return {
        "bars": draw_bars("Open recall (%)\n179 questions", LOOKS, MARKS),
        "groups": draw_groups("Open recall (%) by organ", LOOKS, groups),
        "sight": draw_sight("Closed accuracy (%)", LOOKS, MARKS, [Mark(50.0), Mark(0.0), None], Mark(48.9)),
        "published": draw_published(
            "Average (%)", LOOKS[:2], MARKS[:2], [("LLaVA-Med", 72.64, True), (LONG, 3.1, False)]
        ),
        "curves": draw_curves(
            "Average (%)",
            dict(zip(NAMES, LOOKS, strict=True)),
            {LONG: [(10, MARKS[0]), (100, MARKS[1]), (10, Mark(70.0))], NAMES[1]: [(40, MARKS[0])]},
            {"ExGra-Med": {10: 72.5, 70: 74.6}},
        ),
    }


PLOTS = list(all_plots())


def test_names_beside_published_figures_end_before_the_axis():
    names = ['constant "no" (LLaVA-Med file)', LONG]
    published = [("LLaVA-Med (LLaMA-7B), 100% of the data", 72.64, True)]
    figure = draw_published("Average (%)", make_looks(names, names), MARKS[:2], published)
    figure.canvas.draw()
    (axis,) = figure.axes
    names = [text for text in axis.texts if text.get_ha() == "left"]
    assert len(names) == 3
    for text in names:
        assert text.get_window_extent().x1 <= axis.get_window_extent().x0


@pytest.mark.parametrize("kind", PLOTS)
def test_no_text_leaves_the_picture_whatever_its_length(kind):
    figure = all_plots()[kind]
    figure.canvas.draw()
    whole = figure.bbox
    texts = [*figure.texts, *(text for axis in figure.axes for text in axis.texts)]
    texts += [label for axis in figure.axes for label in [*axis.get_xticklabels(), *axis.get_yticklabels()]]
    assert texts
    for text in texts:
        extent = text.get_window_extent()
        assert whole.x0 <= extent.x0, text.get_text()
        assert extent.x1 <= whole.x1 + 8, text.get_text()  # the last tick may hang over by a digit
        assert whole.y0 <= extent.y0 <= extent.y1 <= whole.y1, text.get_text()


@pytest.mark.parametrize("kind", ["bars", "groups", "published"])
def test_labels_of_a_line_do_not_run_into_each_other(kind):
    figure = all_plots()[kind]
    figure.canvas.draw()
    (axis,) = figure.axes
    extents = [text.get_window_extent() for text in axis.texts if text.get_text()]
    for place, extent in enumerate(extents):
        assert not any(extent.overlaps(other) for other in extents[:place])


@pytest.mark.parametrize("kind", PLOTS)
def test_svg_is_well_formed_and_holds_nothing_external(kind):
    svg = to_svg(all_plots()[kind], kind, 'shows "a" < b')
    root = ElementTree.fromstring(svg)
    assert root.tag == "svg"
    assert root.get("aria-label") == 'shows "a" < b'
    assert root.get("width") is root.get("height") is None
    assert "http" not in svg
    assert "<style" not in svg.replace(
        '<style type="text/css">*{stroke-linejoin: round; stroke-linecap: butt}</style>', ""
    )
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    assert all(name.startswith(f"{kind}-") for name in ids)
    targets = re.findall(r'(?:href="#|url\(#)([^")]+)', svg)
    assert set(targets) <= set(ids)


def test_names_stay_text_as_they_are_and_take_the_color_of_the_page():
    svg = to_svg(draw_bars("t", LOOKS, [Mark(1.0)] * 3), "bars", "t")
    texts = [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]
    assert "costs $5 and $6" in texts
    assert "a < b & c" in texts
    assert LONG not in texts
    assert any(text.startswith("logramed-7b") and text.endswith("point-1200") for text in texts if text)
    assert "currentColor" in svg
    assert "#010203" not in svg


def test_same_plot_gives_the_same_svg():
    assert to_svg(all_plots()["groups"], "a", "t") == to_svg(all_plots()["groups"], "a", "t")


def test_bars_and_intervals_have_the_lengths_of_their_values():
    figure = draw_bars("t", LOOKS[:1], [Mark(72.5, (68.0, 77.1))])
    (axis,) = figure.axes
    assert [bar.get_width() for bar in axis.patches] == [72.5]
    assert list(axis.lines[0].get_xdata()) == [68.0, 77.1]
    assert axis.get_xlim() == (0, 100)


def test_axis_grows_with_scores_above_one_hundred():
    (axis,) = draw_bars("t", LOOKS[:1], [Mark(104.0, (96.0, 112.0))]).axes
    assert axis.get_xlim()[1] > 112


def test_groups_are_drawn_by_size_with_their_number_and_few_marked():
    groups = {"small": [Mark(50.0, (0.0, 100.0), 3)], "large": [Mark(60.0, (55.0, 65.0), 300)], "none": [None]}
    (axis,) = draw_groups("t", LOOKS[:1], groups).axes
    assert [text.get_text() for text in axis.texts] == ["large", "n = 300", "small", "n = 3 (few)"]


def test_only_the_largest_groups_are_drawn_and_the_title_says_so():
    groups = {f"g{number}": [Mark(50.0, None, number)] for number in range(1, 41)}
    figure = draw_groups("Accuracy (%)", LOOKS[:1], groups)
    assert "the largest 30 of 40 groups" in [text.get_text() for text in figure.texts]
    assert "g40" in [text.get_text() for text in figure.axes[0].texts]
    assert "g10" not in [text.get_text() for text in figure.axes[0].texts]


def test_curve_is_logarithmic_for_shares_far_apart_only():
    look = {"A": Look("A", COLORS[0], "o")}
    near = draw_curves("t", look, {"A": [(10, Mark(1.0)), (100, Mark(2.0))]})
    far = draw_curves("t", look, {"A": [(1, Mark(1.0)), (100, Mark(2.0))]})
    assert (near.axes[0].get_xscale(), far.axes[0].get_xscale()) == ("linear", "log")
    assert [label.get_text() for label in far.axes[0].get_xticklabels()] == ["1", "100"]


def test_published_points_are_hollow_and_ours_are_filled():
    figure = draw_curves("t", {"A": LOOKS[0]}, {"A": [(10, Mark(1.0))]}, {"ExGra-Med": {10: 72.5}})
    ours, theirs = [line for line in figure.axes[0].lines if line.get_marker() not in ("", "None")]
    assert ours.get_markerfacecolor() == LOOKS[0].color
    assert theirs.get_markerfacecolor() == "none"
    assert "ExGra-Med (published)" in [text.get_text() for text in figure.texts]


def test_no_two_of_forty_runs_look_alike():
    names = [f"system {number}" for number in range(40)]
    assert len({(look.color, look.marker) for look in make_looks(names, names)}) == 40


def test_runs_of_one_system_share_its_color_and_no_two_runs_a_look():
    looks = make_looks(["A, 10%", "A, 40%", "B"], ["A", "A", "B"])
    assert looks[0].color == looks[1].color != looks[2].color
    assert len({(look.color, look.marker) for look in looks}) == 3


def test_colors_differ_for_color_blind_readers():
    # Brightness alone, which all see, or the blue channel, which red-green blindness leaves, tells neighbors apart.
    colors = [to_rgb(color) for color in COLORS]
    for place, (red, green, blue) in enumerate(colors):
        for other in colors[:place]:
            brightness = [0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2] for c in ((red, green, blue), other)]
            assert abs(brightness[0] - brightness[1]) > 0.05 or abs(blue - other[2]) > 0.2


@pytest.mark.parametrize(
    "draw",
    [
        lambda: draw_bars("Open recall", LOOKS, [None] * 3),
        lambda: draw_groups("Open recall", LOOKS, {"a": [None] * 3}),
        lambda: draw_sight("Open recall", LOOKS, MARKS, [None] * 3),
        lambda: draw_curves("Open recall", {}, {}),
    ],
)
def test_plot_of_nothing_is_refused(draw):
    with pytest.raises(ValueError, match="nothing to draw for 'Open recall'"):
        draw()


def test_png_is_written_on_white(tmp_path):
    save_png(all_plots()["bars"], tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size[0] == 800
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
