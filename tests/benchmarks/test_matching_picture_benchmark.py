import pytest
from PIL import Image

from logramed.trainer.data import load_training_rows
from logramed.trainer.phantoms import generate_phantoms
from tests.benchmarks import matching_picture as benchmark
from tests.tiny import tiny_processor
from tests.tiny_models import tiny_model


@pytest.fixture
def folders(tmp_path):
    tiny_model(text_sizes={"vocab_size": 84}).save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    return tmp_path, generate_phantoms(tmp_path / "data", num_train=2, num_validation=12, num_test=2, image_size=32)


def test_the_matching_picture_benchmark_prints_recall_and_writes_a_picture(folders, capsys):
    folder, data = folders
    options = {"--model": folder / "model", "--data": data, "--output": folder / "matching.png", "--words": "in"}
    benchmark.main([str(word) for option in options.items() for word in option])
    header, *rows, last = capsys.readouterr().out.splitlines()
    assert "own images" in header
    assert len([row for row in rows if row.startswith("recall_at_1_")]) == 6
    assert len([row for row in rows if row.startswith("matched_image_to_extended")]) == 2
    assert str(folder / "matching.png") in last
    with Image.open(folder / "matching.png") as image:
        assert image.format == "PNG"


def test_images_of_others_are_those_of_the_next_sample():
    rows = [{"id": number, "images": [f"{number}.png"]} for number in range(3)]
    swapped = benchmark.with_images_of_others(rows)
    assert [row["images"][0] for row in swapped] == ["1.png", "2.png", "0.png"]
    assert [row["id"] for row in swapped] == [0, 1, 2]


def test_samples_in_the_picture_hold_all_words_and_more_turns_than_are_drawn(folders):
    rows = list(load_training_rows(folders[1] / "validation.json").dataset)
    chosen = benchmark.choose_turns(rows, ["MRI"], 2, 3)
    assert 0 < len(chosen) <= 2
    for row in chosen:
        assert "MRI" in " ".join(row["extended_answers"])
        [whole] = [other for other in rows if other["id"] == row["id"]]
        assert row["extended_answers"] == whole["extended_answers"][-3:]
        assert len(whole["extended_answers"]) > 3
