"""Nodes that are answer states, texts of a frozen encoder, the head, and the weight that follows a gradient ratio."""

import json
import math

import pytest
import torch
from torch.nn import functional as F

from logramed.trainer.alignment import LOSSES, AlignmentConfig, AlignmentObjective
from logramed.trainer.alignment.aligned_model import ALIGNMENT_FILE, AlignedModel
from logramed.trainer.alignment.alignment_head import AlignmentHead
from logramed.trainer.alignment.gradient_ratio import GradientRatio
from logramed.trainer.data.collator import LoGraMedDataCollator
from logramed.trainer.trainer import LoGraMedTrainer
from tests.tiny import tiny_processor
from tests.trainer.test_trainer import arguments, logged, small_model, train


NUM_IMAGE_TOKENS = 4
SIZE = 12


class HashEncoder:
    """Unit vectors that depend on the text alone; counts what it is asked for."""

    size = SIZE

    def __init__(self):
        self.asked: list[str] = []

    def __call__(self, texts):
        self.asked += texts
        vectors = [torch.randn(SIZE, generator=torch.Generator().manual_seed(hash(text) % 2**31)) for text in texts]
        return F.normalize(torch.stack(vectors), dim=-1)

    def prepare(self, texts):
        return len(list(texts))


@pytest.fixture
def encoder(monkeypatch):
    encoder = HashEncoder()
    monkeypatch.setattr("logramed.trainer.trainer.TextEncoder", lambda *_, **__: encoder)
    return encoder


def config(**values):
    chosen = {"alignment_granularity": "turn", "alignment_image_node": "answer_state", **values}
    return AlignmentConfig(alignment_preset="paper", **chosen)


def answer_state_arguments(folder, **values):
    return arguments(folder, alignment_granularity="turn", alignment_image_node="answer_state", **values)


def test_answer_states_are_what_the_next_token_of_a_prompt_that_ends_there_is_decoded_from(rows):
    processor, model = tiny_processor(), small_model().eval()
    batch = LoGraMedDataCollator(processor, config=config())(list(rows))
    output = AlignedModel(model, config=config())(**batch)
    places, length = batch["nodes"]["answer_places"], batch["input_ids"].shape[1]
    assert len(places) == sum(len(row["extended_answers"]) for row in rows)
    first_image = 0
    for sample, row in enumerate(rows):
        own = places[(places >= sample * length) & (places < (sample + 1) * length)] - sample * length
        images = batch["pixel_values"][first_image : first_image + len(row["images"])]
        first_image += len(row["images"])
        for place in own.tolist():
            assert batch["labels"][sample, place] == -100
            assert batch["labels"][sample, place + 1] != -100
            prompt = batch["input_ids"][sample : sample + 1, : place + 1]
            alone = model.model(input_ids=prompt, pixel_values=images).last_hidden_state[0, -1]
            number = (places == sample * length + place).nonzero().item()
            torch.testing.assert_close(output.node_features["image"][number], alone, rtol=1e-4, atol=1e-5)


def test_turns_whose_answers_are_cut_off_are_no_nodes(rows):
    whole = LoGraMedDataCollator(tiny_processor(), config=config())(list(rows)[1:2])["nodes"]
    length = int(whole["answer_places"][1]) + 1  # the second answer begins right behind
    cut = LoGraMedDataCollator(tiny_processor(), config=config(), max_length=length)(list(rows)[1:2])["nodes"]
    assert len(whole["answer_places"]) > 1
    assert cut["answer_places"].tolist() == whole["answer_places"][:1].tolist()
    assert len(cut["groups"]) == 1


