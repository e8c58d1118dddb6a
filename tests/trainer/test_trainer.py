import itertools

import pytest
import torch
from trl import SFTTrainer

from logramed.node_features_logramed import GRANULARITIES
from logramed.trainer.alignment import GRADIENT_ESTIMATORS, LOSSES, AlignmentObjective, GradientEstimator
from logramed.trainer.arguments import LoGraMedTrainingArguments
from logramed.trainer.collator import LoGraMedDataCollator
from logramed.trainer.trainer import (
    AlignmentRecorder,
    LoGraMedTrainer,
    build_objective,
    node_keys,
    retrieval_metrics,
    text_keys,
)
from tests.tiny import tiny_processor, tiny_tokenizer
from tests.tiny_models import tiny_model


def small_model(**values):
    return tiny_model(text_sizes={"vocab_size": 84}, graph_num_neighbors=2, graph_dropout=0.0, **values)


def arguments(folder, **values):
    defaults = {
        "output_dir": str(folder / "run"),
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
    }
    return LoGraMedTrainingArguments(**{**defaults, **values})


def train(folder, rows, trainer_class=LoGraMedTrainer, model=None, data_collator=None, eval_dataset=None, **values):
    trainer = trainer_class(
        model or small_model(),
        arguments(folder, **values),
        processing_class=tiny_processor(),
        train_dataset=rows,
        eval_dataset=eval_dataset,
        data_collator=data_collator,
    )
    trainer.train()
    return trainer


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def weights(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def test_weight_zero_is_plain_sft_step_for_step(tmp_path, rows):
    plain_collator = LoGraMedDataCollator(tiny_processor(), alignment=False)
    plain = train(
        tmp_path, rows, SFTTrainer, data_collator=plain_collator, alignment_weight=0, remove_unused_columns=False
    )
    ours = train(tmp_path, rows, alignment_weight=0)
    assert logged(ours, "loss") == logged(plain, "loss")
    assert torch.equal(weights(ours), weights(plain))
    assert not logged(ours, "alignment_loss")


def test_alignment_changes_training_and_each_step_logs_its_parts(tmp_path, rows):
    trainer = train(tmp_path, rows, alignment_weight=0.5)
    parts = zip(
        logged(trainer, "loss"),
        logged(trainer, "language_modeling_loss"),
        logged(trainer, "alignment_loss"),
        strict=True,
    )
    for total, language_modeling, alignment in parts:
        assert total == pytest.approx(language_modeling + 0.5 * alignment, rel=1e-4)
    assert len(logged(trainer, "matching_accuracy")) == 3
    assert not torch.equal(weights(trainer), weights(train(tmp_path, rows, alignment_weight=0)))


def test_same_seed_gives_the_same_run_and_another_seed_another(tmp_path, rows):
    first, second, third = (train(tmp_path, rows, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(third))


def one_step(folder, rows, **values):
    values = {"optim": "sgd", "max_steps": 1, "max_grad_norm": 0.0, "learning_rate": 0.1, **values}
    return train(folder, rows, alignment_loss="infonce", lr_scheduler_type="constant", **values)


@pytest.mark.parametrize("alignment_weight", [0.0, 1.0])
def test_accumulating_equal_micro_batches_is_the_step_of_one(tmp_path, rows, alignment_weight):
    same = rows.select([0, 1, 2, 3] * 2)
    options = {"alignment_weight": alignment_weight, "train_sampling_strategy": "sequential"}
    one = one_step(tmp_path, same, **options)
    two = one_step(tmp_path, same, gradient_accumulation_steps=2, **options)
    torch.testing.assert_close(weights(two), weights(one), rtol=1e-5, atol=1e-6)
    for name in ("loss", "language_modeling_loss", "alignment_loss") if alignment_weight else ("loss",):
        assert logged(two, name) == pytest.approx(logged(one, name), rel=1e-4)


def test_gradient_grows_with_the_weight(tmp_path, rows):
    start = torch.cat([parameter.detach().flatten() for parameter in small_model().parameters()])
    steps = [
        weights(one_step(tmp_path, rows, alignment_weight=weight, train_sampling_strategy="sequential")) - start
        for weight in (0.0, 1.0, 2.0)
    ]
    torch.testing.assert_close(steps[2] - steps[0], 2 * (steps[1] - steps[0]), rtol=1e-3, atol=1e-5)


OBJECTIVES = [{"alignment_loss": loss} for loss in LOSSES if loss != "none"]
OBJECTIVES += [{"gradient_estimator": estimator} for estimator in GRADIENT_ESTIMATORS if estimator != "entropic"]
OBJECTIVES += [{"edge_matching": "coupled", "gradient_estimator": "imle"}, {"alignment_targets": "others"}]


@pytest.mark.parametrize("values", OBJECTIVES, ids=str)
def test_every_objective_gives_the_graph_features_a_finite_gradient(tmp_path, rows, values):
    start = small_model().get_input_embeddings().weight.detach().clone()
    values = {**values, "max_steps": 2}
    trainer = train(tmp_path, rows, **values)
    plain = train(tmp_path, rows, **values, alignment_weight=0)
    trained = trainer.model.get_input_embeddings().weight
    assert torch.isfinite(trained).all()
    assert not torch.equal(trained, start)
    assert not torch.equal(trained, plain.model.get_input_embeddings().weight)


def test_objective_none_is_weight_zero(tmp_path, rows):
    none = train(tmp_path, rows, alignment_loss="none")
    assert none.args.alignment_weight == 0
    assert torch.equal(weights(none), weights(train(tmp_path, rows, alignment_weight=0)))


def test_graph_network_is_trained_only_where_the_objective_uses_it(tmp_path, rows):
    def is_trained(**values):
        network = train(tmp_path, rows, max_steps=1, **values).model.model.graph_network
        return {parameter.requires_grad for parameter in network.parameters()}

    assert is_trained() == {True}
    assert is_trained(message_weight=0.0) == {False}
    assert is_trained(alignment_loss="infonce") == {False}
    assert is_trained(alignment_weight=0.0) == {False}


def test_several_evaluation_sets_by_name(tmp_path, rows):
    trainer = train(tmp_path, rows, eval_dataset={"first": rows, "second": rows}, max_steps=1)
    assert {"eval_first_recall_at_1_image_to_answer", "eval_second_loss"} <= trainer.evaluate().keys()


def test_arguments_reach_the_objective():
    arguments = LoGraMedTrainingArguments(
        alignment_loss="multi_graph_pairwise",
        alignment_targets="others",
        edge_weight=0.5,
        edge_matching="coupled",
        message_weight=0.2,
        alignment_margin=0.1,
        alignment_temperature=0.2,
        edge_temperature=0.3,
        gradient_estimator="imle",
        noise_scale=0.7,
        num_noise_samples=2,
        use_cpu=True,
    )
    objective = build_objective(arguments, small_model().config, "shrink")
    assert (objective.loss, objective.targets, objective.is_coupled) == ("multi_graph_pairwise", "others", True)
    assert (objective.edge_weight, objective.message_weight) == (0.5, 0.2)
    assert (objective.temperature, objective.edge_temperature) == (0.2, 0.3)
    assert objective.estimator == GradientEstimator("imle", noise_scale=0.7, margin=0.1, num_samples=2)


def test_without_extended_answers_there_are_two_modalities(tmp_path, rows):
    short = rows.map(lambda row: {"extended_answers": None})
    trainer = train(tmp_path, short, eval_dataset=short, use_extended_answers=False, max_steps=1)
    names = [name for name in trainer.evaluate() if "recall_at_1" in name]
    assert sorted(names) == ["eval_recall_at_1_answer_to_image", "eval_recall_at_1_image_to_answer"]


def test_collator_without_node_texts_is_refused_while_alignment_is_on(tmp_path, rows):
    collator = LoGraMedDataCollator(tiny_processor(), alignment=False)
    with pytest.raises(ValueError, match=r"`alignment_weight` is 1.0, but the batch has no `answer_input_ids`"):
        train(tmp_path, rows, data_collator=collator)


def test_vision_tower_runs_once_a_step(tmp_path, rows):
    model, calls = small_model(), []
    model.model.vision_tower.register_forward_hook(lambda *call: calls.append(call))
    train(tmp_path, rows, model=model)
    assert len(calls) == 3


def test_every_part_of_the_model_is_trained(tmp_path, rows):
    before = small_model()
    trainer = train(tmp_path, rows, max_steps=1)
    for part in ("vision_tower.encoder", "multi_modal_projector", "language_model.layers", "graph_network"):
        names = [name for name, _ in before.named_parameters() if part in name]
        assert names
        now = dict(trainer.model.named_parameters())
        assert any(not torch.equal(now[name], value) for name, value in before.named_parameters() if name in names), (
            part
        )


def test_batch_too_small_for_the_graph_is_refused_or_shrunk_as_asked(tmp_path, rows):
    few = rows.select([0, 1])
    with pytest.raises(ValueError, match=r"batch of 2 samples is too small.*num_neighbors=2.*needs at least 3"):
        train(tmp_path, few, small_batch="refuse")
    with pytest.warns(UserWarning, match="too small for a graph"):
        train(tmp_path, few, small_batch="shrink")


def test_evaluation_gives_recall_between_all_modalities(tmp_path, rows):
    for weight in (0.0, 1.0):
        trainer = train(tmp_path, rows, eval_dataset=rows, alignment_weight=weight, max_steps=1)
        metrics = trainer.evaluate()
        for source, target in itertools.permutations(("image", "answer", "extended"), 2):
            at_1, at_5 = (metrics[f"eval_recall_at_{k}_{source}_to_{target}"] for k in (1, 5))
            assert 0 <= at_1 <= at_5 <= 1
        assert ("eval_alignment_loss" in metrics or bool(logged(trainer, "eval_alignment_loss"))) == (weight > 0)


def test_evaluation_is_without_noise(tmp_path, rows):
    trainer = train(tmp_path, rows, eval_dataset=rows, noise_scale=5.0)
    trainer.evaluate()
    trainer.evaluate()
    first, second = logged(trainer, "eval_alignment_loss")
    assert first == second


def test_retrieval_counts_equal_answers_as_one():
    image = torch.eye(8)
    answer = image[[1, 0, 2, 3, 4, 5, 6, 7]]  # the first two found each other
    apart = retrieval_metrics({"image": image, "answer": answer}, torch.arange(8))
    together = retrieval_metrics({"image": image, "answer": answer}, torch.tensor([1, 1, 2, 3, 4, 5, 6, 7]))
    assert apart["recall_at_1_image_to_answer"] == 0.75
    assert together["recall_at_1_image_to_answer"] == 1.0


def test_retrieval_leaves_out_ranks_that_every_sample_would_reach():
    names = retrieval_metrics({"image": torch.eye(4), "answer": torch.eye(4)}, torch.arange(4))
    assert sorted(names) == ["recall_at_1_answer_to_image", "recall_at_1_image_to_answer"]


def test_text_keys_are_equal_for_equal_texts_with_other_padding():
    tokenizer = tiny_tokenizer()
    pad = tokenizer.pad_token_id
    keys = text_keys(torch.tensor([[5, 6, pad], [pad, 5, 6], [6, 5, pad]]), tokenizer)
    assert keys[0] == keys[1] != keys[2]


def test_retrieval_of_answers_has_groups_of_its_own():
    image = torch.eye(8)
    other = image[[1, 0, 2, 3, 4, 5, 6, 7]]
    nodes = {"image": image, "answer": other, "extended": other}
    metrics = retrieval_metrics(nodes, torch.arange(8), torch.tensor([1, 1, 2, 3, 4, 5, 6, 7]))
    assert metrics["recall_at_1_image_to_answer"] == metrics["recall_at_1_answer_to_image"] == 1.0
    assert metrics["recall_at_1_image_to_extended"] == metrics["recall_at_1_extended_to_image"] == 0.75


def turn_inputs(**values):
    """Four turns: the second differs from the first in its extended answer alone, the third not at all."""
    return {
        "num_turns": torch.tensor([3, 1]),
        "answer_input_ids": torch.tensor([[5, 6, 0], [5, 6, 0], [5, 6, 0], [5, 7, 8]]),
        "extended_input_ids": torch.tensor([[9, 10], [9, 11], [9, 10], [9, 10]]),
        "extended_span_ids": torch.tensor([[0, 1], [0, 0], [0, 1], [-1, 0]]),
        **values,
    }


def pattern(keys):
    """Keys by the order of their first use: `[7, 3, 7]` becomes `[0, 1, 0]`."""
    keys = keys.tolist()
    return [list(dict.fromkeys(keys)).index(key) for key in keys]


def test_turns_are_one_where_no_text_tells_them_apart_and_spans_where_their_turns_are():
    tokenizer = tiny_tokenizer()
    for granularity, places in (("turn", [0, 1, 2, 3]), ("span", [0, 0, 1, 2, 2, 3])):
        groups, answer_keys = node_keys(turn_inputs(), granularity, tokenizer)
        assert pattern(groups) == [[0, 1, 0, 2][place] for place in places]
        assert pattern(answer_keys) == [[0, 0, 0, 1][place] for place in places]
    # Keys are of the texts alone, so that nodes of several batches can be joined.
    alone, _ = node_keys({name: value[1:2] for name, value in turn_inputs().items()}, "turn", tokenizer)
    assert alone == node_keys(turn_inputs(), "turn", tokenizer)[0][1]
    short = {name: value for name, value in turn_inputs().items() if not name.startswith("extended")}
    groups, answer_keys = node_keys(short, "turn", tokenizer)
    assert torch.equal(groups, answer_keys)


def test_texts_that_are_equal_only_when_joined_are_no_group():
    inputs = turn_inputs(
        answer_input_ids=torch.tensor([[5, 6], [5, 0]]), extended_input_ids=torch.tensor([[7, 0], [6, 7]])
    )
    groups, _ = node_keys(inputs, "turn", tiny_tokenizer())
    assert groups[0] != groups[1]


def test_equal_answers_that_are_taken_for_each_other_cost_a_loss_but_hardly_a_gradient():
    """Three turns answered by one node, three by another; images lie near their answer, each in its own place."""
    found = {}
    for name, order in (("right", [0, 1, 2, 3, 4, 5]), ("wrong", [3, 1, 2, 0, 4, 5])):
        answers = torch.eye(2, 8).requires_grad_()
        images = torch.eye(2, 8).repeat_interleave(3, 0)[order]
        images = images + 0.2 * torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
        nodes = {"image": images, "answer": answers.repeat_interleave(3, 0)}
        output = AlignmentObjective("first_order")(nodes, training=False)
        output.loss.backward()
        found[name] = output.loss.item(), answers.grad.norm().item()
    assert found["right"][0] > 0.1  # a tenth of log 3: three answers are equally near
    assert found["right"][1] < 0.02 * found["wrong"][1]


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_batch_that_was_built_for_other_nodes_is_refused(tmp_path, rows, granularity):
    other = LoGraMedDataCollator(tiny_processor(), granularity="turn" if granularity == "sample" else "sample")
    with pytest.raises(ValueError, match=f"`alignment_granularity` is '{granularity}', but the batch was built for"):
        train(tmp_path, rows, data_collator=other, alignment_granularity=granularity)


@pytest.mark.parametrize("loss", ["multi_graph", "infonce"])
@pytest.mark.parametrize("granularity", ["turn", "span"])
def test_finer_nodes_train_and_are_evaluated(tmp_path, rows, granularity, loss, monkeypatch):
    measured = []
    monkeypatch.setattr(
        "logramed.trainer.trainer.retrieval_metrics",
        lambda nodes, *keys: measured.append(len(nodes["image"])) or retrieval_metrics(nodes, *keys),
    )
    values = {"alignment_granularity": granularity, "alignment_loss": loss, "max_steps": 2}
    trainer = train(tmp_path, rows, eval_dataset=rows, **values)
    plain = train(tmp_path, rows, **values, alignment_weight=0)
    assert not torch.equal(weights(trainer), weights(plain))
    assert torch.isfinite(weights(trainer)).all()
    for name in ("alignment_loss", "matching_accuracy", "language_modeling_loss"):
        assert len(logged(trainer, name)) == 2
    metrics = trainer.evaluate()
    for source, target in itertools.permutations(("image", "answer", "extended"), 2):
        at_1, at_5 = (metrics[f"eval_recall_at_{k}_{source}_to_{target}"] for k in (1, 5))
        assert 0 <= at_1 <= at_5 <= 1
    assert measured[-1] == 16  # two turns a sample, of one sentence each
    assert not trainer._kept_nodes  # nothing stays on the device


def test_turns_without_extended_answers_train_two_modalities(tmp_path, rows):
    short = rows.map(lambda row: {"extended_answers": None})
    values = {"alignment_granularity": "turn", "use_extended_answers": False, "max_steps": 1}
    trainer = train(tmp_path, short, eval_dataset=short, **values)
    names = [name for name in trainer.evaluate() if "recall_at_1" in name]
    assert sorted(names) == ["eval_recall_at_1_answer_to_image", "eval_recall_at_1_image_to_answer"]


def test_turns_of_a_resumed_run_go_on_as_uninterrupted(tmp_path, rows):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "alignment_granularity": "turn"}
    trainer = train(tmp_path, rows, **options)
    resumed = LoGraMedTrainer(
        small_model(seed=9), arguments(tmp_path, **options), processing_class=tiny_processor(), train_dataset=rows
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert logged(resumed, "alignment_loss") == logged(trainer, "alignment_loss")


def test_retrieval_is_over_the_turns_of_all_evaluation_batches(tmp_path, rows):
    """Whatever the batch size, the same recall, from the nodes of one batch of everything."""
    found = []
    for batch_size in (3, 8):
        trainer = train(
            tmp_path,
            rows,
            eval_dataset=rows,
            alignment_granularity="turn",
            max_steps=1,
            per_device_eval_batch_size=batch_size,
        )
        metrics = trainer.evaluate()
        found.append([value for name, value in metrics.items() if "recall" in name])
    assert found[0] == pytest.approx(found[1])
    batch = LoGraMedDataCollator(tiny_processor(), granularity="turn")(list(rows))
    recorder = AlignmentRecorder(None, training=False, generator=None)
    with torch.no_grad():
        trainer.model.eval()(**batch, alignment_objective=recorder, alignment_granularity="turn")
    groups, answer_keys = node_keys(batch, "turn", trainer._tokenizer)
    expected = retrieval_metrics(recorder.node_features, groups, answer_keys)
    assert found[1] == pytest.approx(list(expected.values()))


def random_nodes(num_nodes, seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(num_nodes, 8, generator=generator) for name in ("image", "answer")}


@pytest.mark.parametrize("with_gradient", [False, True])
def test_extra_nodes_join_those_of_the_batch_in_the_objective(with_gradient):
    objective = AlignmentObjective("infonce")
    own, groups = random_nodes(5, 0), torch.tensor([3, 3, 4, 5, 6])
    stored, stored_groups = random_nodes(7, 1), torch.arange(3, 10)

    def join(nodes, node_groups):
        further = {name: values.requires_grad_(with_gradient) for name, values in stored.items()}
        joined = {name: torch.cat([values, further[name]]) for name, values in nodes.items()}
        return joined, torch.cat([node_groups, stored_groups])

    recorder = AlignmentRecorder(objective, True, None, groups, extra_nodes=join)
    nodes = {name: values.clone().requires_grad_() for name, values in own.items()}
    recorder(nodes, None)
    together = {name: torch.cat([values, stored[name]]) for name, values in own.items()}
    expected = objective(together, None, groups=torch.cat([groups, stored_groups]))
    torch.testing.assert_close(recorder.output.loss.detach(), expected.loss.detach())
    assert all(torch.equal(recorder.node_features[name], own[name]) for name in own)  # for retrieval: the batch's own
    recorder.output.loss.backward()
    assert all(values.grad.any() for values in nodes.values())
    assert all((values.grad is not None) == with_gradient for values in stored.values())


def test_recorder_keeps_attention_only_when_asked():
    attention = {"regions": torch.rand(2, 4, requires_grad=True)}
    features = {"image": torch.ones(2, 3)}
    for keep_attention in (False, True):
        recorder = AlignmentRecorder(None, False, None, keep_attention=keep_attention)
        recorder(features, None, attention=attention)
        assert bool(recorder.attention) == keep_attention
    assert not recorder.attention["regions"].requires_grad


def test_recorder_without_objective_only_keeps_the_features():
    recorder = AlignmentRecorder(None, training=False, generator=torch.Generator())
    features = {"image": torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)}
    recorder(features, None)
    assert recorder.output is None
    assert recorder.node_features["image"].dtype == torch.float32
    assert not recorder.node_features["image"].requires_grad


def test_best_checkpoint_is_loaded_at_the_end_and_resuming_goes_on_as_uninterrupted(tmp_path, rows):
    options = {
        "eval_dataset": rows,
        "max_steps": 4,
        "per_device_train_batch_size": 3,
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "gradient_accumulation_steps": 2,
    }
    trainer = train(tmp_path, rows, **options)
    best = tmp_path / "run" / trainer.state.best_model_checkpoint.split("/")[-1]
    kept = type(trainer.model).from_pretrained(best)
    assert all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), kept.parameters(), strict=True))
    resumed = LoGraMedTrainer(
        small_model(seed=9),
        arguments(tmp_path, **{name: value for name, value in options.items() if name != "eval_dataset"}),
        processing_class=tiny_processor(),
        train_dataset=rows,
        eval_dataset=rows,
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert logged(resumed, "loss") == logged(trainer, "loss")


def test_checkpoint_that_lacks_a_weight_is_refused(tmp_path, rows):
    from safetensors.torch import load_file, save_file

    train(tmp_path, rows, save_strategy="steps", save_steps=2)
    path = tmp_path / "run" / "checkpoint-2" / "model.safetensors"
    state = load_file(path)
    del state["graph_network.conv1.lin_root.weight"]
    save_file(state, path, metadata={"format": "pt"})
    (path.parent / "manifest.json").unlink()  # as if another program had written it so
    trainer = LoGraMedTrainer(
        small_model(), arguments(tmp_path), processing_class=tiny_processor(), train_dataset=rows
    )
    with pytest.raises(
        ValueError, match=r"lacks 1 weights of the model \(model.graph_network.conv1.lin_root.weight\)"
    ):
        trainer.train(resume_from_checkpoint=str(path.parent))


def test_lora_adapter_carries_graph_network_and_projector(tmp_path, rows):
    from peft import LoraConfig, PeftModel, get_peft_model

    config = LoraConfig(
        r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["graph_network", "multi_modal_projector"]
    )
    trainer = train(tmp_path, rows, model=get_peft_model(small_model(), config))
    trainer.save_model()
    loaded = PeftModel.from_pretrained(small_model(), tmp_path / "run").state_dict()
    trained = trainer.model.state_dict()
    start = get_peft_model(small_model(), config).state_dict()
    for part in ("graph_network.modules_to_save", "multi_modal_projector.modules_to_save", "lora_B"):
        names = [name for name in trained if part in name]
        assert names
        assert all(torch.equal(loaded[name], trained[name]) for name in names)
        assert any(not torch.equal(start[name], trained[name]) for name in names)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"alignment_weight": -1.0}, "`alignment_weight` must not be negative; got -1.0"),
        ({"num_noise_samples": 0}, "`num_noise_samples` must be at least 1; got 0"),
        ({"alignment_granularity": "word"}, "`alignment_granularity` must be one of sample, turn, span; got 'word'"),
        (
            {"alignment_granularity": "span", "use_extended_answers": False},
            "`alignment_granularity='span'` needs `use_extended_answers`",
        ),
        ({"max_validation_questions": -1}, "`max_validation_questions` must not be negative; got -1"),
        ({"alignment_memory": -1}, "`alignment_memory` must not be negative; got -1"),
    ],
)
def test_arguments_refuse_values_that_make_no_sense(tmp_path, values, words):
    with pytest.raises(ValueError, match=words):
        arguments(tmp_path, **values)
