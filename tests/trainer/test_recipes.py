"""Recipes against the tables that say where their values come from, and engines' configurations against our model."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy

from logramed import LoGraMedForConditionalGeneration
from logramed.trainer.alignment import GraphNetwork
from logramed.trainer.alignment.aligned_model import AlignedModel
from logramed.trainer.engines.devices import name_units
from logramed.trainer.train import RECIPE_FOLDER, parse_arguments
from logramed.trainer.train import main as train_main
from tests.tiny_models import tiny_model
from tests.trainer.test_train import NEW_MODEL, write_recipe
from tests.vlm_models import tiny_qwen2_5_vl_model


ROOT = Path(__file__).parents[2]
OTHER_RECIPES = (
    "quickstart.yaml",
    "slake_small.yaml",
    "phantom_volumes.yaml",
    "medgemma_4b_lora.yaml",
    "qwen2_5_vl_3b_lora.yaml",
    "smolvlm_256m.yaml",
)
PAPER_RECIPES = sorted(path.name for path in RECIPE_FOLDER.glob("*.yaml") if path.name not in OTHER_RECIPES)
ENGINES = sorted(path.name for path in RECIPE_FOLDER.glob("accelerate/*.yaml"))


def read_cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def read_tables():
    """For each recipe the arguments and values of the README's tables: its own columns, and those for all."""
    values = {name: {} for name in PAPER_RECIPES}
    for table in re.findall(r"(?:^\|.*\n)+", (RECIPE_FOLDER / "README.md").read_text(), flags=re.MULTILINE):
        header, _, *rows = map(read_cells, table.splitlines())
        if header[0] != "argument":
            continue
        assert header[-1] == "from"
        names = [cell.strip("`") for cell in header[1:-1]]
        for argument, *cells, source in rows:
            assert source, f"{argument} comes from nowhere"
            for name, cell in zip(names, cells, strict=True):
                for recipe in PAPER_RECIPES if name == "value" else [name]:
                    if cell:
                        values[recipe][argument.strip("`")] = cell
    return values


@pytest.mark.parametrize("name", PAPER_RECIPES)
def test_recipe_holds_exactly_the_values_of_the_tables(name):
    recipe, table = yaml.safe_load((RECIPE_FOLDER / name).read_text()), read_tables()[name]
    assert recipe.keys() == table.keys()
    for argument, value in recipe.items():
        expected = table[argument]
        same = float(expected) == value if type(value) in (int, float) else expected == str(value)
        assert same or expected == json.dumps(value), (argument, value, expected)


# (learning rate, epochs, rows a device, accumulation, seed) of the release's scripts and logs.
RELEASED = {
    "stage1_projector.yaml": (2e-3, 1, 16, 2, 42),
    "stage2_alignment.yaml": (2e-5, 3, 16, 1, 42),
    "stage2_10percent.yaml": (2e-5, 3, 16, 1, 42),
    "stage2_40percent.yaml": (2e-5, 3, 8, 1, 42),
    "llava_med_baseline.yaml": (2e-5, 3, 16, 1, 42),
    "finetune_vqa_rad.yaml": (4e-5, 15, 32, 1, 2802),
    "finetune_vqa_rad_dci.yaml": (2e-5, 15, 32, 1, 2802),
    "finetune_slake.yaml": (4e-5, 15, 64, 1, 2802),
    "finetune_slake_dci.yaml": (4e-5, 18, 64, 1, 2802),
    "finetune_path_vqa.yaml": (3e-5, 15, 32, 1, 2802),
    "finetune_path_vqa_dci.yaml": (2e-5, 15, 32, 1, 2802),
}


@pytest.mark.parametrize("name", PAPER_RECIPES)
def test_recipe_parses_to_the_released_values(name):
    # Loss scaling of float16 is nothing for a CPU; everything else is parsed as it stands.
    model, data, training = parse_arguments([name, "--use_cpu", "true", "--fp16", "false"])
    got = (
        training.learning_rate,
        training.num_train_epochs,
        training.per_device_train_batch_size,
        training.gradient_accumulation_steps,
        training.seed,
    )
    assert got == RELEASED[name]
    aligned = name.startswith("stage2")
    assert (training.alignment_weight, training.lr_scheduler_type) == (float(aligned), "cosine")
    assert training.get_warmup_steps(1000) == 30
    assert training.activation_checkpointing
    assert model.train == {"stage1": "projector", "stage2": "projector,language"}.get(name[:6], "projector,language")
    assert (data.train_ids is not None) == ("percent" in name)