def test_nodes_of_the_language_model_are_means_of_its_hidden_states_at_image_tokens(rows):
    values = {"alignment_image_node": "language_model"}
    model = small_model().eval()
    batch = LoGraMedDataCollator(tiny_processor(), config=AlignmentConfig(alignment_preset="paper"))(list(rows))
    nodes = AlignedModel(model, config=AlignmentConfig(alignment_preset="paper", **values))(**batch).node_features[
        "image"
    ]
    inputs = {name: value for name, value in batch.items() if name not in ("nodes", "labels")}
    states = model(**inputs, output_hidden_states=True).hidden_states[-1]
    is_image = batch["input_ids"] == model.config.image_token_id
    for sample, node in enumerate(nodes):
        torch.testing.assert_close(node, states[sample, is_image[sample]].mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("texts", "kinds", "first"),
    [
        ("answer", {"image", "answer"}, "{answer}"),
        ("extended", {"image", "extended"}, "{extended}"),
        ("question_answer", {"image", "answer"}, "{question} {answer}"),
        ("question_answer_and_extended", {"image", "answer", "extended"}, "{question} {answer}"),
    ],
)
def test_the_texts_are_those_asked_for(rows, texts, kinds, first):
    encoder = HashEncoder()
    chosen = config(alignment_texts=texts, alignment_text_encoder="some/encoder")
    batch = LoGraMedDataCollator(tiny_processor(), config=chosen, text_encoder=encoder)(list(rows))
    head = AlignmentHead(small_model().config.text_config.hidden_size, SIZE)
    found = AlignedModel(small_model(), config=chosen, head=head)(**batch).node_features
    assert set(found) == kinds
    assert "text_input_ids" not in batch["nodes"]  # no pass of the model over texts
    message = rows[0]["messages"]
    question, answer = (" ".join(p["text"] for p in m["content"] if p["type"] == "text") for m in message[:2])
    written = first.format(question=question, answer=answer, extended=rows[0]["extended_answers"][0])
    assert encoder.asked[0] == " ".join(written.split())
    name = "extended" if texts == "extended" else "answer"
    torch.testing.assert_close(found[name][0], encoder([encoder.asked[0]])[0])


def test_spans_have_embeddings_of_their_own_and_the_state_of_their_turn(rows):
    chosen = config(alignment_granularity="span", alignment_text_encoder="some/encoder")
    encoder, model = HashEncoder(), small_model().eval()
    batch = LoGraMedDataCollator(tiny_processor(), config=chosen, text_encoder=encoder)(list(rows))
    head = AlignmentHead(model.config.text_config.hidden_size, SIZE)
    spans = AlignedModel(model, config=chosen, head=head)(**batch).node_features
    turn = config(alignment_text_encoder="some/encoder")
    batch_of_turns = LoGraMedDataCollator(tiny_processor(), config=turn, text_encoder=encoder)(list(rows))
    turns = AlignedModel(model, config=turn, head=head)(**batch_of_turns).node_features
    owners = batch["nodes"]["turn_of_span"]
    torch.testing.assert_close(spans["image"], turns["image"][owners])
    torch.testing.assert_close(spans["answer"], turns["answer"][owners])
    assert len(spans["extended"]) == len(owners)


def test_regions_stand_beside_the_states_and_are_matched_with_texts_alone(tmp_path, rows, encoder):
    chosen = config(alignment_regions=True)
    model, batch = small_model().eval(), LoGraMedDataCollator(tiny_processor(), config=chosen)(list(rows))
    output = AlignedModel(model, config=chosen)(**batch)
    images = model.model.get_image_features(batch["pixel_values"], return_dict=True).pooler_output
    images = images if torch.is_tensor(images) else torch.stack(list(images))
    owner = batch["nodes"]["answer_places"] // batch["input_ids"].shape[1]
    states = output.node_features["image"]
    weights = (F.normalize(states, dim=-1).unsqueeze(1) * F.normalize(images[owner], dim=-1)).sum(-1).div(0.1)
    expected = (weights.softmax(-1).unsqueeze(-1) * images[owner]).sum(1)
    torch.testing.assert_close(output.node_features["region"], expected, rtol=1e-4, atol=1e-5)
    pairs = AlignmentObjective(chosen).graph_pairs({name: v.float() for name, v in output.node_features.items()})
    assert pairs.names == [*("image>answer", "image>extended", "region>answer", "region>extended", "answer>extended")]
    values = {"alignment_image_node": "answer_state", "alignment_regions": True, "alignment_granularity": "span"}
    trainer = train(tmp_path, rows, alignment_text_encoder="some/encoder", max_steps=2, **values)
    assert all(weight.grad is None or weight.grad.any() for weight in trainer.model.head.parameters())
    assert {name.split(".")[0] for name, _ in trainer.model.head.mlps.named_parameters()} == {"image", "region"}


