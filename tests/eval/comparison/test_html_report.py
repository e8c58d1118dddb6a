"""Tests of the page: valid, self-contained, escaped, and honest about what it shows."""

from html.parser import HTMLParser

import pytest

from logramed.eval.comparison.html_report import render_html, write_run_report
from logramed.eval.comparison.report_plots import draw_plots
from logramed.eval.comparison.run_folder import read_run_folder
from logramed.eval.comparison.runs import compare_runs
from tests.eval.run_folders import change_metrics, make_questions, make_scores, write_run_folder


VOID_TAGS = {"meta", "img", "br", "hr", "link", "input"}
LOADING_ATTRIBUTES = ("src", "href", "srcset", "action", "poster", "data", "xlink:href")
ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)> \"'&"


class Page(HTMLParser):
    """Tags that stay open, ids, links and texts of a page."""

    def __init__(self, text):
        super().__init__()
        self.open_tags, self.tags, self.links, self.ids, self.texts, self.event_handlers = [], [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self._note(tag, attributes)
        if tag not in VOID_TAGS:
            self.open_tags.append(tag)

    def handle_startendtag(self, tag, attributes):
        self._note(tag, attributes)

    def _note(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in LOADING_ATTRIBUTES:
                self.links.append(value)
            if name == "id":
                self.ids.append(value)
            if name.startswith("on"):
                self.event_handlers.append(name)

    def handle_endtag(self, tag):
        assert self.open_tags, f"</{tag}> closes nothing"
        assert self.open_tags.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def make_page(folders, images=True):
    comparison = compare_runs([read_run_folder(folder) for folder in folders])
    return render_html(comparison, draw_plots(comparison), images=images)


@pytest.fixture
def folders(tmp_path):
    return [
        write_run_folder(tmp_path / name, num_questions=60, ability=ability, seed=seed, images=tmp_path / "images")
        for seed, (name, ability) in enumerate((("good", 0.95), ("fair", 0.6), ("poor", 0.4)))
    ]


def curve_folders(tmp_path):
    return [
        write_run_folder(
            tmp_path / f"{system}{share}", seed=share, run={"system": system, "training_data_share": share}
        )
        for system in ("A", "B")
        for share in (10, 40, 100)
    ]


@pytest.mark.parametrize("kind", ["three", "one", "curves"])
def test_page_is_balanced_and_loads_nothing(kind, folders, tmp_path):
    folders = {"three": folders, "one": folders[:1], "curves": curve_folders(tmp_path)}[kind]
    text = make_page(folders)
    page = Page(text)
    assert page.open_tags == []
    assert text.startswith("<!doctype html>")
    assert "script" not in page.tags
    assert not page.event_handlers
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in page.links)
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    assert "url(" not in text.replace("url(#", "")
    assert "default-src 'none'" in text
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


@pytest.mark.parametrize("task", ["vqa", "multiple_choice", "chat", "report"])
def test_every_task_has_its_report(task, tmp_path):
    folder = write_run_folder(tmp_path / "a", task=task, ability=0.6)
    path = write_run_report(folder)
    page = Page(path.read_text(encoding="utf-8"))
    assert path == folder / "report.html"
    assert page.open_tags == []
    names = {"vqa": "closed accuracy", "multiple_choice": "accuracy", "chat": "relative score", "report": "ROUGE-L"}
    assert names[task] in page.text
    assert "None" not in page.text
    assert "nan" not in page.text.lower().split()


def test_answers_names_and_groups_cannot_become_part_of_the_page(tmp_path):
    rows = [row | {"groups": {ATTACK: ATTACK}, "question": ATTACK, "answer": ATTACK} for row in make_questions(20)]
    scores = make_scores(rows, 0.4, seed=0)
    folders = [
        write_run_folder(
            tmp_path / name, rows=rows, scores=scores, answer=lambda row, _: ATTACK, run={"system": ATTACK + name}
        )
        for name in "ab"
    ]
    page = Page(make_page(folders))
    assert page.open_tags == []
    assert "script" not in page.tags
    assert not page.event_handlers
    assert "img" not in page.tags
    assert "<script>alert(1)</script>" in page.text


def test_worst_questions_come_with_their_images_and_a_warning(folders):
    page = Page(make_page(folders))
    assert any(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert "embeds images of the data set" in page.text
    assert "No system gets these right" in page.text
    assert "These divide the systems" in page.text


def test_images_are_left_out_on_request_or_said_to_be_gone(folders, tmp_path):
    page = Page(make_page(folders, images=False))
    assert "img" not in page.tags
    assert "embeds images" not in page.text
    assert "no longer where it was" not in page.text
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    page = Page(make_page(folders))
    assert "img" not in page.tags
    assert "embeds images" not in page.text
    assert "no longer where it was" in page.text


def test_no_folder_of_this_machine_is_told(folders, tmp_path):
    text = make_page(folders)
    assert str(tmp_path) not in text
    assert "/models/" not in text
    assert str(tmp_path) not in write_run_report(folders[0]).read_text(encoding="utf-8")


def test_summary_says_who_is_ahead_and_whether_that_is_more_than_chance(tmp_path):
    rows = make_questions(200)
    folders = [
        write_run_folder(tmp_path / name, rows=rows, ability=ability, seed=1)
        for name, ability in (("good", 1.5), ("poor", 0.2))
    ]
    page = Page(make_page(folders))
    assert "clearly ahead" in page.text
    same = [write_run_folder(tmp_path / name, rows=rows, seed=1) for name in ("same1", "same2")]
    text = Page(make_page(same)).text
    assert "no clear lead" in text
    assert "p 1.00, within chance" in text


def test_published_figures_are_marked_and_stand_beside_the_release_protocol_only(folders, tmp_path):
    page = Page(make_page(folders))
    assert "Published, not run here" in page.text
    assert "81.62" in page.text
    assert "reading note" in page.text
    assert "no test compares with them" in page.text
    limited = write_run_folder(tmp_path / "limited", run={"limit": 40})
    page = Page(make_page([limited]))
    assert "81.62" not in page.text
    assert "Only the first 40 questions were asked" in page.text
    change_metrics(folders[0], lambda metrics: metrics.update(differences=["12 CLOSED questions instead of 272"]))
    page = Page(make_page(folders[:1]))
    assert "81.62" not in page.text
    assert "over the known split; here it has 12 CLOSED questions instead of 272." in page.text


def test_published_curve_stands_in_the_plot_of_the_release_protocol(tmp_path):
    text = make_page(curve_folders(tmp_path))
    svgs = {svg.split('id="')[1].split("-figure")[0]: svg for svg in text.split("<svg")[1:] if 'id="' in svg}
    assert "ExGra-Med (published)" in svgs["curve-release-average"]
    assert "(published)" not in svgs["curve-average"].split("</svg>")[0]


def test_remarks_tell_what_to_mind(tmp_path):
    rows = make_questions(40)
    blind = make_scores(rows, 0.5, seed=1000)
    folder = write_run_folder(
        tmp_path / "a", rows=rows, scores=blind, blank=0.5, leaked=3, run={"notes": ["Read `x`."]}
    )
    text = Page(make_page([folder])).text
    assert "not significantly better with the images than without" in text
    assert "10 of 20 test images also stand in the training data, 3 of the questions with the same answer" in text
    assert "a: Read x ." in text
    bare = write_run_folder(tmp_path / "b", blank=None, leaked=None)
    text = Page(make_page([bare])).text
    assert "No figures without sight of b: `" not in text
    assert "No figures without sight of b:" in text
    assert "blank images" not in text.split("With and without sight, and leakage")[1].split("Groups")[0]
    assert "No leakage report of b: there is no training split." in text
