"""Training to the end of models of five families, ours among them, through TRL's way in."""

import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTTrainer

from logramed.trainer.alignment import GRANULARITIES
from logramed.trainer.data.collator import LoGraMedDataCollator
from logramed.trainer.trainer import LoGraMedTrainer
from tests.tiny import tiny_processor
from tests.trainer.test_trainer import arguments, logged, small_model, weights
from tests.vlm_models import tiny_gemma3_model, tiny_llava_model, tiny_qwen2_5_vl_model, tiny_smolvlm_model
from tests.vlm_processors import (
    tiny_gemma3_processor,
    tiny_llava_processor,
    tiny_qwen2_5_vl_processor,
    tiny_smolvlm_processor,
)


pytestmark = pytest.mark.usefixtures("default_text_encoder")


FAMILIES = {
    "LoGra-Med": (small_model, tiny_processor),
    "LLaVA": (tiny_llava_model, tiny_llava_processor),
    "Qwen2.5-VL": (tiny_qwen2_5_vl_model, tiny_qwen2_5_vl_processor),
    "Gemma3": (tiny_gemma3_model, tiny_gemma3_processor),
    "SmolVLM": (tiny_smolvlm_model, tiny_smolvlm_processor),
}
every_family = pytest.mark.parametrize("family", FAMILIES)
LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def build(folder, rows, family, trainer_class=LoGraMedTrainer, more=None, **values):
    build_model, build_processor = FAMILIES[family]
    values = {"max_steps": 2, "learning_rate": 1e-3, "remove_unused_columns": False, **values}
    return trainer_class(
        build_model(),
        arguments(folder, **values),
        processing_class=build_processor(),
        train_dataset=rows,
        **(more or {}),
    )


def train(*args, **kwargs):
    trainer = build(*args, **kwargs)
    trainer.train()
    return trainer


@every_family
def test_two_aligned_steps_train_every_part(tmp_path, rows, family):
    trainer = build(tmp_path, rows, family, alignment_weight=0.5)
    before = {name: weight.detach().clone() for name, weight in trainer.model.base.named_parameters()}
    trainer.train()
    found = [logged(trainer, name) for name in ("loss", "language_modeling_loss", "alignment_loss")]
    assert all(len(values) == 2 and all(map(math.isfinite, values)) for values in found)
    for total, language_modeling, alignment in zip(*found, strict=True):
        assert total == pytest.approx(language_modeling + 0.5 * alignment, rel=1e-4)
    changed = [name for name, weight in trainer.model.base.named_parameters() if not torch.equal(weight, before[name])]
    for part in (("vision", "visual"), ("projector", "connector", "merger"), ("language_model", "text_model")):
        assert any(word in name for name in changed for word in part), part


def summed_loss(outputs, labels, num_items_in_batch=None):
    logits, labels = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return torch.nn.functional.cross_entropy(logits.float(), labels, ignore_index=-100)


@every_family
@pytest.mark.parametrize("way", ["plain", "label_smoothing_factor", "compute_loss_func"])
def test_weight_zero_is_plain_sft(tmp_path, rows, family, way):
    values = {"alignment_weight": 0, "label_smoothing_factor": 0.1 if way == "label_smoothing_factor" else 0.0}
    more = {"compute_loss_func": summed_loss} if way == "compute_loss_func" else {}
    if way != "plain":
        values["loss_type"] = "nll"
    collator = LoGraMedDataCollator(FAMILIES[family][1](), alignment=False)
    plain = train(tmp_path, rows, family, SFTTrainer, {"data_collator": collator, **more}, **values)
    ours = train(tmp_path, rows, family, more=more, **values)
    assert logged(ours, "loss") == logged(plain, "loss")
    assert torch.equal(weights(ours), weights(plain))


@every_family
def test_lora_trains_and_saves_an_adapter(tmp_path, rows, family):
    trainer = train(tmp_path, rows, family, more={"peft_config": LoraConfig(**LORA)}, alignment_weight=0.5)
    assert all(map(math.isfinite, logged(trainer, "alignment_loss")))
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "adapter_model.safetensors").exists()


