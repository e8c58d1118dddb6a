"""Tests of the page: valid, self-contained, escaped, and honest about what it shows."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from logramed.eval.comparison.html_report import format_table, render_html, render_markdown, write_run_report
from logramed.eval.comparison.plots import draw_figures
from logramed.eval.comparison.run_folder import read_run_folder
from logramed.eval.comparison.runs import compare_runs
from logramed.eval.comparison.tables import Table
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


def make_page(folders):
    return render_html(compare_runs([read_run_folder(folder) for folder in folders]))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of three systems; no test changes them."""
    folder = tmp_path_factory.mktemp("runs")
    return [
        write_run_folder(folder / name, num_questions=60, ability=ability, seed=seed, images=folder / "images")
        for seed, (name, ability) in enumerate((("good", 0.95), ("fair", 0.6), ("poor", 0.4)))
    ]


@pytest.fixture(scope="module")
def comparison(folders):
    return compare_runs([read_run_folder(folder) for folder in folders])


@pytest.mark.parametrize("num_runs", [1, 3])
def test_page_is_balanced_and_loads_nothing(num_runs, folders):
    text = make_page(folders[:num_runs])
    page = Page(text)
    assert page.open_tags == []
    assert text.startswith("<!doctype html>")
    assert "script" not in page.tags
    assert not page.event_handlers
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in page.links)
    assert "http://" not in text.replace("http://www.w3.org/", "")  # names of SVG
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


def test_worst_questions_come_with_their_images_and_a_warning(comparison):
    page = Page(render_html(comparison))
    assert any(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert "embeds images of the data set" in page.text
    assert "No system gets these right" in page.text
    assert "These divide the systems" in page.text


def test_images_are_left_out_on_request_or_said_to_be_gone(comparison, tmp_path):
    page = Page(render_html(comparison, images=False))
    assert "img" not in page.tags
    assert "embeds images" not in page.text
    assert "cannot be read on this machine" not in page.text
    gone = [replace(run, images={}) for run in comparison.runs]
    page = Page(render_html(replace(comparison, runs=gone)))
    assert "img" not in page.tags
    assert "embeds images" not in page.text
    assert "cannot be read on this machine" in page.text


def test_no_folder_of_this_machine_is_told(comparison, folders):
    for text in (render_html(comparison), render_markdown(comparison)):
        assert str(folders[0].parent) not in text
        assert "/models/" not in text


def test_summary_says_who_is_ahead_and_whether_that_is_more_than_chance(tmp_path):
    rows = make_questions(200)
    folders = [
        write_run_folder(tmp_path / name, rows=rows, ability=ability, seed=1)
        for name, ability in (("good", 1.5), ("poor", 0.2))
    ]
    text = Page(make_page(folders)).text
    assert re.search(
        r"Closed accuracy: good is highest with 100.0 .*?; [\d.]+ ahead of poor \(.*?, significant\)", text
    )
    same = [write_run_folder(tmp_path / name, rows=rows, seed=1) for name in ("same1", "same2")]
    assert "0.0 ahead of same2 (+0.0 to +0.0, p 1.00 after Holm, within chance)" in Page(make_page(same)).text


def test_published_figures_stand_beside_those_of_the_same_questions_only(comparison, tmp_path):
    text = Page(render_html(comparison)).text
    assert "Published figures were not reproduced" in text
    assert "81.62" in text
    folder = write_run_folder(tmp_path / "limited", run={"limit": 40})
    change_metrics(folder, lambda metrics: metrics.update(differences=["12 CLOSED questions instead of 272"]))
    text = Page(make_page([folder])).text
    assert "81.62" not in text
    assert "Only the first 40 questions were asked" in text
    assert "differ from the known split: 12 CLOSED questions instead of 272." in text


def test_remarks_tell_what_to_mind(tmp_path):
    rows = make_questions(40)
    blind = make_scores(rows, 0.5, seed=1000)
    folder = write_run_folder(
        tmp_path / "a", rows=rows, scores=blind, blank=0.5, leaked=3, run={"notes": ["Read `x`."]}
    )
    text = Page(make_page([folder])).text
    assert "not significantly better with the images than without" in text
    assert "10 of 20 test images also stand in the training data, 3 of the questions with the same answer" in text
    assert "a: Read `x`." in text
    bare = write_run_folder(tmp_path / "b", blank=None, leaked=None)
    text = Page(make_page([bare])).text
    assert "No figures without sight of b: `--no_blank_images` was given." in text
    assert "With blank images" not in text
    assert "No leakage report of b: there is no training split." in text


def test_plot_draws_every_run_and_figure_and_keeps_its_text(tmp_path):
    folders = [
        write_run_folder(tmp_path / name, num_questions=20, seed=seed, run={"system": f"$a_b$ {name}"})
        for seed, name in enumerate(("first", "second"))
    ]
    svg = draw_figures(compare_runs([read_run_folder(folder) for folder in folders]))
    for text in ("$a_b$ first", "$a_b$ second", "Open recall (%)", "Closed accuracy (%)", "Average (%)"):
        assert f">{text}</text>" in svg


def test_markdown_tables_are_whole_and_escaped(comparison):
    text = render_markdown(comparison)
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({line.replace("\\|", "").count("|") for line in block.splitlines()}) == 1
    for words in (
        "strict protocol",
        "### Paired bootstrap",
        "### McNemar's test",
        "| LLaVA-Med, 100% of pre-training",
    ):
        assert words in text
    table = Table("a_b", ["x|y"], [["<b>|\n*"]])
    assert format_table(table).splitlines()[2:] == [r"| x\|y |", "| --- |", r"| &lt;b>\| \* |"]
