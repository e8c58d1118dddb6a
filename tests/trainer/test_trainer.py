import itertools

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from trl import SFTTrainer

from logramed.trainer.alignment import (
    GRANULARITIES,
    LOSSES,
    AlignmentConfig,
    AlignmentObjective,
)
from logramed.trainer.alignment.retrieval import retrieval_metrics
from logramed.trainer.arguments import LoGraMedTrainingArguments
from logramed.trainer.data.collator import LoGraMedDataCollator
from logramed.trainer.trainer import LoGraMedTrainer
from tests.tiny import tiny_processor
from tests.tiny_models import tiny_model


def small_model(**values):
    return tiny_model(text_sizes={"vocab_size": 84}, **values)


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
        "num_neighbors": 2,
        "graph_dropout": 0.0,
        "alignment_preset": "paper",  # needs no sentence encoder
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


OBJECTIVES = [{"alignment_loss": loss} for loss in LOSSES]


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


def test_there_is_a_graph_network_only_where_the_objective_uses_it(tmp_path, rows):
    def is_trained(**values):
        return train(tmp_path, rows, max_steps=1, **values).model.graph_network is not None

    assert is_trained()
    assert not is_trained(message_weight=0.0)
    assert not is_trained(alignment_loss="infonce")
    assert not is_trained(alignment_weight=0.0)


def test_several_evaluation_sets_by_name(tmp_path, rows):
    trainer = train(tmp_path, rows, eval_dataset={"first": rows, "second": rows}, max_steps=1)
    assert {"eval_first_recall_at_1_image_to_answer", "eval_second_loss"} <= trainer.evaluate().keys()


def test_arguments_reach_the_objective_and_the_graph_network(tmp_path, rows):
    values = {
        "edge_weight": 0.5,
        "alignment_margin": 0.1,
        "graph_dropout": 0.3,
    }
    trainer = LoGraMedTrainer(
        small_model(), arguments(tmp_path, **values), processing_class=tiny_processor(), train_dataset=rows
    )
    objective = trainer.objective
    assert (objective.edge_weight, objective.margin) == (0.5, 0.1)
    assert trainer.model.graph_network.dropout.p == 0.3


def test_without_extended_answers_there_are_two_modalities(tmp_path, rows):
    short = rows.map(lambda row: {"extended_answers": None})
    trainer = train(tmp_path, short, eval_dataset=short, alignment_texts="answer", max_steps=1)
    names = [name for name in trainer.evaluate() if "recall_at_1" in name]
    assert sorted(names) == ["eval_recall_at_1_answer_to_image", "eval_recall_at_1_image_to_answer"]


def test_collator_without_node_texts_is_refused_while_alignment_is_on(tmp_path, rows):
    collator = LoGraMedDataCollator(tiny_processor(), alignment=False)
    with pytest.raises(ValueError, match=r"`alignment_weight` is 1.0, but the batch has no `nodes`"):
        train(tmp_path, rows, data_collator=collator)


def test_vision_tower_runs_once_a_step(tmp_path, rows):
    model, calls = small_model(), []
    model.model.vision_tower.register_forward_hook(lambda *call: calls.append(call))
    train(tmp_path, rows, model=model)
    assert len(calls) == 3


def test_every_part_of_the_model_is_trained(tmp_path, rows):
    options = {"processing_class": tiny_processor(), "train_dataset": rows}
    trainer = LoGraMedTrainer(small_model(), arguments(tmp_path, max_steps=1), **options)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    now = dict(trainer.model.named_parameters())
    for part in ("vision_tower.encoder", "multi_modal_projector", "language_model.layers", "graph_network"):
        assert any(part in name and not torch.equal(now[name], value) for name, value in before.items()), part


def test_a_batch_too_small_for_the_graph_has_fewer_neighbours(tmp_path, rows):
    with pytest.warns(UserWarning, match="too small for a graph"):
        train(tmp_path, rows.select([0, 1]))


def test_evaluation_gives_recall_between_all_modalities(tmp_path, rows):
    for weight in (0.0, 1.0):
        trainer = train(tmp_path, rows, eval_dataset=rows, alignment_weight=weight, max_steps=1)
        metrics = trainer.evaluate()
        for source, target in itertools.permutations(("image", "answer", "extended"), 2):
            at_1, at_5 = (metrics[f"eval_recall_at_{k}_{source}_to_{target}"] for k in (1, 5))
            assert 0 <= at_1 <= at_5 <= 1
        assert ("eval_alignment_loss" in metrics or bool(logged(trainer, "eval_alignment_loss"))) == (weight > 0)


def test_evaluation_is_without_noise(tmp_path, rows):
    trainer = train(tmp_path, rows, eval_dataset=rows, alignment_loss="paper")
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


