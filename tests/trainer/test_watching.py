import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from logramed.trainer import train
from logramed.trainer.dry_run import dry_run
from logramed.trainer.run_pictures import MatchingPictures
from logramed.trainer.trainer import LoGraMedTrainer
from logramed.trainer.watching import compare_gradients
from tests.tiny import tiny_processor
from tests.trainer.test_train import write_recipe
from tests.trainer.test_trainer import arguments, logged, small_model, weights


ROOT = Path(__file__).parents[2]


def trained(folder, rows, pictures=0, **values):
    trainer = LoGraMedTrainer(
        small_model(), arguments(folder, **values), processing_class=tiny_processor(), train_dataset=rows
    )
    if pictures:
        trainer.add_callback(MatchingPictures(trainer, pictures))
    trainer.train()
    return trainer


def test_tensorboard_holds_the_curves_without_asking(tmp_path, data_file):
    recipe = write_recipe(tmp_path, data_file, matching_picture_steps=1)
    text = (tmp_path / "recipe.yaml").read_text().replace("report_to: none\n", "")
    (tmp_path / "recipe.yaml").write_text(text)
    train.main([recipe])
    [folder] = [path.parent for path in (tmp_path / "run" / "runs").rglob("events*")]
    events = EventAccumulator(str(folder)).Reload()
    history = json.loads((tmp_path / "run" / "train_metrics.json").read_text())["log_history"]
    for name in ("loss", "alignment_loss", "matching_accuracy", "memory_gib", "grad_norm"):
        values = [event.value for event in events.Scalars(f"train/{name}")]
        assert values == pytest.approx([entry[name] for entry in history if name in entry and "loss" in entry][:2])
    assert [event.step for event in events.Images("matching")] == [1, 2]


def test_trackio_keeps_a_run_on_this_machine(tmp_path, rows, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    script = tmp_path / "script.py"  # trackio reads its folder when it is imported, so the run is a process of its own
    script.write_text(
        "from pathlib import Path\n"
        "from logramed.trainer.data import load_training_rows\n"
        "from tests.trainer.test_watching import trained\n"
        f"rows = load_training_rows({str(tmp_path / 'data.json')!r}).dataset\n"
        f"trained(Path({str(tmp_path)!r}), rows, report_to='trackio', project='ours')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, str(script)], check=True, cwd=ROOT, env=environment)
    [database] = (tmp_path / "trackio").glob("ours*.db")
    with sqlite3.connect(database) as connection:
        logs = [json.loads(row[0]) for row in connection.execute("select metrics from metrics")]
    assert sum("train/alignment_loss" in log for log in logs) >= 3


def test_speed_and_memory_stand_beside_the_losses(tmp_path, rows):
    history = trained(tmp_path, rows, max_steps=3).state.log_history
    assert all(entry["memory_gib"] > 0.05 for entry in history if "loss" in entry)
    assert all(entry["tokens_per_second"] > 10 for entry in history[1:3])


def test_gradient_norms_are_those_of_two_backward_passes():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    output = model(torch.randn(5, 4))
    losses = output.pow(2).mean(), output[:, 0].sum()
    compared = compare_gradients(model, *losses)
    gradients = []
    for loss in losses:
        model.zero_grad()
        loss.backward(retain_graph=True)
        gradients.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]))
    assert compared["gradient_norm_language_modeling"] == pytest.approx(gradients[0].norm().item(), rel=1e-5)
    assert compared["gradient_norm_alignment"] == pytest.approx(gradients[1].norm().item(), rel=1e-5)
    cosine = torch.cosine_similarity(*gradients, dim=0).item()
    assert compared["gradient_cosine"] == pytest.approx(cosine, rel=1e-4)


def test_gradients_are_those_of_the_first_micro_batch_also_of_a_graph_over_all(tmp_path, rows, monkeypatch):
    calls = []

    def count(*arguments):
        calls.append(arguments)
        return compare_gradients(*arguments)

    monkeypatch.setattr("logramed.trainer.trainer.compare_gradients", count)
    values = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "accumulate_graph": True}
    trained(tmp_path, rows, max_steps=2, gradient_norm_steps=1, **values)
    assert len(calls) == 2


def test_watching_changes_nothing_in_training(tmp_path, rows):
    plain = trained(tmp_path / "plain", rows, max_steps=4)
    watched = trained(tmp_path / "watched", rows, max_steps=4, pictures=2, gradient_norm_steps=2)
    assert logged(watched, "loss") == logged(plain, "loss")
    assert torch.equal(weights(watched), weights(plain))
    with_norms = [entry["step"] for entry in watched.state.log_history if "gradient_norm_alignment" in entry]
    assert with_norms == [2, 4]
    pictures = sorted(path.name for path in (tmp_path / "watched" / "run" / "matchings").iterdir())
    assert pictures == ["step_0000002.png", "step_0000004.png"]
    with Image.open(tmp_path / "watched" / "run" / "matchings" / pictures[0]) as picture:
        assert picture.size[0] > 500


def test_dry_run_finds_nothing_against_a_good_run_and_writes_nothing(tmp_path, data_file, capsys):
    assert train.main([write_recipe(tmp_path, data_file), "--dry_run", "true"]) == 0
    printed = capsys.readouterr().out
    assert "Data: 8 rows with 8 images, 8 of them opened." in printed
    assert "A step on the longest rows:" in printed
    assert "2 steps of 4 rows" in printed
    assert "Nothing stands against this run" in printed
    assert not (tmp_path / "run").exists()


def test_dry_run_lists_what_it_finds_all_at_once(tmp_path, data_file, capsys):
    (tmp_path / "images" / "3.png").write_bytes(b"broken")
    (tmp_path / "images" / "5.png").write_bytes(b"broken")
    (tmp_path / "run" / "checkpoint-9").mkdir(parents=True)
    recipe = write_recipe(tmp_path, data_file, num_neighbors=6, save_steps=1)
    assert train.main([recipe, "--dry_run", "true"]) == 1
    printed = capsys.readouterr().out
    assert "Row '3': cannot read image" in printed
    assert "Row '5': cannot read image" in printed
    assert "holds 1 checkpoint(s) of other runs (without an id), which are left alone" in printed
    assert "4 nodes, too few for `num_neighbors` 6" in printed


def test_dry_run_names_data_that_cannot_be_read(tmp_path, rows):
    def load_rows(_):
        raise FileNotFoundError("There is no file nowhere.json.")

    report = dry_run(arguments(tmp_path), load_rows, lambda rows: None)
    assert report.errors == ["data: FileNotFoundError: There is no file nowhere.json."]


def test_dry_run_looks_at_the_data_of_the_first_stage(tmp_path, data_file, capsys):
    recipe = write_recipe(tmp_path, data_file, first_stage_data=str(tmp_path / "nowhere.json"))
    assert train.main([recipe, "--dry_run", "true"]) == 1
    assert "nowhere.json" in capsys.readouterr().out


def test_a_step_that_would_take_long_is_not_taken_and_that_is_said(tmp_path, data_file, capsys, monkeypatch):
    monkeypatch.setattr("logramed.trainer.dry_run.time_of_first_row", lambda trainer: 100.0)
    assert train.main([write_recipe(tmp_path, data_file), "--dry_run", "true"]) == 0
    assert "memory and time of a step were not checked" in capsys.readouterr().out
