import pytest
import torch
from transformers import TrainerCallback

from logramed.trainer.aligned_model import AlignedModel
from logramed.trainer.alignment import GRANULARITIES, AlignmentConfig, AlignmentObjective
from logramed.trainer.arguments import LoGraMedTrainingArguments
from logramed.trainer.collator import LoGraMedDataCollator
from logramed.trainer.graph_nodes import AlignmentMemory, BeyondBatch, gather_nodes, same_randomness
from logramed.trainer.trainer import build_graph_network
from tests.tiny import tiny_processor
from tests.trainer.gradient_steps import small_model, take_steps


def nodes(*values):
    """One node for each value, of two modalities, in a group of that number."""
    features = torch.tensor(values, dtype=torch.float32).unsqueeze(1).expand(-1, 3).clone()
    return {"image": features, "answer": features + 0.5}, torch.tensor(values, dtype=torch.int64)


def test_memory_keeps_the_latest_nodes_and_joins_them_behind_the_given():
    memory = AlignmentMemory(3)
    assert memory.join(*nodes(1, 2))[1].tolist() == [1, 2]  # nothing to join yet
    memory.remember(*nodes(1, 2))
    memory.remember(*nodes(3, 4))
    features, groups = memory.join(*nodes(5))
    assert groups.tolist() == [5, 2, 3, 4]
    assert features["image"][:, 0].tolist() == [5, 2, 3, 4]
    assert features["answer"][:, 0].tolist() == [5.5, 2.5, 3.5, 4.5]


def test_remembered_nodes_are_constants_in_float32():
    memory = AlignmentMemory(4)
    features, groups = nodes(1, 2)
    memory.remember({name: values.bfloat16().requires_grad_() for name, values in features.items()}, groups)
    joined, _ = memory.join({name: values.requires_grad_() for name, values in nodes(3)[0].items()}, nodes(3)[1])
    assert all(values.dtype == torch.float32 and not values.requires_grad for values in memory.features.values())
    joined["image"].sum().backward()  # through the node given alone


def test_memory_refuses_other_modalities_and_sizes_that_make_no_sense():
    memory = AlignmentMemory(4)
    memory.remember(*nodes(1))
    features, groups = nodes(2)
    with pytest.raises(ValueError, match="`alignment_memory` holds nodes of image, answer, but the batch has image"):
        memory.join({"image": features["image"]}, groups)
    with pytest.raises(ValueError, match="`num_nodes` must be at least 1, got 0"):
        AlignmentMemory(0)


def test_memory_goes_on_from_its_state_as_if_it_had_not_been_saved():
    memory, copy = AlignmentMemory(3), AlignmentMemory(3)
    memory.remember(*nodes(1, 2))
    state = memory.state_dict()
    memory.remember(*nodes(3, 4))
    copy.load_state_dict(state)
    copy.remember(*nodes(3, 4))
    assert torch.equal(copy.groups, memory.groups)
    assert all(torch.equal(copy.features[name], memory.features[name]) for name in memory.features)
    smaller = AlignmentMemory(1)
    smaller.load_state_dict(memory.state_dict())
    assert smaller.groups.tolist() == [4]


def test_nodes_of_further_micro_batches_come_before_those_remembered():
    memory = AlignmentMemory(5)
    memory.remember(*nodes(9))
    beyond = BeyondBatch(False, memory, further=lambda features, groups: nodes(*groups.tolist(), 7))
    assert beyond(*nodes(1))[1].tolist() == [1, 7, 9]
    assert memory.groups.tolist() == [9, 1, 7]


def test_one_process_gathers_its_own_nodes():
    features, groups = nodes(1, 2)
    gathered, gathered_groups = gather_nodes(features, groups)
    assert gathered is features
    assert gathered_groups is groups


