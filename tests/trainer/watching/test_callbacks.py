import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from logramed.trainer import train
from logramed.trainer.trainer import LoGraMedTrainer
from logramed.trainer.watching.dry_run import take_longest
from tests.tiny import tiny_processor
from tests.trainer.test_train import write_recipe
from tests.trainer.test_trainer import arguments, small_model


ROOT = Path(__file__).parents[3]


def trained(folder, rows, **values):
    trainer = LoGraMedTrainer(
        small_model(), arguments(folder, **values), processing_class=tiny_processor(), train_dataset=rows
    )
    trainer.train()


def test_tensorboard_holds_the_curves_without_asking(tmp_path, data_file):
    recipe = write_recipe(tmp_path, data_file)
    text = (tmp_path / "recipe.yaml").read_text().replace("report_to: none\n", "")
    (tmp_path / "recipe.yaml").write_text(text)
    train.main([recipe])
    [folder] = [path.parent for path in (tmp_path / "run" / "runs").rglob("events*")]
    events = EventAccumulator(str(folder)).Reload()
    history = json.loads((tmp_path / "run" / "train_metrics.json").read_text())["log_history"]
    for name in ("loss", "alignment_loss", "matching_accuracy", "grad_norm"):
        values = [event.value for event in events.Scalars(f"train/{name}")]
        assert values == pytest.approx([entry[name] for entry in history if name in entry and "loss" in entry][:2])


def test_trackio_keeps_a_run_on_this_machine(tmp_path, rows, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    script = tmp_path / "script.py"  # trackio reads its folder when it is imported, so the run is a process of its own
    script.write_text(
        "from pathlib import Path\n"
        "from logramed.trainer.data import load_training_rows\n"
        "from tests.trainer.watching.test_callbacks import trained\n"
        f"rows = load_training_rows({str(tmp_path / 'data.json')!r}).dataset\n"
        f"trained(Path({str(tmp_path)!r}), rows, report_to='trackio', project='ours')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, str(script)], check=True, cwd=ROOT, env=environment)
    [database] = (tmp_path / "trackio").glob("ours*.db")
    with sqlite3.connect(database) as connection:
        logs = [json.loads(row[0]) for row in connection.execute("select metrics from metrics")]
    assert sum("train/alignment_loss" in log for log in logs) >= 3


def test_dry_run_tells_what_a_run_takes_and_writes_nothing(tmp_path, data_file, capsys):
    assert train.main([write_recipe(tmp_path, data_file), "--dry_run", "true"]) == 0
    printed = capsys.readouterr().out
    assert "Data: 8 rows. Trained: projector" in printed
    assert "A step on the longest rows:" in printed
    assert "The run: 2 steps of 4 rows" in printed
    assert "A checkpoint takes about 0.00 GiB" in printed
    assert not (tmp_path / "run").exists()


def test_dry_run_steps_on_the_rows_with_the_most_text(rows):
    longest = take_longest(rows, 3)["id"]
    lengths = {
        row["id"]: sum(len(part["text"] or "") for m in row["messages"] for part in m["content"]) for row in rows
    }
    assert min(lengths[row_id] for row_id in longest) >= sorted(lengths.values())[-3]
    assert len(take_longest(rows, 20)) == 20


def test_dry_run_names_what_would_end_the_run(tmp_path, data_file):
    (tmp_path / "images" / "3.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"id '3'.*unreadable image"):
        train.main([write_recipe(tmp_path, data_file), "--dry_run", "true"])
    recipe = write_recipe(tmp_path, data_file, first_stage_data=str(tmp_path / "nowhere.json"))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        train.main([recipe, "--dry_run", "true"])