@pytest.mark.parametrize(("hidden_size", "text_size"), [(6, 4), (4, 6)])
def test_without_an_mlp_texts_are_mapped_to_the_size_of_the_nodes(hidden_size, text_size):
    head = AlignmentHead(hidden_size, text_size, has_mlp=False, seed=3)
    image, texts = torch.randn(5, hidden_size), torch.randn(5, text_size)
    found = head({"image": image, "answer": texts})
    assert found["image"] is image
    assert found["answer"].shape == (5, hidden_size)
    if hidden_size > text_size:
        torch.testing.assert_close(found["answer"] @ found["answer"].T, texts @ texts.T)
    again = AlignmentHead(hidden_size, text_size, has_mlp=False, seed=3)
    assert torch.equal(again({"image": image, "answer": texts})["answer"], found["answer"])
    assert not list(head.parameters())


OBJECTIVES = [
    *({"alignment_loss": name} for name in LOSSES),
    {"edge_weight": 0.0},
]


@pytest.mark.parametrize("values", OBJECTIVES, ids=str)
@pytest.mark.parametrize("node", ["answer_state", "language_model", "projector"])
@pytest.mark.parametrize("space", ["self", "some/encoder"])
def test_every_objective_trains_over_every_node_in_every_space(tmp_path, rows, encoder, values, node, space):
    nodes = {"alignment_image_node": node, "alignment_text_encoder": space}
    trainer = train(tmp_path, rows, alignment_granularity="turn", max_steps=1, **nodes, **values)
    assert all(math.isfinite(value) for value in logged(trainer, "alignment_loss"))
    if trainer.model.head is not None:
        assert all(weight.grad is None or weight.grad.any() for weight in trainer.model.head.parameters())


def test_the_head_is_in_checkpoints_and_not_in_the_saved_model(tmp_path, rows, encoder):
    values = {"alignment_image_node": "answer_state", "alignment_text_encoder": "some/encoder"}
    trainer = train(
        tmp_path, rows, alignment_granularity="turn", max_steps=2, save_strategy="steps", save_steps=2, **values
    )
    trainer.save_model(str(tmp_path / "model"))
    assert not (tmp_path / "model" / ALIGNMENT_FILE).exists()
    assert (tmp_path / "run" / "checkpoint-2" / ALIGNMENT_FILE).is_file()
    other = AlignmentHead(trainer.model.config.text_config.hidden_size, SIZE, seed=9)
    loaded = AlignedModel(small_model(), trainer.model.graph_network, trainer.model.alignment, other)
    loaded.load_alignment(tmp_path / "run" / "checkpoint-2")
    for name, value in trainer.model.head.state_dict().items():
        assert torch.equal(value, loaded.head.state_dict()[name])


def test_weight_zero_asks_no_encoder_and_is_the_plain_run(tmp_path, rows, encoder):
    plain = train(tmp_path / "plain", rows, alignment_weight=0.0, max_steps=2)
    values = {"alignment_image_node": "answer_state", "alignment_text_encoder": "some/encoder"}
    off = train(tmp_path / "off", rows, alignment_weight=0.0, alignment_granularity="turn", max_steps=2, **values)
    assert not encoder.asked
    assert off.text_encoder is None
    for first, second in zip(plain.model.parameters(), off.model.parameters(), strict=True):
        assert torch.equal(first, second)


# The gradient ratio


