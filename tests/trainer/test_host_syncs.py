"""How often the processor waits for an accelerator in a micro-batch, forward and backward."""

from collections import Counter

import pytest
import torch

from logramed.trainer.trainer import LoGraMedTrainer
from tests.host_syncs import count_host_syncs
from tests.tiny import tiny_processor
from tests.trainer.test_trainer import arguments, small_model


# By file of our source, the innermost that led there. A micro-batch that is not logged has no matching accuracy.
MOST_WAITS = {
    "modeling_logramed/modeling_logramed.py": 3,  # in LLaVA: its count of image tokens (2), its forward pass (1)
    # In the pass of the texts, probably its mask (1); which tokens have labels (2), which a CPU alone asks.
    "trainer/alignment/aligned_model.py": 3,
    "tests/trainer/test_host_syncs.py": 1,  # the backward pass of the latter
    "trainer/alignment/graph_network.py": 2,  # the sparse product, which a CPU alone takes
    "trainer/alignment/objective.py": 1,  # whether the features are finite
    "trainer/trainer.py": 5,  # TRL's `compute_loss` logs entropy, accuracy and numbers of tokens
}


@pytest.mark.parametrize("granularity", ["sample", "turn", "span"])
def test_a_micro_batch_waits_no_more_often_than_is_known(tmp_path, rows, granularity):
    values = arguments(tmp_path, alignment_granularity=granularity, logging_steps=5)
    trainer = LoGraMedTrainer(small_model(), values, processing_class=tiny_processor(), train_dataset=rows)
    trainer.state.logging_steps, trainer.current_gradient_accumulation_steps = 5, 1
    trainer.model.train()
    batches = [trainer.data_collator([rows[number] for number in range(4)]) for _ in range(2)]
    trainer.compute_loss(trainer.model, batches[0]).backward()  # the first chooses how texts are laid out
    with count_host_syncs() as counter:
        trainer.compute_loss(trainer.model, batches[1], num_items_in_batch=torch.tensor(10)).backward()
    found = Counter()
    for place, count in counter.places.items():
        found[place.partition(":")[0]] += count
    assert not found - Counter(MOST_WAITS), counter.places
