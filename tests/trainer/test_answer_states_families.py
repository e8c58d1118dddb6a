"""Answer states and the weight that follows a gradient ratio in models of five families, against plain computation."""

from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from peft import LoraConfig
from torch.nn import functional as F

from logramed.trainer.alignment import AlignmentConfig
from logramed.trainer.alignment.aligned_model import AlignedModel
from logramed.trainer.data.collator import LoGraMedDataCollator
from tests.trainer.gradient_steps import KeepGradients, LetterEncoder
from tests.trainer.test_families import FAMILIES, LORA, build, every_family
from tests.trainer.test_trainer import logged, weights


STATES = {"alignment_granularity": "turn", "alignment_image_node": "answer_state"}
WEIGHT = 2.0
# Ways to train, each as arguments.
WAYS = {
    "plain": {},
    "lora": {},
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "bf16": {"bf16": True},
    "label_smoothing": {"label_smoothing_factor": 0.1, "loss_type": "nll"},
}


@pytest.fixture
def encoder():
    with mock.patch("logramed.trainer.trainer.TextEncoder", LetterEncoder):
        yield


@every_family
def test_answer_states_are_the_last_hidden_states_of_the_prompts_that_end_there(rows, family):
    model, processor = (make() for make in FAMILIES[family])
    collator = LoGraMedDataCollator(processor, config=AlignmentConfig(alignment_preset="paper", **STATES))
    batch, first = collator(list(rows)[:3]), 0
    states = AlignedModel(model, config=AlignmentConfig(alignment_preset="paper", **STATES))(**batch).node_features[
        "image"
    ]
    for row in list(rows)[:3]:
        alone = collator([row])
        length, places = alone["input_ids"].shape[1], alone.pop("nodes")["answer_places"]
        del alone["labels"]
        for number, place in enumerate(places.tolist()):
            prompt = {
                name: value[:, : place + 1] if value.shape[:2] == (1, length) else value
                for name, value in alone.items()
            }
            expected = model.base_model(**prompt).last_hidden_state[0, -1]
            torch.testing.assert_close(states[first + number], expected, rtol=1e-3, atol=1e-4)
        first += len(places)
    assert first == len(states) == 6


def plain_losses(trainer, batch, smoothing):
    """Both losses of a batch and the states they are read from, by the model's own backbone and head."""
    nodes, model = batch["nodes"], trainer.model
    inputs = {name: value for name, value in batch.items() if name not in ("nodes", "labels")}
    with torch.autocast("cpu", torch.bfloat16) if trainer.args.bf16 else nullcontext():
        outputs = model.base.base_model(**inputs)
        logits = model.base.get_output_embeddings()(outputs.last_hidden_state)[:, :-1].float()
    language = F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), label_smoothing=smoothing)
    states = outputs.last_hidden_state
    features = {name: nodes[f"{name}_embeddings"] for name in ("answer", "extended")}
    features = model.head({"image": states.flatten(0, 1)[nodes["answer_places"]].float(), **features})
    objective = trainer.objective
    alignment = objective(features, model.graph_network, generator=torch.Generator(), groups=nodes["groups"]).loss
    return language, alignment, states


@every_family
@pytest.mark.parametrize("way", WAYS)
def test_gradients_and_their_measured_ratio_are_those_of_plain_computation(tmp_path, rows, encoder, family, way):
    keep = KeepGradients()
    more = {"callbacks": [keep], **({"peft_config": LoraConfig(**LORA)} if way == "lora" else {})}
    values = {"max_steps": 1, "learning_rate": 0.0, "optim": "sgd", "max_grad_norm": 0.0, **STATES, **WAYS[way]}
    values |= {"alignment_weight": WEIGHT, "alignment_gradient_ratio": 0.3, "alignment_text_encoder": "some/encoder"}
    trainer = build(tmp_path, rows, family, more=more, train_sampling_strategy="sequential", **values)
    trainer.train()
    trainer.model.gradient_norms = None
    trainer.model.zero_grad()
    batch = trainer.data_collator([rows[number] for number in range(4)])
    language, alignment, states = plain_losses(trainer, batch, values.get("label_smoothing_factor", 0.0))
    tolerance = 5e-2 if way == "bf16" else 1e-3
    assert logged(trainer, "language_modeling_loss")[0] == pytest.approx(float(language), rel=tolerance)
    norms = []
    for loss in (WEIGHT * alignment, language):
        (gradient,) = torch.autograd.grad(loss, states, retain_graph=True)
        norms.append(float(gradient.flatten(0, 1)[batch["nodes"]["answer_places"]].norm()))
    assert logged(trainer, "gradient_ratio")[0] == pytest.approx(norms[0] / norms[1], rel=tolerance)
    (language + WEIGHT * alignment).backward()
    expected = {name: weight.grad for name, weight in trainer.model.named_parameters() if weight.grad is not None}
    assert keep.gradients[0].keys() == expected.keys()
    rounding = 0.3 if way == "bf16" else 1e-3  # of a single weight's gradient
    for name, gradient in expected.items():
        error = (keep.gradients[0][name] - gradient).norm()
        assert error <= rounding * max(float(gradient.norm()), 1e-3), name


@every_family
def test_resuming_is_exact(tmp_path, rows, encoder, family):
    values = {**STATES, "alignment_gradient_ratio": 0.3, "alignment_text_encoder": "some/encoder"}
    values |= {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    whole, resumed = (build(tmp_path, rows, family, **values) for _ in range(2))
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    for figure in ("loss", "alignment_weight", "gradient_ratio"):
        assert logged(resumed, figure) == logged(whole, figure)
    assert torch.equal(weights(resumed), weights(whole))
    for found, expected in zip(resumed.model.head.parameters(), whole.model.head.parameters(), strict=True):
        assert torch.equal(found, expected)
