import shlex

from logramed.trainer import quickstart
from logramed.trainer.train import parse_arguments


def test_quickstart_leaves_a_model_and_says_what_came_out(tmp_path, monkeypatch, capsys):
    draw = quickstart.generate_phantoms
    few = {"num_train": 32, "num_validation": 16, "num_test": 16}
    monkeypatch.setattr(quickstart, "generate_phantoms", lambda folder, seed: draw(folder, seed=seed, **few))
    assert quickstart.main(["--output", str(tmp_path), "--max_steps", "2"]) == 0
    table = capsys.readouterr().out.split("Held-out phantoms")[1]
    for words in ("closed accuracy", "without sight", "recall@1, image to answer", "Question", "Answer"):
        assert words in table
    next_command = shlex.split(table.strip().splitlines()[-1])
    _, _, training = parse_arguments(next_command[2:])
    assert training.alignment_weight == 0
    assert (tmp_path / "model" / "config.json").is_file()


def test_quickstart_ends_where_sigterm_ended_its_training(tmp_path, monkeypatch):
    draw = quickstart.generate_phantoms
    few = {"num_train": 4, "num_validation": 2, "num_test": 2}
    monkeypatch.setattr(quickstart, "generate_phantoms", lambda folder, seed: draw(folder, seed=seed, **few))
    monkeypatch.setattr(quickstart, "train", lambda arguments: 143)
    assert quickstart.main(["--output", str(tmp_path)]) == 143
    assert not (tmp_path / "evaluation").exists()
