import pytest

from tests.benchmarks import throughput as benchmark


def test_the_throughput_benchmark_prints_both_ways_their_ratio_and_how_many_answers_are_equal(capsys, monkeypatch):
    draw = benchmark.draw_questions
    monkeypatch.setattr(benchmark, "draw_questions", lambda folder: draw(folder, num_images=4, num_questions=9))
    options = "--models tiny --num_images 3 --max_new_tokens 4 --end_share 0 0.5 --num_repeats 1"
    benchmark.main(options.split())
    rows = capsys.readouterr().out.splitlines()[2:]
    assert len(rows) == 2
    for row in rows:
        name, _, _, num_questions, num_images, one, batched, ratio, equal = [
            cell.strip() for cell in row.strip("|").split("|")
        ]
        assert (name, num_images) == ("tiny", "3")
        assert float(ratio) == pytest.approx(float(batched) / float(one), rel=0.1)
        assert equal == f"{num_questions} of {num_questions}"


def test_every_model_that_is_named_is_measured(capsys, monkeypatch):
    draw = benchmark.draw_questions
    monkeypatch.setattr(benchmark, "draw_questions", lambda folder: draw(folder, num_images=2, num_questions=2))
    options = "--models tiny tiny --num_images 1 --max_new_tokens 1 --end_share 0 --num_repeats 1"
    benchmark.main(options.split())
    assert len(capsys.readouterr().out.splitlines()[2:]) == 2


def test_the_larger_model_has_the_size_that_is_told():
    questions = [{"question": "is there a mass"}]
    model, _ = benchmark.build_model("100M", questions)
    weights = sum(parameter.numel() for parameter in model.model.language_model.layers.parameters())
    tower = sum(parameter.numel() for parameter in model.model.vision_tower.parameters())
    assert (round(weights / 1e6), round(tower / 1e6)) == (106, 22)
