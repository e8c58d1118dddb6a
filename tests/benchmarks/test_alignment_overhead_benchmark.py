import pytest
import torch

from tests.benchmarks import alignment_overhead as benchmark


def test_the_overhead_benchmark_prints_both_ratios_and_whether_the_aim_was_met(capsys):
    benchmark.main(["--models", "tiny", "--batch_size", "6", "--num_repeats", "1"])
    [row] = capsys.readouterr().out.splitlines()[2:]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    name, without, with_alignment, _, with_states, ratio, expected, *verdicts = cells
    assert name == "tiny"
    assert float(ratio) == pytest.approx(float(with_alignment) / float(without), rel=0.01)
    assert 1.1 < float(expected) < 3  # the texts of the nodes are tokens too
    (_, of_states) = quotients = [float(verdict.split()[0]) for verdict in verdicts]
    assert of_states == pytest.approx(float(with_states) / float(without), rel=0.01)
    for verdict, quotient in zip(verdicts, quotients, strict=True):
        assert verdict.endswith("met" if quotient <= benchmark.TOLERANCE else "missed")


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")
def test_the_large_model_is_refused_without_a_gpu(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--models", "7B"])
    assert "the model 7B needs a CUDA device" in capsys.readouterr().err