def gradients_at_answer_states(trainer, batch):
    """The norms of both losses' gradients at the answer states, each from a backward pass of its own."""
    model, nodes = trainer.model, batch["nodes"]
    norms = {}
    for part in ("language", "alignment"):
        inputs = {name: value for name, value in batch.items() if name != "nodes"}
        outputs = model(nodes=nodes, **inputs)
        if part == "language":
            loss = -(outputs.log_probs * outputs.label_mask).sum() / outputs.label_mask.sum()
        else:
            generator = torch.Generator().manual_seed(0)
            objective = trainer.objective
            loss = objective(
                outputs.node_features, model.graph_network, generator=generator, groups=nodes["groups"]
            ).loss
        (gradient,) = torch.autograd.grad(loss, outputs.last_hidden_state)
        norms[part] = gradient.flatten(0, 1)[nodes["answer_places"]].norm()
    return norms


@pytest.mark.parametrize("extra", [{}, {"label_smoothing_factor": 0.1}])
def test_the_measured_ratio_is_that_of_two_backward_passes(tmp_path, rows, extra):
    values = answer_state_arguments(
        tmp_path, alignment_gradient_ratio=0.5, alignment_weight=2.0, message_weight=0.0, **extra
    )
    trainer = LoGraMedTrainer(small_model(), values, processing_class=tiny_processor(), train_dataset=rows)
    trainer.model.train()
    batch = trainer.data_collator([rows[number] for number in range(4)])
    trainer.current_gradient_accumulation_steps = 1
    trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=(batch["labels"] != -100).sum()).backward()
    trainer.follow_gradient_ratio(0)
    measured = float(trainer.gradient_ratio.measured)
    if extra:  # the smoothed loss has another gradient, which must have been seen nevertheless
        assert 0 < measured < math.inf
        return
    trainer.model.gradient_norms = None
    norms = gradients_at_answer_states(trainer, batch)
    assert measured == pytest.approx(2 * float(norms["alignment"] / norms["language"]), rel=1e-4)
    assert float(trainer.gradient_ratio.weight) == pytest.approx(0.5 / measured * 2, rel=1e-4)


@pytest.mark.parametrize(
    "extra", [{}, {"gradient_accumulation_steps": 2}, {"accumulate_graph": True, "gradient_accumulation_steps": 2}]
)
def test_the_ratio_reaches_its_target_and_is_logged_each_step(tmp_path, rows, extra):
    values = {"alignment_granularity": "turn", "alignment_image_node": "answer_state", "learning_rate": 1e-4, **extra}
    if "gradient_accumulation_steps" in extra:
        values["per_device_train_batch_size"] = 2
    trainer = train(tmp_path, rows, alignment_gradient_ratio=0.3, alignment_weight=7.0, max_steps=16, **values)
    ratios, weights = logged(trainer, "gradient_ratio"), logged(trainer, "alignment_weight")
    assert len(ratios) == len(weights) == 16
    assert weights[0] == 7.0
    assert math.exp(sum(map(math.log, ratios[4:])) / 12) == pytest.approx(0.3, rel=0.3)


def test_a_fixed_weight_stays_and_its_ratio_is_logged_too(tmp_path, rows):
    values = {"alignment_granularity": "turn", "alignment_image_node": "answer_state", "alignment_weight": 2.0}
    trainer = train(tmp_path, rows, alignment_schedule="linear", max_steps=4, **values)
    assert logged(trainer, "alignment_weight") == [2.0, 1.5, 1.0, 0.5]
    assert all(0 < ratio < math.inf for ratio in logged(trainer, "gradient_ratio"))


def test_the_loss_of_an_evaluation_has_the_same_weight_at_any_step(tmp_path, rows):
    values = {"alignment_granularity": "turn", "alignment_image_node": "answer_state", "alignment_schedule": "cosine"}
    trainer = train(tmp_path, rows, alignment_gradient_ratio=0.3, max_steps=4, **values)
    assert not 0.99 < logged(trainer, "alignment_weight")[-1] < 1.01
    metrics = trainer.evaluate(rows)
    parts = metrics["eval_language_modeling_loss"] + metrics["eval_alignment_loss"]
    assert metrics["eval_loss"] == pytest.approx(parts, rel=1e-5)