def test_shared_graphs_draw_the_same_masks_and_leave_the_random_state_alone():
    drawn = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        with same_randomness(torch.Generator().manual_seed(5), is_shared=True):
            drawn.append(torch.rand(3))
        after = torch.rand(3)
        torch.manual_seed(seed)
        assert torch.equal(after, torch.rand(3))
    assert torch.equal(*drawn)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_batch_with_the_memory_of_another_is_the_joint_batch_with_that_one_constant(tmp_path, rows, granularity):
    """The second step of training, at learning rate 0, against the loss of both batches worked out by hand."""
    _, keep, logged = take_steps(
        tmp_path, rows, max_steps=2, alignment_memory=64, alignment_granularity=granularity, model=small_model()
    )
    arguments = LoGraMedTrainingArguments(output_dir=str(tmp_path), use_cpu=True, num_neighbors=2, graph_dropout=0.0)
    arguments.seed = 3
    network = build_graph_network(arguments, small_model(), small_model().config.text_config.hidden_size)
    model = AlignedModel(small_model(), network, AlignmentConfig(alignment_granularity=granularity)).train()
    collator = LoGraMedDataCollator(tiny_processor(), config=AlignmentConfig(alignment_granularity=granularity))
    outputs, groups, language_modeling = [], [], []
    for first in (0, 4):
        batch = collator(list(rows.select(range(first, first + 4))))
        groups.append(batch["nodes"]["groups"])
        outputs.append(model(**batch))
        language_modeling.append(-outputs[-1].log_probs.sum() / outputs[-1].label_mask.sum())
    old, new = (output.node_features for output in outputs)
    joint = {name: torch.cat([new[name], old[name].detach()]) for name in new}
    alignment = AlignmentObjective(arguments)(joint, network, groups=torch.cat(groups[::-1]))
    assert logged["alignment_loss"][1] == pytest.approx(alignment.loss.item(), rel=1e-5)
    assert logged["matching_accuracy"][1] == pytest.approx(alignment.matching_accuracy.item())
    assert logged["alignment_loss"][0] != pytest.approx(logged["alignment_loss"][1], rel=1e-2)
    (language_modeling[1] + alignment.loss).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(keep.gradients[1][name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_memory_is_for_training_alone_and_registered_for_checkpoints(tmp_path, rows):
    trainer, _, _ = take_steps(tmp_path, rows, max_steps=2, alignment_memory=6, further={"eval_dataset": rows})
    memory = trainer.stateful["alignment_memory"]
    before = memory.state_dict()
    trainer.evaluate()
    assert len(memory) == 6
    assert torch.equal(memory.groups, before["groups"])
    assert "alignment_memory" not in take_steps(tmp_path, rows, alignment_memory=6, alignment_weight=0)[0].stateful


class _StateAt(TrainerCallback):
    """Keeps the state of the memory at the end of a step, as a checkpoint of that step would."""

    def __init__(self, trainer, step, states):
        self.trainer, self.step, self.states = trainer, step, states

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.states.append(self.trainer.stateful["alignment_memory"].state_dict())


def test_a_run_that_goes_on_from_the_state_of_its_memory_is_the_uninterrupted_one(tmp_path, rows):
    values = {"alignment_memory": 6, "learning_rate": 0.1, "num_train_epochs": 2, "max_steps": -1}
    _, _, logged = take_steps(tmp_path / "whole", rows, **values, save_strategy="steps", save_steps=2)
    states = []
    values |= {"save_strategy": "steps", "save_steps": 2}

    def keep_state(trainer):
        trainer.add_callback(_StateAt(trainer, 2, states))

    take_steps(tmp_path / "first", rows, **values, prepare=keep_state)
    checkpoint = tmp_path / "first" / "checkpoint-2"
    _, _, resumed = take_steps(
        tmp_path / "first",
        rows,
        **values,
        resume=str(checkpoint),
        prepare=lambda trainer: trainer.stateful["alignment_memory"].load_state_dict(states[0]),
    )
    assert len(logged["alignment_loss"]) == 4
    assert resumed["alignment_loss"] == logged["alignment_loss"]
