import torch
from safetensors.torch import save_file

from tests.benchmarks import solver as benchmark


def test_the_solver_benchmark_prints_costs_and_times(tmp_path, capsys):
    node_costs, edge_costs, edges, _ = (values[0] for values in benchmark.step_problems("hard", 8, 0, feature_size=16))
    costs = {key: torch.tensor([-1.0]) for key in ("release_cost", "best_known_cost", "best_known_partial_cost")}
    recorded = {"node_costs": node_costs, "edge_costs": edge_costs, "edge_index": edges, **costs}
    save_file({name: values.contiguous() for name, values in recorded.items()}, tmp_path / "hard_fwd_8.safetensors")
    options = "--efforts 0.1 --num_seeds 1 --sizes 8 --num_repeats 1 --large_sizes"
    benchmark.main(["--fixtures", str(tmp_path), *options.split()])
    out = capsys.readouterr().out
    assert "| hard_fwd_8 | -1.000" in out
    assert "| hard | 0.1 | allowed |" in out
    assert out.count("| 8 | easy |") == 2


def test_the_solver_benchmark_prints_peak_memory(capsys):
    benchmark.main(["--peak_memory", "16"])
    assert capsys.readouterr().out.startswith("| 16 | ")
