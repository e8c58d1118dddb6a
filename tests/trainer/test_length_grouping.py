import random

from datasets import Dataset, Features, Image, List, Value

from logramed.trainer.collator import LoGraMedDataCollator
from logramed.trainer.length_grouping import SeededLengthSampler, count_tokens
from logramed.trainer.trainer import LoGraMedTrainer
from tests.tiny import tiny_processor
from tests.trainer.test_trainer import arguments, small_model


def rows_of_lengths(rows, lengths):
    """The first row again and again, its answers as often as `lengths` say."""
    source = dict(rows[0])
    made = []
    for number, length in enumerate(lengths):
        messages = [
            {**message, "content": [dict(part) for part in message["content"]]} for message in source["messages"]
        ]
        messages[-1]["content"][-1]["text"] = " ".join(["lung"] * length)
        made.append({**source, "id": str(number), "messages": messages})
    return Dataset.from_list(made, features=rows.features)


def padding(batches, lengths):
    return sum(max(lengths[i] for i in batch) * len(batch) - sum(lengths[i] for i in batch) for batch in batches)


def test_counted_tokens_are_those_of_the_batch(rows):
    made = rows_of_lengths(rows, [1, 9, 4])
    collator = LoGraMedDataCollator(tiny_processor(), alignment=False)
    batch = collator([made[number] for number in range(3)])
    assert count_tokens(made, collator) == batch["attention_mask"].sum(dim=1).tolist()


def test_tokens_are_counted_in_any_form_without_decoding_an_image(rows):
    plain = [
        {
            "images": [{"bytes": b"no image", "path": None}],
            "prompt": "what is it",
            "completion": " ".join(["lung"] * n),
        }
        for n in (1, 9)
    ]
    features = Features({"images": List(Image()), "prompt": Value("string"), "completion": Value("string")})
    first, second = count_tokens(
        Dataset.from_list(plain, features=features), LoGraMedDataCollator(tiny_processor(), alignment=False)
    )
    assert second > first > tiny_processor().num_image_tokens


def test_grouped_batches_hold_less_padding_and_every_sample_once():
    lengths = [random.Random(number).randint(1, 300) for number in range(640)]
    sampler = SeededLengthSampler(8, lengths, seed=0)
    order = list(sampler)
    shuffled = random.Random(0).sample(range(640), 640)
    batches, others = ([order[start : start + 8] for start in range(0, 640, 8)] for order in (order, shuffled))
    assert sorted(order) == list(range(640))
    assert padding(batches, lengths) < 0.2 * padding(others, lengths)


def test_order_depends_on_seed_and_epoch_alone():
    lengths = list(range(1, 65))
    sampler, other = SeededLengthSampler(4, lengths, seed=3), SeededLengthSampler(4, lengths, seed=3)
    first = list(sampler)
    sampler.set_epoch(1)
    other.set_epoch(1)
    assert list(sampler) == list(other) != first


def test_trainer_groups_by_length(tmp_path, rows):
    made = rows_of_lengths(rows, [1, 9] * 20).with_transform(lambda batch: batch)
    values = {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 2, "max_steps": 2}
    trainer = LoGraMedTrainer(
        small_model(), arguments(tmp_path, **values), processing_class=tiny_processor(), train_dataset=made
    )
    widths = [set(batch["attention_mask"].sum(dim=1).tolist()) for batch in trainer.get_train_dataloader()]
    assert sum(len(width) > 1 for width in widths) <= 4  # one for each of the groups that are sorted; 10 by chance
    trainer.train()
