import pytest
import torch

from logramed.trainer import trainer as trainer_module
from logramed.trainer.alignment import GRANULARITIES
from logramed.trainer.alignment.gradient_caching import StepGraph, cached_loss, random_state, replayed
from tests.trainer.gradient_steps import small_model, take_steps, uneven_turns


def assert_equal_steps(found, expected, rtol=1e-4, atol=2e-6):
    """Of results of `take_steps`: the same losses, and the same gradient of every parameter."""
    (_, keep, logged), (_, expected_keep, expected_logged) = found, expected
    for name, values in expected_logged.items():
        assert logged[name] == pytest.approx(values, rel=1e-5), name
    for gradients, expected_gradients in zip(keep.gradients, expected_keep.gradients, strict=True):
        assert gradients.keys() == expected_gradients.keys()
        for name, value in expected_gradients.items():
            torch.testing.assert_close(gradients[name], value, rtol=rtol, atol=atol, msg=name)


@pytest.mark.parametrize(
    "values",
    [
        *({"alignment_granularity": granularity} for granularity in GRANULARITIES),
        {"alignment_loss": "infonce"},
        {"alignment_loss": "paper", "alignment_weight": 0.3},
        {"gradient_checkpointing": True},
    ],
    ids=str,
)
def test_micro_batches_of_one_graph_take_the_step_of_one_batch(tmp_path, rows, values):
    rows, dealt = uneven_turns(rows), [*range(8), *range(7, -1, -1)]
    one = take_steps(tmp_path, rows, dealt=dealt, per_device_train_batch_size=8, **values)
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "accumulate_graph": True}
    assert_equal_steps(take_steps(tmp_path, rows, dealt=dealt, **options, **values), one)


def test_in_float64_the_gradients_are_equal_to_its_precision(tmp_path, rows):
    found = []
    for values in (
        {"per_device_train_batch_size": 8},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "accumulate_graph": True},
    ):
        _, keep, _ = take_steps(tmp_path, rows, model=small_model(dtype=torch.float64), **values)
        found.append(keep.gradients[0])
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-6, atol=1e-9, msg=name)


def test_in_bfloat16_the_alignment_loss_is_that_of_one_batch_up_to_rounding(tmp_path, rows):
    losses = [
        take_steps(tmp_path, rows, bf16=True, **values)[2]["alignment_loss"]
        for values in (
            {"per_device_train_batch_size": 8},
            {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "accumulate_graph": True},
        )
    ]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)


def test_adapters_and_the_parts_beside_them_take_the_step_of_one_batch(tmp_path, rows):
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "accumulate_graph": True}
    found = take_steps(tmp_path, rows, model=small_model(adapters=True), **options)
    one = take_steps(tmp_path, rows, model=small_model(adapters=True), per_device_train_batch_size=8)
    assert_equal_steps(found, one)
    assert any("graph_network" in name for name in one[1].gradients[0])


def test_without_it_the_graphs_of_micro_batches_stay_apart(tmp_path, rows):
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    apart = take_steps(tmp_path, rows, **options)[2]
    joint = take_steps(tmp_path, rows, **options, accumulate_graph=True)[2]
    assert apart["language_modeling_loss"] == pytest.approx(joint["language_modeling_loss"])
    assert apart["alignment_loss"] != pytest.approx(joint["alignment_loss"], rel=1e-2)


def test_a_last_step_of_fewer_and_smaller_micro_batches_is_one_graph_too(tmp_path, rows):
    """Seven samples: a step of four in two micro-batches, then one of two and one."""
    rows = rows.select(range(7))
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "accumulate_graph": True}
    found = take_steps(tmp_path, rows, max_steps=2, **options)
    assert_equal_steps(found, take_steps(tmp_path, rows, max_steps=2, per_device_train_batch_size=4))


def test_one_micro_batch_is_plain_training(tmp_path, rows):
    found, plain = (take_steps(tmp_path, rows, accumulate_graph=flag) for flag in (True, False))
    assert_equal_steps(found, plain, rtol=0, atol=0)


def model_with_dropout():
    model = small_model()
    model.config.text_config.attention_dropout = 0.2
    for module in model.modules():
        for name in ("dropout", "attention_dropout"):  # of towers and language models
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.2)
    return model