def test_retrieval_of_answers_has_groups_of_its_own():
    image = torch.eye(8)
    other = image[[1, 0, 2, 3, 4, 5, 6, 7]]
    nodes = {"image": image, "answer": other, "extended": other}
    metrics = retrieval_metrics(nodes, torch.arange(8), torch.tensor([1, 1, 2, 3, 4, 5, 6, 7]))
    assert metrics["recall_at_1_image_to_answer"] == metrics["recall_at_1_answer_to_image"] == 1.0
    assert metrics["recall_at_1_image_to_extended"] == metrics["recall_at_1_extended_to_image"] == 0.75


def test_equal_answers_that_are_taken_for_each_other_cost_a_loss_but_hardly_a_gradient():
    """Three turns answered by one node, three by another; images lie near their answer, each in its own place."""
    found = {}
    for name, order in (("right", [0, 1, 2, 3, 4, 5]), ("wrong", [3, 1, 2, 0, 4, 5])):
        answers = torch.eye(2, 8).requires_grad_()
        images = torch.eye(2, 8).repeat_interleave(3, 0)[order]
        images = images + 0.2 * torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
        nodes = {"image": images, "answer": answers.repeat_interleave(3, 0)}
        output = AlignmentObjective(AlignmentConfig(alignment_preset="paper", alignment_loss="first_order"))(
            nodes, training=False
        )
        output.loss.backward()
        found[name] = output.loss.item(), answers.grad.norm().item()
    assert found["right"][0] > 0.1  # a tenth of log 3: three answers are equally near
    assert found["right"][1] < 0.02 * found["wrong"][1]


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_batch_that_was_built_for_other_nodes_is_refused(tmp_path, rows, granularity):
    other = LoGraMedDataCollator(
        tiny_processor(),
        config=AlignmentConfig(
            alignment_preset="paper", alignment_granularity="turn" if granularity == "sample" else "sample"
        ),
    )
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
    values = {"alignment_granularity": "turn", "alignment_texts": "answer", "max_steps": 1}
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
    batch = LoGraMedDataCollator(
        tiny_processor(), config=AlignmentConfig(alignment_preset="paper", alignment_granularity="turn")
    )(list(rows))
    with torch.no_grad():
        features = trainer.model.eval()(**batch).node_features
    expected = retrieval_metrics(features, batch["nodes"]["groups"], batch["nodes"]["answer_keys"])
    assert found[1] == pytest.approx(list(expected.values()))


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
    kept = type(trainer.model.model).from_pretrained(best)
    assert all(torch.equal(a, b) for a, b in zip(trainer.model.model.parameters(), kept.parameters(), strict=True))
    network = load_file(best / "alignment.safetensors")
    assert all(
        torch.equal(value, network[name]) for name, value in trainer.model.state_dict().items() if "graph" in name
    )
    resumed = LoGraMedTrainer(
        small_model(seed=9),
        arguments(tmp_path, **{name: value for name, value in options.items() if name != "eval_dataset"}),
        processing_class=tiny_processor(),
        train_dataset=rows,
        eval_dataset=rows,
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert logged(resumed, "loss") == logged(trainer, "loss")


def without_a_weight(path, name):
    """Leave a weight out of a checkpoint, as if another program had written it so."""
    state = load_file(path)
    del state[name]
    save_file(state, path, metadata={"format": "pt"})


def test_checkpoint_that_lacks_a_weight_is_refused(tmp_path, rows):
    train(tmp_path, rows, save_strategy="steps", save_steps=2)
    checkpoint = tmp_path / "run" / "checkpoint-2"
    without_a_weight(checkpoint / "model.safetensors", "multi_modal_projector.linear_1.weight")
    options = {"processing_class": tiny_processor(), "train_dataset": rows}
    trainer = LoGraMedTrainer(small_model(), arguments(tmp_path), **options)
    with pytest.raises(
        ValueError, match=r"1 weights of the model are missing .*multi_modal_projector.linear_1.weight"
    ):
        trainer.train(resume_from_checkpoint=str(checkpoint))


def test_checkpoint_that_lacks_a_weight_of_the_graph_network_is_refused(tmp_path, rows):
    train(tmp_path, rows, save_strategy="steps", save_steps=2)
    checkpoint = tmp_path / "run" / "checkpoint-2"
    without_a_weight(checkpoint / "alignment.safetensors", "graph_network.conv1.lin_root.weight")
    options = {"processing_class": tiny_processor(), "train_dataset": rows}
    trainer = LoGraMedTrainer(small_model(), arguments(tmp_path), **options)
    with pytest.raises(ValueError, match=r"conv1.lin_root.weight"):
        trainer.train(resume_from_checkpoint=str(checkpoint))


def test_a_published_folder_holds_no_graph_network_and_a_checkpoint_does(tmp_path, rows):
    trainer = train(tmp_path, rows, save_strategy="steps", save_steps=2)
    trainer.save_model()
    assert not any("graph" in name for name in load_file(tmp_path / "run" / "model.safetensors"))
    assert not (tmp_path / "run" / "alignment.safetensors").exists()
    names = load_file(tmp_path / "run" / "checkpoint-2" / "alignment.safetensors")
    assert "graph_network.conv1.lin_rel.weight" in names


def test_lora_adapter_carries_the_projector_and_resumes_with_its_graph_network(tmp_path, rows):
    def adapted():
        torch.manual_seed(0)
        config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["multi_modal_projector"])
        return get_peft_model(small_model(), config)

    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    trainer = train(tmp_path, rows, model=adapted(), **options)
    trainer.save_model()
    loaded = PeftModel.from_pretrained(small_model(), tmp_path / "run").state_dict()
    trained, start = trainer.model.model.state_dict(), adapted().state_dict()
    for part in ("multi_modal_projector.modules_to_save", "lora_B"):
        names = [name for name in trained if part in name]
        assert names
        assert all(torch.equal(loaded[name], trained[name]) for name in names)
        assert any(not torch.equal(start[name], trained[name]) for name in names)
    resumed = LoGraMedTrainer(
        adapted(), arguments(tmp_path, **options), processing_class=tiny_processor(), train_dataset=rows
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert logged(resumed, "alignment_loss") == logged(trainer, "alignment_loss")
    assert torch.equal(weights(resumed), weights(trainer))


@pytest.mark.parametrize("values", [{"label_smoothing_factor": 0.1}, {"loss_type": "dft"}, {}], ids=str)
def test_alignment_trains_whatever_the_language_modeling_loss_is(tmp_path, rows, values):
    """With a weight of 0 as `SFTTrainer`; with another the gradient is that of both losses, in one pass."""
    values = {**values, "max_steps": 2}
    collator = LoGraMedDataCollator(tiny_processor(), alignment=False)
    plain = train(tmp_path, rows, SFTTrainer, data_collator=collator, remove_unused_columns=False, **values)
    zero = train(tmp_path, rows, alignment_weight=0, **values)
    assert logged(zero, "loss") == pytest.approx(logged(plain, "loss"))
    torch.testing.assert_close(weights(zero), weights(plain))
    model, calls = small_model(), []
    model.model.language_model.layers[0].register_forward_hook(lambda *call: calls.append(call))
    aligned = train(tmp_path, rows, model=model, **values)
    assert len(calls) == 2 * 2 + 4  # of each step, and once to see how texts can be laid out
    assert not torch.allclose(weights(aligned)[: len(weights(zero))], weights(zero))
    for name in ("entropy", "mean_token_accuracy"):
        assert logged(aligned, name)[0] == pytest.approx(logged(plain, name)[0], rel=1e-4)


def test_alignment_trains_beside_a_loss_of_ones_own(tmp_path, rows):
    def own_loss(outputs, labels, num_items_in_batch=None):
        logits, targets = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        return torch.nn.functional.cross_entropy(logits, targets, reduction="sum") / num_items_in_batch

    def trained(alignment_weight, compute_loss_func):
        trainer = LoGraMedTrainer(
            small_model(),
            arguments(tmp_path, alignment_weight=alignment_weight, optim="sgd"),
            processing_class=tiny_processor(),
            train_dataset=rows,
            compute_loss_func=compute_loss_func,
        )
        trainer.train()
        return trainer

    for weight in (0.0, 1.0):  # the loss that `SFTTrainer` has by default, written out
        own, default = trained(weight, own_loss), trained(weight, None)
        torch.testing.assert_close(weights(own), weights(default), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"alignment_weight": -1.0}, "`alignment_weight` must not be negative; got -1.0"),
        ({"num_neighbors": 0}, "`num_neighbors` must be at least 1; got 0"),
        ({"alignment_granularity": "word"}, "`alignment_granularity` must be one of sample, turn, span; got 'word'"),
        (
            {"alignment_granularity": "span", "alignment_texts": "answer"},
            "`alignment_granularity='span'` needs `alignment_texts` with `extended`",
        ),
        ({"max_validation_questions": -1}, "`max_validation_questions` must not be negative; got -1"),
    ],
)
def test_arguments_refuse_values_that_make_no_sense(tmp_path, values, words):
    with pytest.raises(ValueError, match=words):
        arguments(tmp_path, **values)