@pytest.mark.parametrize(("weight", "is_warned"), [(0.5, True), (None, False), (0, False)])
def test_a_weight_beside_a_ratio_is_said_to_hold_for_the_first_step_alone(tmp_path, rows, caplog, weight, is_warned):
    values = answer_state_arguments(tmp_path, alignment_gradient_ratio=0.3, alignment_weight=weight)
    with caplog.at_level("WARNING", "logramed.trainer.trainer"):
        LoGraMedTrainer(small_model(), values, processing_class=tiny_processor(), train_dataset=rows)
    assert ("`alignment_weight` 0.5 holds for the first step alone. Leave out one" in caplog.text) is is_warned


def test_a_resumed_run_has_the_weights_of_the_undisturbed_one(tmp_path, rows):
    values = {
        "alignment_granularity": "turn",
        "alignment_image_node": "answer_state",
        "save_strategy": "steps",
        "save_steps": 2,
    }
    whole = train(tmp_path / "whole", rows, alignment_gradient_ratio=0.3, max_steps=5, **values)
    options = answer_state_arguments(
        tmp_path / "whole", alignment_gradient_ratio=0.3, max_steps=5, save_strategy="steps", save_steps=2
    )
    resumed = LoGraMedTrainer(small_model(), options, processing_class=tiny_processor(), train_dataset=rows)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "run" / "checkpoint-2"))
    for name in ("alignment_weight", "gradient_ratio", "loss"):
        assert logged(resumed, name)[-3:] == logged(whole, name)[-3:]
    for first, second in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(first, second)


def test_steps_without_a_finite_gradient_change_no_weight():
    class OneProcess:
        device = torch.device("cpu")

        def reduce(self, values, reduction):
            return values

    ratio = GradientRatio(target=0.5, first_weight=2.0)
    ratio.update(2.0, OneProcess())  # nothing was measured
    assert ratio.weight == 2.0
    ratio.norms._add(torch.tensor(4.0), torch.tensor(1.0))
    ratio.update(2.0, OneProcess())  # 2 at weight 2 is 1 at weight 1
    assert float(ratio.measured) == 2.0
    assert float(ratio.weight) == 0.5
    ratio.norms._add(torch.tensor(math.inf), torch.tensor(1.0))
    ratio.update(ratio.weight, OneProcess())
    assert float(ratio.weight) == 0.5
    loaded = GradientRatio(0.5, 1.0)
    loaded.load_state_dict(json.loads(json.dumps(ratio.state_dict())))
    assert float(loaded.weight) == float(ratio.weight)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [2, 2, 2, 2]),
        ("linear", [2, 1.5, 1, 0.5]),
        ("cosine", [2, 1 + math.cos(math.pi / 4), 1, 1 - math.cos(math.pi / 4)]),
    ],
)
def test_the_weight_follows_its_schedule(tmp_path, rows, schedule, expected):
    trainer = train(tmp_path, rows, alignment_weight=2.0, alignment_schedule=schedule, max_steps=4)
    weighted = [
        (total - language) / alignment
        for total, language, alignment in zip(
            *(logged(trainer, name) for name in ("loss", "language_modeling_loss", "alignment_loss")), strict=True
        )
    ]
    assert weighted == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"alignment_image_node": "answer_state"}, "needs nodes that are answers: give `alignment_granularity`"),
        ({"alignment_texts": "question_answer"}, "needs nodes that are turns"),
        ({"alignment_regions": True}, "needs `alignment_image_node='answer_state'`"),
        ({"alignment_gradient_ratio": 0.1}, "compares gradients at the answer states"),
        (
            {"alignment_gradient_ratio": 0, "alignment_image_node": "answer_state", "alignment_granularity": "turn"},
            "`alignment_gradient_ratio` must be above 0; got 0",
        ),
        (
            {"alignment_granularity": "span", "alignment_texts": "extended"},
            "aligns the spans with their turn's answer",
        ),
        ({"alignment_image_node": "pixels"}, "`alignment_image_node` must be one of projector"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values, reason):
    with pytest.raises(ValueError, match=reason):
        AlignmentConfig(alignment_preset="paper", **values)