def test_with_dropout_the_second_pass_has_the_features_of_the_first_bit_for_bit(tmp_path, rows, monkeypatch):
    first, second = [], []
    compute = StepGraph.compute_nodes

    def compute_and_keep(self, *args):
        compute(self, *args)
        first.extend({name: leaf.detach().clone() for name, leaf in leaves.items()} for leaves, _ in self._nodes)

    def share_and_keep(features, *args):
        second.append({name: values.detach().clone() for name, values in features.items()})
        return cached_loss(features, *args)

    monkeypatch.setattr(StepGraph, "compute_nodes", compute_and_keep)
    monkeypatch.setattr(trainer_module, "cached_loss", share_and_keep)
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "accumulate_graph": True}
    same = [0, 1] * 4  # equal micro-batches differ by their dropout alone
    take_steps(tmp_path, rows, dealt=same, model=model_with_dropout(), graph_dropout=0.2, **options)
    assert len(first) == len(second) == 3
    for name in ("image", "answer", "extended"):
        for before, after in zip(first, second, strict=True):
            assert torch.equal(before[name], after[name])
        assert not torch.equal(first[0][name], first[1][name])


def test_a_seeded_run_with_dropout_is_the_same_again(tmp_path, rows):
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "accumulate_graph": True}
    found = [
        take_steps(tmp_path, rows, model=model_with_dropout(), max_steps=2, graph_dropout=0.2, **options)
        for _ in range(2)
    ]
    assert_equal_steps(*found, rtol=0, atol=0)


@pytest.mark.parametrize("scale", [1.0, 2.0**10])
def test_cached_gradients_are_those_of_the_unscaled_loss(scale):
    """As loss scaling of 16-bit training does it: the first backward pass is scaled, and so is each further one."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 3, generator=generator) for _ in range(3)]
    weight = torch.randn(3, 4, generator=generator, requires_grad=True)

    def loss_of(features):
        return (features @ features.T).square().mean()

    loss_of(torch.cat(inputs) @ weight).backward()
    expected, weight.grad = weight.grad, None
    graph = StepGraph(inputs)
    graph.compute_nodes(lambda batch: ({"image": batch @ weight}, torch.zeros(2)), torch.device("cpu"))
    for number, batch in enumerate(inputs):
        features = {"image": batch @ weight}
        if number == 0:
            joined, groups = graph.join(features, torch.zeros(2))
            assert len(groups) == 6
            loss = loss_of(joined["image"])
        else:
            loss = cached_loss(features, graph.cached_gradients(), None)
            assert loss.item() == 0
        graph.finish(loss)
        (scale * loss).backward()
    torch.testing.assert_close(weight.grad / scale, expected)


def test_an_overflow_reaches_the_gradient_and_not_the_loss():
    features = torch.ones(2, 3, requires_grad=True)
    loss = cached_loss({"image": features}, {"image": torch.full((2, 3), torch.inf)}, None)
    assert loss.item() == 0
    loss.backward()
    assert torch.isinf(features.grad).all()


def test_small_gradients_of_half_precision_features_are_scaled_before_they_are_cast():
    """Unscaled, they are below the smallest float16; the loss scaling of mixed precision is there to keep them."""
    features = torch.ones(2, 3, dtype=torch.float16, requires_grad=True)
    gradient = torch.full((2, 3), 2.0**-26)
    (2.0**16 * cached_loss({"image": features}, {"image": gradient}, None)).backward()
    assert torch.equal(features.grad, torch.full((2, 3), 2.0**-10, dtype=torch.float16))


def test_gradients_are_refused_before_there_are_any():
    graph = StepGraph([torch.ones(1, 2)] * 2)
    graph.compute_nodes(lambda batch: ({"image": batch}, torch.zeros(1)), torch.device("cpu"))
    graph.position = 1
    with pytest.raises(RuntimeError, match="first micro-batch of this step had no backward pass"):
        graph.cached_gradients()


def test_replaying_random_numbers_leaves_those_outside_as_they_were():
    cpu = torch.device("cpu")
    torch.manual_seed(0)
    state = random_state(cpu)
    first = torch.rand(3)
    outside = random_state(cpu)
    with replayed(state, cpu):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), outside[0])