def test_every_paper_recipe_says_how_it_is_launched_with_the_devices_of_the_paper():
    for name in PAPER_RECIPES:
        head = (RECIPE_FOLDER / name).read_text().split("\n\n")[0]
        devices = 2 if name.startswith("finetune") else 4
        assert f"--num_processes {devices} " in head
        assert f"trainer/recipes/{name}" in head


@pytest.mark.parametrize("name", ENGINES)
def test_accelerate_loads_the_configuration_of_an_engine(name):
    config = load_config_from_file(str(RECIPE_FOLDER / "accelerate" / name)).to_dict()
    engine = {"ddp": "MULTI_GPU", "fsdp2": "FSDP"}.get(name.removesuffix(".yaml"), "DEEPSPEED")
    assert str(config["distributed_type"]) == engine
    assert config["mixed_precision"] == "no"  # the recipe says it
    if engine == "DEEPSPEED":
        assert f"zero{config['deepspeed_config']['zero_stage']}" in name


def fsdp_plugin(**changes):
    config = load_config_from_file(str(RECIPE_FOLDER / "accelerate" / "fsdp2.yaml")).to_dict()["fsdp_config"]
    values = {
        "fsdp_version": config["fsdp_version"],
        "auto_wrap_policy": config["fsdp_auto_wrap_policy"].lower(),
        "state_dict_type": config["fsdp_state_dict_type"],
        "reshard_after_forward": config["fsdp_reshard_after_forward"],
    }
    return FullyShardedDataParallelPlugin(**{**values, **changes})


def units_of_fsdp(model):
    """The names of the modules that FSDP2 splits by themselves, with the recipe's configuration."""
    plugin, wrapped = fsdp_plugin(), AlignedModel(model, GraphNetwork(32))
    name_units(wrapped, SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)))
    policy = fsdp2_prepare_auto_wrap_policy(plugin, wrapped)
    return {name for name, module in wrapped.named_modules() if policy(module)}


def test_fsdp_splits_the_layers_of_tower_and_language_model():
    layers = {f"model.model.vision_tower.encoder.layers.{number}" for number in range(3)}
    layers |= {f"model.model.language_model.layers.{number}" for number in range(2)}
    assert units_of_fsdp(tiny_model()) == layers | {"model.model.vision_tower.embeddings", "graph_network"}
    assert str(fsdp_plugin().state_dict_type) == "StateDictType.FULL_STATE_DICT"


def test_fsdp_splits_the_layers_of_another_family():
    layers = {f"model.model.visual.blocks.{number}" for number in range(2)}
    layers |= {f"model.model.language_model.layers.{number}" for number in range(2)}
    assert units_of_fsdp(tiny_qwen2_5_vl_model()) == layers | {"graph_network"}


def test_why_the_trainer_names_the_units_of_fsdp():
    with pytest.raises(ValueError, match="Could not find the transformer layer class CLIPTextEmbeddings"):
        fsdp2_prepare_auto_wrap_policy(fsdp_plugin(), tiny_model())


STUBS = {
    "scontrol": """
        echo "scontrol $*" >> "$LOG"
        if [ "$1" = show ]; then echo node0; echo node1; fi
    """,
    "srun": """
        while [[ $1 == --* ]]; do shift; done
        echo $$ > "$LOG.step"
        SLURM_NODEID=1 exec "$@"
    """,
    "scancel": """
        echo "scancel $*" >> "$LOG"
        kill -TERM "$(cat "$LOG.step")"
    """,
    # As a run that is told to end: it saves, and its launcher ends with an error.
    "accelerate": """
        trap 'sleep 0.2; echo saved >> "$LOG"; exit 1' TERM
        echo "accelerate $* address=$MAIN_ADDRESS grace=$TORCH_ELASTIC_SHUTDOWN_TIMEOUT" >> "$LOG"
        if [ -z "$WAIT" ]; then exit 3; fi
        while true; do sleep 0.05; done
    """,
}


