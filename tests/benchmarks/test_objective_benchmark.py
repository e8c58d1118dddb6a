import json

import pytest
from PIL import Image

from tests.benchmarks import objective as benchmark
from tests.benchmarks import objective_plot


SMALL = [
    *("--seeds", "2", "--num_steps", "4", "--report_every", "2", "--batch_size", "8"),
    *("--num_held_out", "20", "--feature_size", "8"),
]


def test_the_objective_benchmark_prints_a_row_for_each_objective_and_keeps_the_runs(capsys, tmp_path):
    output = tmp_path / "runs.jsonl"
    objectives = ["infonce", "first_order_perturbed"]
    decode = ["--decode_weights", "0", "0.1"]
    benchmark.main([*SMALL, "--objectives", *objectives, "--set", "noise_scale=0.2", *decode, "--output", str(output)])
    header, *rows = capsys.readouterr().out.splitlines()
    assert "recall@1" in header
    assert [row.split()[0] for row in rows if "decoded" not in row] == objectives
    assert rows[0].count("/") == 2  # at steps 0, 2 and 4
    assert "+0.000±0.000" in rows[0]  # the first differs from itself by nothing
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record["objective"] for record in records] == objectives
    assert [len(run["recalls"]) for run in records[0]["runs"]] == [3, 3]


def test_all_objectives_of_the_benchmark_can_be_built():
    for options in benchmark.OBJECTIVES.values():
        benchmark.AlignmentObjective(benchmark.AlignmentConfig(**options))


def test_training_on_infonce_raises_the_toys_held_out_recall():
    options = benchmark.parse_arguments(["--num_steps", "60", "--view_noise", "0.1", "--report_every", "60"])
    objective = benchmark.AlignmentObjective(benchmark.AlignmentConfig(alignment_loss="infonce"))
    recalls = benchmark.train(objective, 0, options)["recalls"]
    assert recalls[0] < 0.05
    assert recalls[-1] > 0.3


def test_the_causes_are_shown_one_by_one(capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "FAULTS", ("shared edges", "own share"))
    benchmark.main(["--part", "causes", *SMALL])
    _, *rows = capsys.readouterr().out.splitlines()
    leaks = {row[:28].strip(): float(row[28:].split()[0]) for row in rows}
    assert list(leaks) == ["none", "shared edges", "own share", "all", "paper"]
    assert leaks["none"] < 1.5 / 12 < leaks["paper"]


def test_decoding_ambiguous_items_needs_edges(capsys):
    benchmark.main(["--part", "decoding", "--sizes", "24", "--seeds", "2"])
    _, *rows = capsys.readouterr().out.splitlines()
    without, *_, with_edges, _ = (float(cell.split("±")[0]) for cell in rows[0].split("|")[1:])
    assert without < 0.5 < 0.8 < with_edges


def test_the_objective_benchmark_refuses_an_unknown_objective():
    with pytest.raises(SystemExit, match="triplet"):
        benchmark.main(["--objectives", "triplet"])


def test_intervals_are_those_of_student():
    assert benchmark.interval([0.0, 1.0, 2.0]) == "1.000±2.484"


def test_the_plot_pairs_runs_by_seed_and_is_drawn(tmp_path):
    for first_seed, name in ((0, "infonce"), (1, "infonce"), (1, "multi_graph")):
        options = ["--objectives", name, "--first_seed", str(first_seed), "--output", str(tmp_path / "runs.jsonl")]
        benchmark.main([*SMALL, *options])
    [(setting, objectives)] = objective_plot.read_runs([tmp_path / "runs.jsonl"]).items()
    assert setting == (8, 8, 0.5, 0.0)
    assert sorted(objectives["infonce"]) == [0, 1, 2]
    ends = [{seed: run["recalls"][-1] for seed, run in objectives[name].items()} for name in objectives]
    mean, _ = objective_plot.paired_difference(objectives)
    assert mean == pytest.approx(sum(ends[1][seed] - ends[0][seed] for seed in (1, 2)) / 2)
    objective_plot.main([str(tmp_path / "runs.jsonl"), "--output", str(tmp_path / "plot.png")])
    with Image.open(tmp_path / "plot.png") as image:
        assert image.width > 1000
