"""Tests of `logramed-eval --grounding` on a generated folder in the layout of SLAKE."""

import json

import numpy as np
import pytest
from PIL import Image

from logramed.eval import run
from logramed.eval.arguments import EvaluationArguments
from logramed.eval.benchmarks.slake import load_boxes, load_questions
from logramed.eval.comparison.run_folder import read_run_folder
from logramed.eval.grounding import measure
from logramed.eval.grounding.boxes import lay_on_grid
from logramed.eval.grounding.maps import KINDS
from logramed.eval.grounding.questions import find_boxed_questions
from tests.tiny import tiny_processor
from tests.tiny_models import tiny_model as tiny_logramed


pytestmark = pytest.mark.filterwarnings("ignore:This SLAKE")

NUM_IMAGES = 6
BOXES = [["Liver", 0.0, 0.0, 0.5, 0.5], ["Left Lung", 0.5, 0.5, 0.5, 0.5], ["Mass", 0.55, 0.1, 0.1, 0.1]]
ASKED = {
    "where is the liver": ("left", "liver"),
    "is there a mass in the left lung": ("yes", "mass"),
    "is the left lung normal": ("no", "lung"),
    "which organ is shown": ("liver", None),
    "where is the heart": ("left", None),  # without a box
}


def write_slake(folder, split="test", images=range(NUM_IMAGES)):
    generator = np.random.default_rng(0)
    rows = []
    for number in images:
        path = folder / "imgs" / f"xmlab{number}" / "source.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
        for question, (answer, _) in ASKED.items():
            rows.append(
                {"qid": 100 * images.start + len(rows), "img_name": f"xmlab{number}/source.jpg", "q_lang": "en"}
                | {"question": question, "answer": answer, "location": "Chest", "modality": "CT"}
                | {"answer_type": "OPEN", "content_type": "Organ"}
            )
    (folder / f"{split}.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture
def slake(tmp_path):
    folder = write_slake(tmp_path / "slake")
    (folder / "boxes.json").write_text(json.dumps({f"xmlab{number}": BOXES for number in range(NUM_IMAGES)}))
    return folder


@pytest.fixture
def model(tmp_path):
    found = tiny_logramed(text_sizes={"vocab_size": 84})
    found.save_pretrained(tmp_path / "model")
    tiny_processor(found.config.num_image_tokens).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def build_command(model, data, output, *options):
    command = ["--model", model, "--benchmark", "slake", "--data", data, "--output", output, "--grounding"]
    return [str(part) for part in (*command, "--max_new_tokens", 2, *options)]


def test_questions_that_name_a_boxed_thing_are_found_with_its_boxes(slake):
    rows = load_questions(slake)
    found = find_boxed_questions(rows, load_boxes(slake, rows))
    assert len(found) == 3 * NUM_IMAGES
    for question in found:
        assert question.group == ASKED[question.row["question"]][1]
    assert [box.label for question in found[:3] for box in question.boxes] == ["Liver", "Mass", "Left Lung"]


def test_the_command_measures_writes_and_reports(slake, model, tmp_path, capsys):
    output = tmp_path / "output"
    assert run.main(build_command(model, slake, output)) == 0
    written = json.loads((output / "grounding.json").read_text())
    assert written["grid"] == [2, 2]
    assert written["overall"]["num_questions"] == 3 * NUM_IMAGES
    assert written["overall"]["num_images"] == NUM_IMAGES
    blank = [f"{kind}, blank image" for kind in KINDS]
    assert list(written["overall"]["maps"]) == [*KINDS, *blank, "center", "random"]
    assert written["groups"] == {}
    assert written["small_groups"] == {"liver": 6, "lung": 6, "mass": 6}
    random = written["overall"]["maps"]["random"]
    assert random["pointing_accuracy"]["value"] == 25.0
    assert [item["labels"] for item in written["questions"][:3]] == [["Liver"], ["Mass"], ["Left Lung"]]
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["grounding"]["overall"] == written["overall"]
    assert "questions" not in metrics["grounding"]
    assert read_run_folder(output).metrics["grounding"]["num_out_of_sight"] == 0
    page = (output / "report.html").read_text()
    assert "Where the model looks" in page
    assert "middle of the image" in page.lower()
    assert "data:image/png;base64" in page
    with Image.open(output / "grounding.png") as picture:
        assert picture.format == "PNG"
    assert str(slake) not in (output / "grounding.json").read_text()  # the file can move


def test_a_second_start_reads_no_maps_and_gives_the_same(slake, model, tmp_path, monkeypatch):
    output = tmp_path / "output"
    run.main(build_command(model, slake, output))
    first = (output / "metrics.json").read_bytes()
    monkeypatch.setattr(run, "load_model", None)
    run.main(build_command(model, slake, output))
    assert (output / "metrics.json").read_bytes() == first


def test_other_boxes_are_measured_anew(slake, model, tmp_path):
    output = tmp_path / "output"
    run.main(build_command(model, slake, output, "--no_blank_images"))
    (slake / "boxes.json").write_text(json.dumps({"xmlab1": BOXES[:1]}))
    run.main(build_command(model, slake, output, "--no_blank_images"))
    written = json.loads((output / "grounding.json").read_text())
    assert written["overall"]["num_questions"] == 1
    assert list(written["overall"]["maps"]) == [*KINDS, "center", "random"]


def test_without_images_nothing_is_drawn(slake, model, tmp_path):
    output = tmp_path / "output"
    run.main(build_command(model, slake, output, "--no_images", "--no_blank_images"))
    assert not (output / "grounding.png").exists()
    assert "data:image" not in (output / "report.html").read_text()


@pytest.fixture
def planted(slake, model, tmp_path, monkeypatch):
    """`grounding.json` where the map of the answer state is the boxes themselves, and the others are drawn."""

    def plant(rows, boxes):
        generator = np.random.default_rng(0)
        by_id = {question.row["question_id"]: question.boxes for question in find_boxed_questions(rows, boxes)}

        def read_maps(model, processor, questions, **options):
            for row in questions:
                maps = {kind: generator.dirichlet(np.ones(36)).reshape(6, 6) for kind in KINDS}
                cells = lay_on_grid(by_id[row["question_id"]], (6, 6))
                maps |= {"answer_state": cells.inside / cells.inside.sum()}
                yield row, {kind: weights[None] for kind, weights in maps.items()}

        monkeypatch.setattr(measure, "read_maps", read_maps)
        monkeypatch.setattr(measure, "find_grid", lambda config: (6, 0))
        monkeypatch.setattr(measure, "unwrap", lambda model: type("Model", (), {"config": None}))

    rows = [row | {"image_id": row["image"]} for row in load_questions(slake)]
    boxes = load_boxes(slake, rows)
    plant(rows, boxes)
    options = {"settings": {}, "batch_size": 4, "blank_images": False}
    return measure.measure_grounding(None, tiny_processor(), rows, boxes, tmp_path, **options)


def test_a_planted_map_scores_all_and_drawn_ones_about_the_baseline(planted):
    maps = planted["overall"]["maps"]
    perfect, drawn, random = maps["answer_state"], maps["question"], maps["random"]
    assert perfect["pointing_accuracy"]["value"] == 100.0
    assert perfect["auc"]["value"] == pytest.approx(1.0)
    # All weight lies in boxes of a quarter, a quarter and a hundredth of the image, but for what a cell has beside.
    assert perfect["energy_over_area"]["value"] > 4
    assert perfect["auc"]["differences"]["random"]["p_value"] < 0.01
    assert drawn["auc"]["interval"][0] < random["auc"]["value"] < drawn["auc"]["interval"][1]


def test_answers_alone_cannot_say_where_a_model_looked(tmp_path):
    with pytest.raises(ValueError, match="`grounding` needs a `model`: answers do not show where"):
        EvaluationArguments(
            benchmark="vqa_rad", data="none", output=str(tmp_path), grounding=True, predictions="answers.jsonl"
        )


def test_questions_that_name_nothing_are_refused(slake):
    rows = [row for row in load_questions(slake) if "organ" in row["question"]]
    with pytest.raises(ValueError, match="found no question that names something with a box"):
        find_boxed_questions(rows, load_boxes(slake, rows))


def test_missing_boxes_are_named_before_a_model_is_loaded(slake, tmp_path):
    (slake / "boxes.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no .*boxes\.json"):
        run.main(build_command(tmp_path / "none", slake, tmp_path / "output"))


def test_folds_share_no_image_and_together_hold_all(slake):
    write_slake(slake, "train", range(20, 40))
    write_slake(slake, "validation", range(40, 50))
    held_out = [load_questions(slake, f"fold_{fold}", skipped=[]) for fold in range(5)]
    assert sum(map(len, held_out)) == 30 * len(ASKED)
    for fold, rows in enumerate(held_out):
        rest = load_questions(slake, f"without_fold_{fold}", skipped=[])
        images, others = {row["image"] for row in rows}, {row["image"] for row in rest}
        assert not images & others
        assert len(images | others) == 30
