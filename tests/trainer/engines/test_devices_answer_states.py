"""
Two gloo processes against one with the joint batch, where the nodes are answer states, with the head and the weight
that follows a gradient ratio.
"""

import pytest
import safetensors.torch
import torch

from logramed.trainer.alignment.aligned_model import ALIGNMENT_FILE
from tests.trainer.engines.test_devices import (
    ACCUMULATED,
    JOINT,
    SAVED,
    SPANS,
    assert_equal_results,
    carry_out,
    one_process,
)
from tests.trainer.engines.test_devices import result_of as read_result
from tests.trainer.gradient_steps import UNITS, small_model, take_steps, uneven_turns


STATES = {
    **{"alignment_granularity": "turn", "alignment_image_node": "answer_state", "alignment_weight": 2.0},
    **{"alignment_gradient_ratio": 0.3, "max_steps": 2, "learning_rate": 0.1},
}
ENCODER = {**STATES, "alignment_text_encoder": "some/encoder"}

# To be compared with one process that has eight samples a batch.
JOINT_STEPS = {
    "ddp": {"values": {**JOINT, **STATES}, "uneven": True},
    "ddp_accumulated": {"values": {**ACCUMULATED, **STATES, **SPANS}, "uneven": True},
    "ddp_adapters": {"values": {**JOINT, **STATES}, "adapters": True},
    "ddp_encoder": {"values": {**JOINT, **ENCODER}},
    "fsdp": {"values": {**ACCUMULATED, **STATES}, "uneven": True, "fsdp": UNITS},
    "fsdp_default_units": {"values": {**JOINT, **STATES, **SPANS}, "fsdp": "default", "tied": True},
    "fsdp_encoder": {"values": {**JOINT, **ENCODER}, "fsdp": UNITS},
    "fsdp_encoder_fixed_map": {"values": {**JOINT, **ENCODER, "alignment_head": "none"}, "fsdp": UNITS},
}
# To be compared with one process in float32. The head keeps it beside a model in 16 bits.
BFLOAT16_STEPS = {
    "ddp_bf16": {"values": {**JOINT, **STATES, "bf16": True}, "dtype": "float32"},
    "fsdp_bf16": {"values": {**JOINT, **STATES, "bf16": True}, "fsdp": "default", "dtype": "float32"},
    "fsdp_bfloat16_model": {"values": {**JOINT, **STATES}, "fsdp": "default", "dtype": "bfloat16"},
}
SAVING = {**JOINT, **STATES, **SAVED}
SAVED_STEPS = {
    "ddp_saved": {"values": SAVING},
    "fsdp_saved": {"values": SAVING, "fsdp": UNITS},
    "fsdp_shards": {"values": SAVING, "fsdp": UNITS, "sharded": True},
}
RESUMED_STEPS = {f"{name}_resumed": {**step, "resume": f"{name}/checkpoint-1"} for name, step in SAVED_STEPS.items()}
# Each process has a graph of its own, over the same samples or over others.
FOUR, OTHER_FOUR = [0, 1, 2, 3], [4, 5, 6, 7]
APART_STEPS = {
    "apart": {"values": STATES, "dealt": FOUR * 4, "uneven": True},
    "apart_others": {"values": {**STATES, "max_steps": 1}, "dealt": FOUR + OTHER_FOUR, "uneven": True},
}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    steps = {**JOINT_STEPS, **BFLOAT16_STEPS, **SAVED_STEPS, **RESUMED_STEPS, **APART_STEPS}
    return carry_out(tmp_path_factory.mktemp("two_processes"), steps)


