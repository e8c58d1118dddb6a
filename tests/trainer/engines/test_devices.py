"""
Two gloo processes against one with the joint batch: losses and the gradient of every parameter. All that two processes
do here is done in one launch, in float64, so that equal means equal.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.utils import DistributedType

from logramed import LoGraMedForConditionalGeneration
from logramed.trainer.alignment import GraphNetwork
from logramed.trainer.alignment.aligned_model import AlignedModel
from logramed.trainer.alignment.alignment_head import AlignmentHead
from logramed.trainer.arguments import LoGraMedTrainingArguments
from logramed.trainer.data import questions_of_rows
from logramed.trainer.engines.devices import check_engine, name_units
from tests.benchmarks import kill_resume
from tests.trainer.conftest import write_data_file
from tests.trainer.gradient_steps import UNITS, small_model, take_steps, uneven_turns
from tests.trainer.test_train import write_recipe


pytestmark = pytest.mark.usefixtures("default_text_encoder")


EIGHT = list(range(8))
DEALT_IN_TWOS = [0, 1, 4, 5, 2, 3, 6, 7]  # batches go to the processes in turn: 0 to 3 to the first, the others after
JOINT = {"gather_graph": True}
ACCUMULATED = {**JOINT, "accumulate_graph": True, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
NOISY = {"alignment_loss": "paper"}
TURNS, SPANS = ({"alignment_granularity": granularity} for granularity in ("turn", "span"))
TWO_STEPS = {"max_steps": 2}
SAVED = {"learning_rate": 0.1, "optim": "adamw_torch", "save_strategy": "steps", "save_steps": 1}

# What two processes do, to be compared with one process that has eight samples a batch.
JOINT_STEPS = {
    "ddp": {"values": JOINT},
    "ddp_turns": {"values": {**JOINT, **TURNS}, "uneven": True},
    "ddp_noise_and_dropout": {"values": {**JOINT, **NOISY}, "graph_dropout": 0.3},
    "ddp_accumulated": {"values": {**ACCUMULATED, **SPANS}, "uneven": True},
    "ddp_accumulated_unused": {"values": {**ACCUMULATED, "ddp_find_unused_parameters": False}},
    "ddp_two_steps": {"values": {**ACCUMULATED, **TWO_STEPS}},
    "ddp_adapters": {"values": JOINT, "adapters": True},
    "fsdp_without_alignment": {"values": {"alignment_weight": 0.0}, "fsdp": UNITS},
    "fsdp": {"values": JOINT, "fsdp": UNITS},
    "fsdp_default_units": {"values": JOINT, "fsdp": "default"},
    "fsdp_tied": {"values": JOINT, "fsdp": UNITS, "tied": True},
    "fsdp_turns": {"values": {**JOINT, **TURNS}, "uneven": True, "fsdp": UNITS},
    "fsdp_accumulated": {"values": ACCUMULATED, "fsdp": UNITS},
    "fsdp_adapters": {"values": ACCUMULATED, "fsdp": UNITS[:2], "adapters": True},
    "fsdp_graph_network": {"values": {**ACCUMULATED, **TWO_STEPS}, "fsdp": [*UNITS, "GraphNetwork"], "tied": True},
}
# The same with a checkpoint, and an evaluation at the end.
SAVED_STEPS = {
    "ddp_saved": {"values": {**JOINT, **SAVED}},
    "fsdp_saved": {"values": {**JOINT, **SAVED, "max_steps": 2}, "fsdp": UNITS},
}
OTHER_STEPS = {
    # Each process has samples 0 to 3, and a graph of its own.
    "ddp_apart": {"values": {}, "dealt": [0, 1, 2, 3, 0, 1, 2, 3], "uneven": True, "evaluate": True},
    "ddp_apart_accumulated": {
        "values": {**ACCUMULATED, "gather_graph": False},
        "dealt": [0, 1, 0, 1, 2, 3, 2, 3],
        "uneven": True,
        "evaluate": True,
    },
    "fsdp_bfloat16": {
        "values": {**ACCUMULATED, **TWO_STEPS, "bf16": True, "gradient_checkpointing": True},
        "fsdp": "default",
        "dtype": "float32",
    },
    "fsdp_resumed": {
        "values": {**SAVED_STEPS["fsdp_saved"]["values"], "eval_strategy": "steps", "load_best_model_at_end": True},
        "dealt": [*EIGHT, *reversed(EIGHT)],
        "fsdp": UNITS,
        "evaluate": True,
        "resume": "fsdp_saved/checkpoint-1",
    },
}


def deal(values, num_steps):
    """Rows in an order that gives the first process the first half of each joint batch."""
    is_in_twos = values.get("per_device_train_batch_size") == 2
    steps = [EIGHT, EIGHT[::-1]][:num_steps]
    return [rows[place] for rows in steps for place in (DEALT_IN_TWOS if is_in_twos else EIGHT)]


def launch(program, *arguments):
    """Run a program by two processes; its path is relative to the folder above."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(Path(__file__).parents[1] / program), *map(str, arguments)],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[3]),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_the_command_as_the_readme_has_it_shares_the_work_on_cpus_and_saves(tmp_path, data_file):
    recipe = write_recipe(
        tmp_path, data_file, max_steps=-1, num_train_epochs=1, per_device_train_batch_size=2, save_steps=1
    )
    content = yaml.safe_load(Path(recipe).read_text())
    del content["use_cpu"]
    Path(recipe).write_text(yaml.safe_dump(content))
    launch("../../trainer/train.py", recipe)
    results = json.loads((tmp_path / "run" / "train_metrics.json").read_text())
    num_rows = len(json.loads(data_file.read_text()))
    assert [entry["step"] for entry in results["log_history"] if "loss" in entry] == [*range(1, num_rows // 4 + 1)]
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert (tmp_path / "run" / f"checkpoint-{num_rows // 4}").is_dir()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The folder with what two processes did: `NAME.pt` of each step."""
    saved = {name: {**step, "evaluate": True} for name, step in SAVED_STEPS.items()}
    return carry_out(tmp_path_factory.mktemp("two_processes"), {**JOINT_STEPS, **saved, **OTHER_STEPS})


def carry_out(folder, steps):
    """Have two processes take the steps, in one launch; returns `folder`, with `NAME.pt` of each."""
    data_file = write_data_file(folder)
    plan = {
        name: {"dealt": deal(step["values"], step["values"].get("max_steps", 1)), **step}
        for name, step in steps.items()
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    launch("gradient_steps.py", data_file, folder, folder / "plan.json")
    return folder


def result_of(folder, name):
    return torch.load(folder / f"{name}.pt")


def one_process(folder, rows, step, **further):
    """The same step by one process: one graph over one batch."""
    step = dict(step)
    values = {**step.pop("values"), "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    values["accumulate_graph"] = False
    for name in ("fsdp", "uneven", "dealt", "evaluate"):
        step.pop(name, None)
    dealt = [*EIGHT, *EIGHT[::-1]][: 8 * values.get("max_steps", 1)]
    model = small_model(dtype=torch.float64, **step)
    return take_steps(folder / "one", rows, model=model, dealt=dealt, further=further, **values)


def assert_equal_results(result, keep, logged):
    for name, values in logged.items():
        assert result["logged"][name] == pytest.approx(values, rel=1e-6), name
    assert len(result["gradients"]) == len(keep.gradients)
    for found, expected in zip(result["gradients"], keep.gradients, strict=True):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-8, msg=name)


@pytest.mark.parametrize("name", JOINT_STEPS)
def test_two_processes_take_the_step_of_one_with_the_joint_batch(two_processes, tmp_path, rows, name):
    step = JOINT_STEPS[name]
    result = result_of(two_processes, name)
    assert result["are_sharded"] == ("fsdp" in step)  # every parameter is a DTensor
    _, keep, logged = one_process(tmp_path, uneven_turns(rows) if step.get("uneven") else rows, step)
    assert_equal_results(result, keep, logged)


@pytest.mark.parametrize("name", SAVED_STEPS)
def test_checkpoint_of_two_processes_loads_in_one(two_processes, tmp_path, rows, name):
    step, result = SAVED_STEPS[name], result_of(two_processes, name)
    further = {"eval_dataset": rows, "validation_questions": questions_of_rows(rows)}
    trainer, keep, logged = one_process(tmp_path, rows, step, **further)
    assert_equal_results(result, keep, logged)
    last = two_processes / name / f"checkpoint-{len(keep.gradients)}"
    loaded = dict(LoGraMedForConditionalGeneration.from_pretrained(last, dtype="auto").named_parameters())
    expected = dict(trainer.model.model.named_parameters())
    saved = {name.removeprefix("model."): value for name, value in result["weights"].items() if "graph" not in name}
    assert loaded.keys() == saved.keys() == expected.keys()
    for parameter, value in saved.items():
        assert torch.equal(loaded[parameter], value), parameter
        torch.testing.assert_close(value, expected[parameter].detach(), rtol=1e-4, atol=1e-6, msg=parameter)
    metrics = trainer.evaluate()
    compared = [key for key in metrics if "recall" in key or "accuracy" in key or key == "eval_loss"]
    assert "eval_open_recall" in compared
    assert {key: result["metrics"][key] for key in compared} == pytest.approx({key: metrics[key] for key in compared})


def test_a_resumed_fsdp_run_goes_on_as_the_uninterrupted_one(two_processes):
    whole, resumed = (result_of(two_processes, name) for name in ("fsdp_saved", "fsdp_resumed"))
    assert resumed["are_sharded"]
    assert resumed["logged"]["loss"] == whole["logged"]["loss"]
    assert all(torch.equal(value, whole["gradients"][1][name]) for name, value in resumed["gradients"][0].items())
    assert torch.isfinite(torch.tensor(resumed["metrics"]["eval_loss"]))


def test_sigterm_to_one_of_two_processes_ends_both_at_one_step_and_the_resumed_run_equals_the_undisturbed(tmp_path):
    data_file = write_data_file(tmp_path)
    whole, recipe = (kill_resume.write_recipe(tmp_path / name, data_file) for name in ("whole", "run"))
    launch("terminated_run.py", whole, recipe, 8, tmp_path / "codes")
    assert all(json.loads((tmp_path / f"codes.{rank}").read_text()) == [0, 143, 0] for rank in (0, 1))
    starts = json.loads((tmp_path / "run" / "model" / "run.json").read_text())["starts"]
    assert starts[1]["resumed_from"].endswith("/checkpoint-8")
    (figures, weights), (expected_figures, expected_weights) = map(
        kill_resume.read_results, (tmp_path / "run", tmp_path / "whole")
    )
    assert figures == expected_figures
    assert kill_resume.same_weights(weights, expected_weights)


def test_mixed_precision_and_checkpointing_under_fsdp_give_the_losses_of_one_process_up_to_rounding(
    two_processes, tmp_path, rows
):
    result = result_of(two_processes, "fsdp_bfloat16")
    assert result["are_sharded"]
    _, _, logged = one_process(tmp_path, rows, {"values": {**ACCUMULATED, **TWO_STEPS}})
    for name in ("loss", "language_modeling_loss", "alignment_loss"):
        assert result["logged"][name] == pytest.approx(logged[name], rel=2e-2)
        assert result["logged"][name] != logged[name]  # it is 16-bit


@pytest.mark.parametrize("name", ["ddp_apart", "ddp_apart_accumulated"])
def test_processes_with_equal_batches_and_graphs_of_their_own_take_the_step_of_one(
    two_processes, tmp_path, rows, name
):
    result = result_of(two_processes, name)
    rows = uneven_turns(rows)
    model = small_model(dtype=torch.float64)
    trainer, keep, logged = take_steps(tmp_path, rows, model=model, dealt=[0, 1, 2, 3], further={"eval_dataset": rows})
    assert_equal_results(result, keep, logged)
    # Retrieval is over the nodes of all processes, whose evaluation batches may differ in their number.
    metrics = trainer.evaluate()
    recalls = [key for key in metrics if "recall_at" in key]
    assert {key: result["metrics"][key] for key in recalls} == pytest.approx({key: metrics[key] for key in recalls})


def engine(distributed_type, **sizes):
    return SimpleNamespace(distributed_type=distributed_type, parallelism_config=SimpleNamespace(**sizes))


def test_engines_that_cannot_span_a_graph_are_refused():
    arguments = LoGraMedTrainingArguments(
        alignment_preset="paper", accumulate_graph=True, gather_graph=True, use_cpu=True
    )
    check_engine(arguments, engine(DistributedType.FSDP, tp_size=1))
    check_engine(arguments, SimpleNamespace(distributed_type=DistributedType.MULTI_GPU, parallelism_config=None))
    with pytest.raises(ValueError, match=r"`accumulate_graph` does not work with DeepSpeed.*Use DDP or FSDP2"):
        check_engine(arguments, engine(DistributedType.DEEPSPEED))
    with pytest.raises(ValueError, match=r"`gather_graph` needs different samples on every process.*tp_size=2"):
        check_engine(arguments, engine(DistributedType.FSDP, tp_size=2, cp_size=1))


def test_units_that_the_model_does_not_have_are_not_named():
    model = AlignedModel(small_model(), GraphNetwork(32), head=AlignmentHead(32, 32))
    assert "CLIPTextEmbeddings" in model.model._no_split_modules  # as transformers leaves it
    name_units(model, SimpleNamespace(state=SimpleNamespace(fsdp_plugin=None)))
    assert set(model._no_split_modules) == {
        "CLIPVisionEmbeddings",
        "CLIPEncoderLayer",
        "LlamaDecoderLayer",
        "GraphNetwork",
        "AlignmentHead",
    }
