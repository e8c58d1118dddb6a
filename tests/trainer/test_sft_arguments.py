"""Each argument of `SFTConfig` beyond `TrainingArguments` works or is refused by name."""

import dataclasses

import pytest
import torch
from transformers import TrainingArguments
from trl import SFTConfig

from logramed.trainer.trainer import LoGraMedTrainer
from tests.tiny import tiny_processor
from tests.trainer.test_trainer import arguments, logged, small_model, train, weights


def batch_of(folder, rows, **values):
    trainer = LoGraMedTrainer(
        small_model(), arguments(folder, **values), processing_class=tiny_processor(), train_dataset=rows
    )
    return trainer.data_collator(list(rows)[:3])


def differs(name, value):
    """Training with the value gives other weights."""

    def check(folder, rows):
        with_it, without = (train(folder, rows, max_steps=1, **values) for values in ({name: value}, {}))
        assert not torch.equal(weights(with_it), weights(without))

    return check


def changes_nothing(name, value):
    """What is trained is what the value asks for in any case."""

    def check(folder, rows):
        with_it, without = (train(folder, rows, max_steps=1, **values) for values in ({name: value}, {}))
        assert torch.equal(weights(with_it), weights(without))

    return check


def is_refused(name, value, words):
    def check(folder, rows):
        with pytest.raises(ValueError, match=words):
            train(folder, rows, **{name: value})

    return check


def pads_to_a_multiple(folder, rows):
    batch = batch_of(folder, rows, pad_to_multiple_of=16)
    assert batch["input_ids"].shape[1] % 16 == 0
    assert batch["labels"].shape == batch["input_ids"].shape == batch["attention_mask"].shape


def puts_the_loss_on_prompts_too(folder, rows):
    counts = [
        (batch_of(folder, rows, completion_only_loss=value)["labels"] >= 0).sum() for value in (None, True, False)
    ]
    assert counts[0] == counts[1] < counts[2]


def cuts_at_the_length(folder, rows):
    assert batch_of(folder, rows, max_length=24)["input_ids"].shape[1] == 24


def takes_another_template(folder, rows):
    template = folder / "template.jinja"
    template.write_text(
        "{% for message in messages %}{{ message['role'] + ' : ' }}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
        "{{ eos_token }}{% endfor %}"
    )
    changed, usual = (batch_of(folder, rows, **values) for values in ({"chat_template_path": str(template)}, {}))
    assert changed["input_ids"].shape != usual["input_ids"].shape


def loads_the_model_with_them(folder, rows):
    small_model().save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")
    values = arguments(folder, model_init_kwargs={"dtype": "bfloat16"}, trust_remote_code=False)
    trainer = LoGraMedTrainer(str(folder / "model"), values, train_dataset=rows)
    assert trainer.model.dtype == torch.bfloat16


def sets_the_token(name):
    def check(folder, rows):
        trainer = LoGraMedTrainer(
            small_model(), arguments(folder, **{name: "."}), processing_class=tiny_processor(), train_dataset=rows
        )
        assert getattr(trainer.processing_class.tokenizer, name) == "."
        assert trainer.data_collator(list(rows)[:2])["input_ids"].numel()

    return check


TEXT_ALONE = "are for text without images"
TABLE = {
    "model_init_kwargs": loads_the_model_with_them,
    "trust_remote_code": loads_the_model_with_them,
    "router_aux_loss_coef": is_refused("router_aux_loss_coef", 0.1, "not a Mixture-of-Experts model"),
    "chat_template_path": takes_another_template,
    "dataset_text_field": is_refused("dataset_text_field", "words", TEXT_ALONE),
    "dataset_kwargs": changes_nothing("dataset_kwargs", {"skip_prepare_dataset": True}),
    "dataset_num_proc": changes_nothing("dataset_num_proc", 2),
    "eos_token": sets_the_token("eos_token"),
    "max_length": cuts_at_the_length,
    "truncation_mode": is_refused("truncation_mode", "keep_end", "not supported for vision datasets"),
    "shuffle_dataset": changes_nothing("shuffle_dataset", True),
    "packing": is_refused("packing", True, TEXT_ALONE),
    "packing_strategy": changes_nothing("packing_strategy", "wrapped"),
    "padding_free": is_refused("padding_free", True, TEXT_ALONE),
    "pad_to_multiple_of": pads_to_a_multiple,
    "eval_packing": changes_nothing("eval_packing", False),
    "completion_only_loss": puts_the_loss_on_prompts_too,
    "assistant_only_loss": changes_nothing("assistant_only_loss", True),
    "loss_type": differs("loss_type", "dft"),
    "activation_offloading": changes_nothing("activation_offloading", False),
    "pad_token": sets_the_token("pad_token"),
}


def test_the_table_has_every_argument():
    own = {field.name for field in dataclasses.fields(SFTConfig)} - {
        field.name for field in dataclasses.fields(TrainingArguments)
    }
    assert own == TABLE.keys()


@pytest.mark.parametrize("name", TABLE)
def test_an_argument_works_or_is_refused_by_name(tmp_path, rows, name):
    TABLE[name](tmp_path, rows)


def test_label_smoothing_changes_the_loss_and_leaves_alignment_on(tmp_path, rows):
    smoothed, plain = (train(tmp_path, rows, label_smoothing_factor=factor, max_steps=2) for factor in (0.2, 0.0))
    assert logged(smoothed, "language_modeling_loss")[0] != logged(plain, "language_modeling_loss")[0]
    assert logged(smoothed, "alignment_loss")[0] == pytest.approx(logged(plain, "alignment_loss")[0], rel=1e-5)