@pytest.fixture
def job(tmp_path):
    """Starts the job script beside stand-ins for SLURM and accelerate; gives the process and their log."""
    for name, body in STUBS.items():
        stub = tmp_path / name
        stub.write_text(f"#!/bin/bash\n{body}\n")
        stub.chmod(0o755)
    log = tmp_path / "log"
    log.touch()

    def start(**environment):
        slurm = {"SLURM_JOB_ID": "70005", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8"}
        slurm |= {"SLURM_JOB_NODELIST": "node[0-1]", "LOG": str(log), "WAIT": "", **environment}
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        script = str(RECIPE_FOLDER / "slurm" / "train.sbatch")
        command = ["bash", script, "trainer/recipes/stage2_alignment.yaml", "--save_steps", "200"]
        return subprocess.Popen(command, env={**os.environ, **slurm, "PATH": path}, cwd=ROOT), log

    return start


def test_job_script_launches_the_run_on_every_node(job):
    process, log = job()
    assert process.wait(timeout=30) == 3  # what the run ended with
    [launched] = [line for line in log.read_text().splitlines() if line.startswith("accelerate")]
    for words in (
        "--config_file trainer/recipes/accelerate/fsdp2.yaml --num_machines 2 --num_processes 16 --machine_rank 1",
        "trainer/train.py trainer/recipes/stage2_alignment.yaml --save_steps 200 address=node0 grace=280",
    ):
        assert words in launched
    assert "requeue" not in log.read_text()


def test_job_script_hands_sigterm_on_waits_for_the_save_and_requeues(job):
    process, log = job(WAIT="yes", SLURM_RESTART_COUNT="1")
    deadline = time.monotonic() + 30
    while "accelerate" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) != 0
    lines = log.read_text().splitlines()
    assert lines[-3:] == ["scancel --signal=TERM 70005", "saved", "scontrol requeue 70005"]
    assert "--save_steps 200 --resume_from_checkpoint true" in lines[-4]


def train_on_two_processes(engine, recipe):
    """The logged steps of a run of two processes on the CPU; without `--cpu`, with which accelerate starts but one."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [str(RECIPE_FOLDER / "accelerate" / engine), "--num_processes", "2", "--main_process_port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, "trainer/train.py", recipe], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]
    results = Path(yaml.safe_load(Path(recipe).read_text())["output_dir"]) / "train_metrics.json"
    history = json.loads(results.read_text())["log_history"]
    return [entry for entry in history if "language_modeling_loss" in entry]


def test_ddp_configuration_trains_on_two_processes(tmp_path, data_file):
    [step] = train_on_two_processes(
        "ddp.yaml", write_recipe(tmp_path, data_file, per_device_train_batch_size=2, max_steps=1)
    )
    assert step["epoch"] == 0.5  # two processes took two each of the eight samples


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["deepspeed_zero2.yaml", "deepspeed_zero3.yaml"])
def test_deepspeed_gives_the_losses_and_weights_of_ddp(engine, tmp_path, data_file):
    pytest.importorskip("deepspeed")
    start = Path(yaml.safe_load(Path(write_recipe(tmp_path, data_file, max_steps=1)).read_text())["output_dir"])
    train_main([str(tmp_path / "recipe.yaml")])  # ZeRO-3 needs a model that exists
    runs = {}
    for name in ("ddp.yaml", engine):
        changes = {"model": str(start), "output_dir": str(tmp_path / name), "activation_checkpointing": True}
        recipe = write_recipe(tmp_path, data_file, gradient_accumulation_steps=2, per_device_train_batch_size=2)
        values = {**yaml.safe_load(Path(recipe).read_text()), **changes}
        Path(recipe).write_text(yaml.safe_dump({key: value for key, value in values.items() if key not in NEW_MODEL}))
        runs[name] = train_on_two_processes(name, recipe)
    for ours, theirs in zip(*runs.values(), strict=True):
        for key in ("loss", "language_modeling_loss", "alignment_loss", "grad_norm"):
            assert theirs[key] == pytest.approx(ours[key], rel=1e-3), key
    expected = LoGraMedForConditionalGeneration.from_pretrained(tmp_path / "ddp.yaml").state_dict()
    got = LoGraMedForConditionalGeneration.from_pretrained(tmp_path / engine).state_dict()  # whole, on one device
    assert got.keys() == expected.keys()
    # AdamW's first steps are as large as the learning rate, whatever the gradient: an error shows there.
    assert max((got[key] - expected[key]).abs().max().item() for key in got) < 1e-4
