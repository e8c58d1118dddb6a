from logramed.trainer.phantoms import generate_phantoms
from tests.benchmarks import turn_retrieval as benchmark
from tests.tiny import tiny_processor
from tests.tiny_models import tiny_model


def test_the_turn_retrieval_benchmark_prints_recall_with_own_images_and_with_those_of_others(tmp_path, capsys):
    tiny_model(text_sizes={"vocab_size": 84}).save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    data = generate_phantoms(tmp_path / "data", num_train=2, num_validation=12, num_test=2, image_size=32)
    benchmark.main(["--model", str(tmp_path / "model"), "--data", str(data)])
    header, *rows = capsys.readouterr().out.splitlines()
    assert "own images" in header
    assert len([row for row in rows if row.startswith("recall_at_1_")]) == 6
    assert len([row for row in rows if row.startswith("matched_image_to_extended")]) == 1


def test_images_of_others_are_those_of_the_next_sample():
    rows = [{"id": number, "images": [f"{number}.png"]} for number in range(3)]
    swapped = benchmark.with_images_of_others(rows)
    assert [row["images"][0] for row in swapped] == ["1.png", "2.png", "0.png"]
    assert [row["id"] for row in swapped] == [0, 1, 2]
