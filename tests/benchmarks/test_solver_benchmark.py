import torch
from safetensors.torch import save_file

from tests.benchmarks import solver as benchmark


def test_the_solver_benchmark_prints_costs_and_times(tmp_path, capsys):
    node_costs, edge_costs, edges, _ = (values[0] for values in benchmark.step_problems(8, feature_size=16))
    costs = {key: torch.tensor([-1.0]) for key in ("release_cost", "best_known_partial_cost")}
    recorded = {"node_costs": node_costs, "edge_costs": edge_costs, "edge_index": edges, **costs}
    save_file({name: values.contiguous() for name, values in recorded.items()}, tmp_path / "hard_fwd_8.safetensors")
    options = "--num_starts 1 2 --num_seeds 1 --sizes 8 --num_repeats 1"
    benchmark.main(["--fixtures", str(tmp_path), *options.split()])
    out = capsys.readouterr().out
    assert "| hard_fwd_8 | -1.000 | -1.000 |" in out
    assert "| 8 |" in out
