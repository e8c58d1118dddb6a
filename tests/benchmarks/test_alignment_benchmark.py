import torch

from tests.benchmarks import alignment as benchmark


def test_the_alignment_benchmark_prints_a_row_for_each_network(capsys):
    options = "--sizes 8 --dims 8 --kinds hard --repeats 1 --graph_hidden_size 4 --effort 0.1 --device cpu"
    benchmark.main(options.split())
    header, columns, *rows = capsys.readouterr().out.splitlines()
    assert header.startswith("cpu")
    assert [row.split()[:4] for row in rows] == [["8", "8", "hard", "8"], ["8", "8", "hard", "4"]]
    assert all(len(row.split()) == len(columns.split()) for row in rows)


def test_easy_modalities_are_close_and_hard_ones_are_not():
    def cosine(kind):
        features = benchmark.make_features(4, 64, kind, "cpu")
        return torch.cosine_similarity(features["image"], features["answer"]).mean()

    assert cosine("easy") > 0.9
    assert cosine("hard").abs() < 0.5
