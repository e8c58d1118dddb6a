import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from trl import SFTTrainer

from logramed.trainer.alignment import GRADIENT_ESTIMATORS, LOSSES
from logramed.trainer.arguments import LoGraMedTrainingArguments
from logramed.trainer.collator import LoGraMedDataCollator
from logramed.trainer.trainer import AlignmentRecorder, LoGraMedTrainer, retrieval_metrics, text_keys
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


TWO_PROCESSES = """
import sys, torch
from pathlib import Path
from logramed.trainer.data import load_training_rows
from tests.trainer.test_trainer import one_step, weights, logged
rows = load_training_rows(sys.argv[1]).dataset.select([int(index) for index in sys.argv[3].split(",")])
trainer = one_step(
    Path(sys.argv[2]), rows, alignment_weight=1.0, train_sampling_strategy="sequential", per_device_train_batch_size=4
)
if trainer.is_world_process_zero():
    torch.save((weights(trainer), logged(trainer, "alignment_loss")), Path(sys.argv[2]) / "result.pt")
trainer.accelerator.wait_for_everyone()
trainer.accelerator.end_training()
"""


def test_two_devices_with_equal_batches_take_the_step_of_one(tmp_path, data_file, rows):
    (tmp_path / "two.py").write_text(TWO_PROCESSES)
    dealt = "0,1,2,3,0,1,2,3"  # batches are dealt out in turn: each process gets samples 0 to 3
    repository = Path(__file__).parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(tmp_path / "two.py"), str(data_file), str(tmp_path), dealt],
        env={**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found, alignment_loss = torch.load(tmp_path / "result.pt")
    one = one_step(tmp_path, rows.select([0, 1, 2, 3]), alignment_weight=1.0, train_sampling_strategy="sequential")
    assert alignment_loss == pytest.approx(logged(one, "alignment_loss"), rel=1e-4)
    torch.testing.assert_close(found, weights(one), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("estimator", GRADIENT_ESTIMATORS)
def test_every_objective_gives_the_graph_features_a_finite_gradient(tmp_path, rows, loss, estimator):
    start = small_model().get_input_embeddings().weight.detach().clone()
    values = {"alignment_loss": loss, "gradient_estimator": estimator, "max_steps": 2}
    trainer = train(tmp_path, rows, **values)
    plain = train(tmp_path, rows, **values, alignment_weight=0)
    trained = trainer.model.get_input_embeddings().weight
    assert torch.isfinite(trained).all()
    assert not torch.equal(trained, start)
    assert not torch.equal(trained, plain.model.get_input_embeddings().weight)


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
        ({"max_validation_questions": -1}, "`max_validation_questions` must not be negative; got -1"),
    ],
)
def test_arguments_refuse_values_that_make_no_sense(tmp_path, values, words):
    with pytest.raises(ValueError, match=words):
        arguments(tmp_path, **values)