@pytest.mark.parametrize("name", JOINT_STEPS)
def test_two_processes_take_the_steps_of_one_with_the_joint_batch(two_processes, tmp_path, rows, name):
    step = JOINT_STEPS[name]
    result = read_result(two_processes, name)
    assert result["are_sharded"] == ("fsdp" in step)
    _, keep, logged = one_process(tmp_path, uneven_turns(rows) if step.get("uneven") else rows, step)
    assert logged["alignment_weight"][0] == 2.0 != logged["alignment_weight"][1]
    assert len(logged["gradient_ratio"]) == 2
    head = [gradient for weight, gradient in keep.gradients[0].items() if weight.startswith("head.")]
    assert len(head) == (0 if "fixed_map" in name else 4)
    assert all(gradient.any() for gradient in head)
    assert_equal_results(result, keep, logged)


@pytest.mark.parametrize("name", BFLOAT16_STEPS)
def test_two_processes_in_16_bits_measure_the_ratio_of_one_up_to_rounding(two_processes, tmp_path, rows, name):
    result = read_result(two_processes, name)
    _, _, logged = one_process(tmp_path, rows, {"values": {**JOINT, **STATES}})
    for figure in ("language_modeling_loss", "alignment_loss"):
        assert result["logged"][figure] == pytest.approx(logged[figure], rel=5e-2)
    assert result["logged"]["gradient_ratio"][0] == pytest.approx(logged["gradient_ratio"][0], rel=0.2)


@pytest.mark.parametrize("name", SAVED_STEPS)
def test_a_resumed_run_goes_on_as_the_uninterrupted_one(two_processes, name):
    whole, resumed = (read_result(two_processes, full) for full in (name, f"{name}_resumed"))
    for figure, values in whole["logged"].items():
        assert resumed["logged"][figure] == values, figure
    assert all(torch.equal(value, whole["gradients"][1][name]) for name, value in resumed["gradients"][0].items())
    assert resumed["weights"].keys() == whole["weights"].keys()
    assert all(torch.equal(value, whole["weights"][name]) for name, value in resumed["weights"].items())


@pytest.mark.parametrize("name", ["ddp_saved", "fsdp_saved"])
def test_checkpoint_holds_the_head_of_all_processes(two_processes, name):
    weights = read_result(two_processes, name)["weights"]
    saved = safetensors.torch.load_file(two_processes / name / "checkpoint-2" / ALIGNMENT_FILE)
    assert {weight for weight in saved if weight.startswith("head.")} == {
        f"head.mlps.image.{n}.{k}" for n in (0, 2) for k in ("weight", "bias")
    }
    assert all(torch.equal(value, weights[weight]) for weight, value in saved.items())


def test_processes_with_equal_batches_and_graphs_of_their_own_measure_the_ratio_of_one(two_processes, tmp_path, rows):
    model = small_model(dtype=torch.float64)
    _, keep, logged = take_steps(tmp_path, uneven_turns(rows), model=model, dealt=FOUR * 2, **STATES)
    assert_equal_results(read_result(two_processes, "apart"), keep, logged)


def test_the_ratio_of_processes_with_graphs_of_their_own_is_that_of_their_summed_squares(
    two_processes, tmp_path, rows
):
    rows, found = uneven_turns(rows), []

    def keep_norms(trainer):
        norms = trainer.gradient_ratio.norms
        batch = trainer.data_collator([trainer.train_dataset[number] for number in range(4)])
        num_tokens = (batch["labels"] != -100).sum()
        with_pop = norms.pop
        norms.pop = lambda: found.append((norms.alignment, norms.language, num_tokens)) or with_pop()

    for dealt in (FOUR, OTHER_FOUR):
        model, values = small_model(dtype=torch.float64), {**STATES, "max_steps": 1}
        take_steps(tmp_path, rows, model=model, dealt=dealt, prepare=keep_norms, **values)
    alignment, language, num_tokens = map(torch.stack, zip(*found, strict=True))
    # The language-modeling loss is a mean over the tokens of both, which are not equally many.
    shares = num_tokens / num_tokens.sum()
    expected = (alignment.sum() / (language * (2 * shares).square()).sum()).sqrt()
    assert shares[0] != shares[1]
    measured = read_result(two_processes, "apart_others")["logged"]["gradient_ratio"]
    assert measured == pytest.approx([float(expected)], rel=1e-5)
