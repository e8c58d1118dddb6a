"""What reads benchmark files, over the real SLAKE."""

import json
from pathlib import Path

import pytest

from logramed.eval.arguments import EvaluationArguments
from logramed.eval.benchmarks.slake import count_differences, load_questions
from logramed.eval.run import evaluate_benchmark


SLAKE = Path(__file__).resolve().parents[3] / "shared" / "data" / "slake"
pytestmark = pytest.mark.skipif(not SLAKE.is_dir(), reason="the SLAKE files are not beside the repository")
# Split and language, questions in the file, those that cannot be used, and images of the others; in both languages
# images recur.
PARTS = [
    ("train", "en", 4919, 1, 450),
    ("train", "zh", 4916, 10, 449),
    ("train", "all", 9835, 11, None),
    ("validation", "en", 1053, 10, 95),
    ("validation", "zh", 1046, 0, 96),
    ("validation", "all", 2099, 10, None),
    ("test", "en", 1061, 0, 96),
    ("test", "zh", 1033, 0, 96),
    ("test", "all", 2094, 0, None),
]


@pytest.mark.parametrize(("split", "subset", "num_questions", "num_bad", "num_images"), PARTS)
@pytest.mark.filterwarnings("ignore:This SLAKE")
def test_every_split_and_language_is_read(split, subset, num_questions, num_bad, num_images):
    skipped = []
    questions = load_questions(SLAKE, split, subset, skipped)
    assert (len(questions), len(skipped)) == (num_questions - num_bad, num_bad)
    images = {row["image"] for row in questions}
    if subset == "all":
        assert images == {row["image"] for name in ("en", "zh") for row in load_questions(SLAKE, split, name, [])}
    else:
        assert len(images) == num_images
    assert bool(count_differences(questions, split, subset)) == (num_bad > 0)
    if num_bad:
        with pytest.raises(ValueError, match=r"`answer` is empty|xmlab0/source\.jpg is missing"):
            load_questions(SLAKE, split, subset)


def test_the_english_test_split_has_the_questions_of_the_literature():
    kinds = [row["answer_type"] for row in load_questions(SLAKE)]
    assert (kinds.count("CLOSED"), kinds.count("OPEN")) == (416, 645)


@pytest.mark.filterwarnings("ignore:This SLAKE")
def test_an_evaluation_names_the_bad_rows_of_both_splits(tmp_path):
    questions = load_questions(SLAKE, "validation", skipped=[])
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps([{"question_id": row["question_id"], "prediction": "no"} for row in questions]))
    arguments = {"benchmark": "slake", "data": str(SLAKE), "split": "validation", "predictions": str(answers)}
    with pytest.raises(ValueError, match=r"xmlab0/source\.jpg is missing"):
        evaluate_benchmark(EvaluationArguments(**arguments, output=str(tmp_path / "refused")))
    output = tmp_path / "output"
    metrics = evaluate_benchmark(EvaluationArguments(**arguments, output=str(output), on_bad_row="skip", images=False))
    assert metrics["run"]["num_questions"] == 1043
    assert metrics["differences"][0] == "1,043 questions instead of 1,053"
    assert metrics["differences"][1].startswith(
        "10 bad rows left out (qid 9835: slake/validate.json, row 0, `img_name`"
    )
    assert metrics["leakage"]["num_test_images_in_training"] == 0
    assert metrics["leakage"]["bad_training_rows"] == ["qid 1622: slake/train.json, row 1622, `answer` is empty."]
    assert str(SLAKE) not in (output / "metrics.json").read_text()