@every_family
def test_turns_are_nodes(tmp_path, rows, family):
    trainer = train(tmp_path, rows, family, alignment_weight=0.5, alignment_granularity=GRANULARITIES[1])
    assert all(map(math.isfinite, logged(trainer, "alignment_loss")))


@every_family
def test_resuming_is_exact(tmp_path, rows, family):
    values = {"alignment_weight": 0.5, "save_strategy": "steps", "save_steps": 1}
    whole = train(tmp_path / "whole", rows, family, **values)
    resumed = build(tmp_path / "whole", rows, family, **values)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "run" / "checkpoint-1"))
    assert logged(resumed, "loss") == logged(whole, "loss")
    assert logged(resumed, "alignment_loss") == logged(whole, "alignment_loss")
    assert torch.equal(weights(resumed), weights(whole))


@every_family
def test_the_usual_call_of_trl_trains_from_a_folder(tmp_path, rows, family, monkeypatch, caplog):
    if family == "Qwen2.5-VL" or family == "SmolVLM":
        pytest.skip("Its processor here has no part for videos, so that it is no class that a folder can name.")
    build_model, build_processor = FAMILIES[family]
    folder = tmp_path / "model"
    build_model().save_pretrained(folder)
    build_processor().save_pretrained(folder)
    monkeypatch.chdir(tmp_path)
    plain = rows.remove_columns(["id", "extended_answers"])
    trainer = LoGraMedTrainer(model=str(folder), train_dataset=plain, peft_config=LoraConfig(**LORA))
    assert not trainer.args.uses_extended_answers
    assert trainer.text_encoder.name == "sentence-transformers/all-MiniLM-L6-v2"
    assert not any("no extended answers" in record.message for record in caplog.records)
    trainer.args.max_steps, trainer.args.report_to = 1, []
    trainer.train()
    paper = LoGraMedTrainer(str(folder), arguments(tmp_path), train_dataset=plain, peft_config=LoraConfig(**LORA))
    assert not paper.args.uses_extended_answers
    assert sum("no extended answers" in record.message for record in caplog.records) == 1


def test_rows_without_images_train_at_weight_zero(tmp_path, rows):
    def without_image(row):
        messages = [
            {**message, "content": [part for part in message["content"] if part["type"] != "image"]}
            for message in row["messages"]
        ]
        return {**row, "images": [], "messages": messages}

    mixed = [row if number % 2 else without_image(row) for number, row in enumerate(rows)]
    trainer = train(tmp_path, Dataset.from_list(mixed), "LoGra-Med", alignment_weight=0)
    assert all(map(math.isfinite, logged(trainer, "loss")))


def test_length_grouping_is_refused(tmp_path, rows):
    with pytest.raises(ValueError, match="'group_by_length' needs tokenized rows"):
        train(tmp_path, rows, "Qwen2.5-VL", train_sampling_strategy="group_by_length")


@every_family
@pytest.mark.parametrize("way", ["label_smoothing_factor", "compute_loss_func", "accumulate_graph"])
def test_alignment_trains_whatever_else_is_asked_for(tmp_path, rows, family, way):
    """The step is that of weight 0 and a part that grows with the weight."""
    values, more = {}, {}
    if way == "label_smoothing_factor":
        values = {"label_smoothing_factor": 0.1}
    elif way == "compute_loss_func":
        more = {"compute_loss_func": summed_loss}
    else:
        values = {"accumulate_graph": True, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    values |= {"max_steps": 1, "optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    options = {"alignment_loss": "infonce", "train_sampling_strategy": "sequential", "more": more, **values}
    start = weights_of(build(tmp_path, rows, family, alignment_weight=0.0, **options))
    steps = [
        weights_of(train(tmp_path, rows, family, alignment_weight=weight, **options)) - start
        for weight in (0.0, 1.0, 2.0)
    ]
    assert (steps[1] - steps[0]).abs().max() > 1e-6
    torch.testing.assert_close(steps[2] - steps[0], 2 * (steps[1] - steps[0]), rtol=1e-2, atol=1e-6)


def weights_of(trainer):
    return torch.cat([weight.detach().flatten() for weight in trainer.model.base.parameters()])
