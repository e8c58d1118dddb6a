import pytest

from tests.benchmarks import objective as benchmark


SMALL = [
    *("--seeds", "2", "--num_steps", "4", "--report_every", "2", "--batch_size", "8"),
    *("--num_held_out", "20", "--feature_size", "8"),
]


def test_the_objective_benchmark_prints_a_row_for_each_objective(capsys):
    objectives = ["infonce", "multi_graph"]
    benchmark.main([*SMALL, "--objectives", *objectives])
    header, *rows = capsys.readouterr().out.splitlines()
    assert "recall@1" in header
    assert [row.split()[0] for row in rows] == objectives
    assert rows[0].count("/") == 2  # at steps 0, 2 and 4
    assert "+0.000±0.000" in rows[0]  # the first differs from itself by nothing


def test_all_objectives_of_the_benchmark_can_be_built():
    for options in benchmark.OBJECTIVES.values():
        benchmark.AlignmentObjective(benchmark.AlignmentConfig(alignment_preset="paper", **options))


def test_training_on_infonce_raises_the_toys_held_out_recall():
    options = benchmark.parse_arguments(["--num_steps", "60", "--view_noise", "0.1", "--report_every", "60"])
    objective = benchmark.AlignmentObjective(
        benchmark.AlignmentConfig(alignment_preset="paper", alignment_loss="infonce")
    )
    recalls = benchmark.train(objective, 0, options)["recalls"]
    assert recalls[0] < 0.05
    assert recalls[-1] > 0.3


def test_the_objective_benchmark_refuses_an_unknown_objective():
    with pytest.raises(SystemExit, match="triplet"):
        benchmark.main(["--objectives", "triplet"])


def test_intervals_are_those_of_student():
    assert benchmark.interval([0.0, 1.0, 2.0]) == "1.000±2.484"
