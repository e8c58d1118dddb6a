from tests.benchmarks import vqa_scoring as benchmark


def test_the_scoring_benchmark_prints_a_row_for_each_protocol(capsys):
    benchmark.main(["--num_questions", "40", "--num_candidates", "5"])
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| strict", "| release"]
    assert all(" | 40 | 5 | " in row for row in rows)
