"""Tests that no step holds the logits of all tokens, however long its input."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.utils import ModelOutput

from logramed.trainer.alignment.aligned_model import TOKENS_AT_ONCE, LanguageHead, score_logits
from tests.benchmarks import long_inputs
from tests.tiny_models import tiny_model


class LargestTensor(TorchDispatchMode):
    """The most elements that a tensor has which is made while this holds."""

    num_elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        tensors = made if isinstance(made, tuple | list) else [made]
        self.num_elements = max([self.num_elements, *(t.numel() for t in tensors if torch.is_tensor(t))])
        return made


@pytest.mark.parametrize("kind", ["training, aligned", "generate", "evaluation"])
def test_no_tensor_is_as_large_as_the_logits_of_all_tokens(kind, tmp_path):
    long_inputs.write_image(tmp_path)
    step, num_tokens = long_inputs.KINDS[kind](4096, tmp_path)
    with LargestTensor() as largest:
        step()
    assert largest.num_elements < num_tokens * long_inputs.VOCAB_SIZE / 4


@pytest.mark.parametrize("num_labels", [0, 1, TOKENS_AT_ONCE, 2 * TOKENS_AT_ONCE + 7])
def test_the_head_in_pieces_gives_what_all_logits_give(num_labels):
    model, generator = tiny_model(), torch.Generator().manual_seed(0)
    hidden_states = torch.randn(2, 200, 32, generator=generator, requires_grad=True)
    labels = torch.randint(0, 99, (2, 200), generator=generator)
    is_label = torch.randperm(398, generator=generator).argsort().view(2, 199) < num_labels
    labels[:, 1:].masked_fill_(~is_label, -100)
    found = LanguageHead(model).score(ModelOutput(last_hidden_state=hidden_states), labels)
    logits = model.get_output_embeddings()(hidden_states)
    expected = score_logits(logits, labels)
    assert found.label_mask.sum() == num_labels
    for name in ("log_probs", "entropy", "is_top1", "label_mask"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)
    weight = model.get_output_embeddings().weight
    plain = logits[:, :-1].log_softmax(-1).gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    ours = torch.autograd.grad(found.log_probs.sum(), [hidden_states, weight])
    theirs = torch.autograd.grad((plain * is_label).sum(), [hidden_states, weight])
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)
