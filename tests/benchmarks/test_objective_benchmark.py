import pytest

from tests.benchmarks import objective as benchmark


def test_the_objective_benchmark_prints_a_row_for_each_objective(capsys):
    options = "--seeds 1 --num_steps 4 --report_every 2 --batch_size 8 --num_held_out 20 --feature_size 8"
    benchmark.main([*options.split(), "--objectives", "first_order", "infonce", "--set", "noise_scale=0.2"])
    header, *rows = capsys.readouterr().out.splitlines()
    assert "recall@1" in header
    assert [row.split()[0] for row in rows] == ["first_order", "infonce"]
    assert all(row.count("/") == 2 for row in rows)  # at steps 0, 2 and 4


def test_training_on_infonce_raises_the_toys_held_out_recall():
    options = benchmark.parse_arguments(["--num_steps", "60", "--view_noise", "0.1", "--report_every", "60"])
    recalls = benchmark.train(benchmark.AlignmentObjective("infonce"), 0, options)["recalls"]
    assert recalls[0] < 0.05
    assert recalls[-1] > 0.3


def test_the_objective_benchmark_refuses_an_unknown_objective():
    with pytest.raises(SystemExit, match="triplet"):
        benchmark.main(["--objectives", "triplet"])
