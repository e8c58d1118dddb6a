from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from logramed.graph_network_logramed import GraphNetwork
from logramed.trainer.alignment import LOSSES, AlignmentObjective, hamming_loss, infonce_loss


FIXTURES = Path(__file__).resolve().parents[3].parent / "shared" / "fixtures" / "alignment"
STEPS = ["step_easy_8x16", "step_hard_8x16", "step_hard_12x32", "step_hard_16x32"]
MODALITIES = ("image", "answer", "extended")
SIZE = 16


def make_features(num_samples=8, noise=0.1, seed=0, modalities=MODALITIES, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(num_samples, SIZE, generator=generator)
    return {
        name: (shared + noise * torch.randn(num_samples, SIZE, generator=generator)).to(dtype).requires_grad_()
        for name in modalities
    }


def unrelated_features(num_samples=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(num_samples, SIZE, generator=generator) for name in MODALITIES}


def make_network(seed=0):
    torch.manual_seed(seed)
    return GraphNetwork(SIZE)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class RecordedStep:
    """One step of the release: its inputs, what it computed, and the matchings its solver gave."""

    def __init__(self, name):
        path = FIXTURES / f"{name}.safetensors"
        if not path.exists():
            pytest.skip(f"needs the recorded step {path.name} in ../shared/fixtures/alignment")
        self.values = load_file(path)
        self.features = {name: self.values[f"features.{name}"].requires_grad_() for name in MODALITIES}
        self.network = GraphNetwork(self.features["image"].shape[1]).eval()
        prefix = "graph_network."
        self.network.load_state_dict(
            {key.removeprefix(prefix): value for key, value in self.values.items() if key.startswith(prefix)}
        )
        matchings = iter(("matching", "backward_matching"))
        self.objective = AlignmentObjective("paper", solver=lambda *_, **__: self.labels(next(matchings)))
        self.pairs = self.objective.paper_pairs(self.features, self.network)

    def stacked(self, name):
        return torch.stack([self.values[f"{pair}.{name}"] for pair in self.pairs.names])

    def labels(self, name):
        matching = self.stacked(name)
        return torch.where(matching.any(-1), matching.int().argmax(-1), -1)

    def costs(self):
        return self.objective.paper_costs(self.pairs, self.values["noise.nodes"], self.stacked("noise.edges"))


@pytest.mark.parametrize("name", STEPS)
def test_paper_graphs_and_costs_equal_those_of_the_release(name):
    step = RecordedStep(name)
    assert torch.equal(step.pairs.source_edge_index, step.stacked("edge_index"))
    for part in ("source_nodes", "target_nodes", "source_edges", "target_edges"):
        torch.testing.assert_close(getattr(step.pairs, part), step.stacked(part), rtol=1e-5, atol=1e-6)
    for costs, part in zip(step.costs(), ("node_costs", "edge_costs"), strict=True):
        torch.testing.assert_close(costs, step.stacked(part), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weight", [1.0, 0.1, 65536.0])
@pytest.mark.parametrize("name", STEPS)
def test_paper_loss_and_gradients_equal_those_of_the_release(name, weight):
    step = RecordedStep(name)
    loss = step.objective.matching_loss(step.pairs, *step.costs()).loss
    torch.testing.assert_close(loss.reshape(1).float(), step.values["loss"], rtol=1e-5, atol=1e-6)
    (weight * loss).backward()
    for modality, features in step.features.items():
        expected = step.values[f"gradient.features.{modality}"]
        torch.testing.assert_close(features.grad / weight, expected, rtol=1e-5, atol=1e-6)
    for parameter_name, parameter in step.network.named_parameters():
        expected = step.values[f"gradient.graph_network.{parameter_name}"]
        torch.testing.assert_close(parameter.grad / weight, expected, rtol=1e-5, atol=1e-6)


def test_hamming_loss_counts_2_for_a_wrong_node_and_1_for_an_unmatched_one():
    matching = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    assert hamming_loss(matching).item() == (2 + 2 + 1) / 4
    assert hamming_loss(matching, torch.tensor([0, 5, 5, 6])).item() == 1 / 4  # nodes 1 and 2 are the same sample


def test_infonce_loss_equals_cross_entropy_by_hand():
    source, target = torch.randn(2, 5, 3, generator=seeded()).unbind()
    similarity = source @ target.T / 0.5
    by_hand = 0.0
    for logits in (similarity, similarity.T):
        by_hand += sum(torch.logsumexp(row, 0) - row[i] for i, row in enumerate(logits)) / 5 / 2
    torch.testing.assert_close(infonce_loss(source, target, 0.5), by_hand)


def test_infonce_leaves_twins_out_of_the_negatives():
    source, target = torch.randn(2, 3, 4, generator=seeded()).unbind()
    similarity = source @ target.T / 0.5
    # Samples 0 and 2 are one: each is contrasted with sample 1 alone, sample 1 with both.
    kept = [[0, 1], [0, 1, 2], [1, 2]]
    by_hand = 0.0
    for logits in (similarity, similarity.T):
        by_hand += sum(torch.logsumexp(row[kept[i]], 0) - row[i] for i, row in enumerate(logits)) / 3 / 2
    torch.testing.assert_close(infonce_loss(source, target, 0.5, torch.tensor([7, 1, 7])), by_hand)


@pytest.mark.parametrize("loss", LOSSES)
def test_aligned_features_have_a_lower_loss_than_unrelated_ones(loss):
    objective = AlignmentObjective(loss)
    network = make_network().eval()
    aligned = objective(make_features(12), network, training=False)
    unrelated = objective(unrelated_features(), network, training=False)
    assert aligned.loss < unrelated.loss
    assert aligned.matching_accuracy > 0.9


@pytest.mark.parametrize(("loss", "leaks"), [("multi_graph", False), ("multi_graph_pairwise", False), ("paper", True)])
def test_only_the_paper_form_matches_unrelated_features_better_than_chance(loss, leaks):
    objective = AlignmentObjective(loss)
    network = make_network()  # in training mode: a dropout mask must not give nodes away either
    outputs = [objective(unrelated_features(12, seed), network, seeded(seed)) for seed in range(10)]
    accuracy = torch.stack([output.matching_accuracy for output in outputs]).mean()
    chance = 1 / 12
    assert (accuracy > 2 * chance) if leaks else (accuracy < 1.5 * chance)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("modalities", [MODALITIES, ("image", "answer")])
def test_gradients_reach_every_modality_and_the_graph_network(loss, modalities):
    features = make_features(8, noise=2.0, modalities=modalities)
    network = make_network().eval()
    output = AlignmentObjective(loss)(features, network, seeded())
    output.loss.backward()
    assert all(values.grad.abs().sum() > 0 for values in features.values())
    if loss not in ("first_order", "infonce"):
        assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_finite_for_zero_vectors_and_duplicates(loss):
    features = make_features(8, noise=1.0)
    with torch.no_grad():
        features["image"][0] = 0
        features["answer"][1:4] = features["answer"][1]
        features["extended"][:] = 1
    output = AlignmentObjective(loss)(features, make_network(), seeded())
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert all(torch.isfinite(values.grad).all() for values in features.values())


@pytest.mark.parametrize("loss", LOSSES)
def test_evaluation_has_no_noise(loss):
    objective = AlignmentObjective(loss)
    features = make_features(8, noise=1.0)
    network = make_network().eval()
    first, second = (objective(features, network, seeded(seed), training=False) for seed in (0, 1))
    assert torch.equal(first.loss, second.loss)


@pytest.mark.parametrize("loss", ["multi_graph", "first_order", "paper"])
def test_training_noise_is_fresh_and_seeded(loss):
    objective = AlignmentObjective(loss)
    features = make_features(12, noise=2.0)
    generator = seeded()
    first, second = (objective(features, None, generator) for _ in range(2))
    again = objective(features, None, seeded())
    labels = [torch.stack(list(output.matchings.values())) for output in (first, second, again)]
    assert torch.equal(labels[0], labels[2])
    assert not torch.equal(labels[0], labels[1])


@pytest.mark.parametrize("loss", LOSSES)
def test_order_of_the_samples_does_not_matter(loss):
    features = make_features(10, noise=0.7)
    order = torch.randperm(10, generator=seeded())
    network = make_network().eval()
    objective = AlignmentObjective(loss)
    plain = objective(features, network, training=False)
    moved = objective({name: values[order] for name, values in features.items()}, network, training=False)
    torch.testing.assert_close(plain.loss, moved.loss)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_features_and_network_give_a_float32_loss(loss, dtype):
    features = make_features(8, dtype=dtype)
    network = make_network().eval().to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        output = AlignmentObjective(loss)(features, network, seeded())
    output.loss.backward()
    assert output.loss.dtype in (torch.float32, torch.float64)
    assert all(values.grad.dtype == dtype and torch.isfinite(values.grad).all() for values in features.values())


@pytest.mark.parametrize("loss", ["multi_graph", "paper"])
def test_a_loss_scale_divides_out_of_the_gradient(loss):
    gradients = []
    for scale in (1.0, 65536.0):
        features = make_features(8, noise=2.0)
        (scale * AlignmentObjective(loss)(features, make_network().eval(), seeded()).loss).backward()
        gradients.append(features["image"].grad / scale)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("num_samples", [1, 2, 5])
@pytest.mark.parametrize("loss", ["multi_graph", "paper"])
def test_small_batches_shrink_on_request(loss, num_samples):
    features = make_features(num_samples)
    with pytest.warns(UserWarning, match="fewer neighbours"):
        output = AlignmentObjective(loss, small_batch="shrink")(features, make_network(), seeded())
    output.loss.backward()
    assert all(torch.isfinite(values.grad).all() for values in features.values())


def test_small_batches_are_refused_by_default():
    with pytest.raises(ValueError, match="batch of 4 samples"):
        AlignmentObjective()(make_features(4))


def test_without_extended_answers_two_modalities_are_matched_both_ways():
    output = AlignmentObjective()(make_features(modalities=("image", "answer")), None, seeded())
    assert set(output.matchings) == {"image>answer", "answer>image"}
    with_none = {**make_features(modalities=("image", "answer")), "extended": None}
    assert set(AlignmentObjective()(with_none, None, seeded()).matchings) == set(output.matchings)


def test_equal_samples_are_one_label():
    features = make_features(8, noise=0.0)
    doubled = {name: torch.cat([values, values]).detach() for name, values in features.items()}
    objective = AlignmentObjective()
    groups = torch.arange(8).repeat(2)
    assert objective(doubled, training=False, groups=groups).loss == 0
    assert objective(doubled, training=False).loss > 0


@pytest.mark.parametrize("modality", MODALITIES)
def test_nan_is_refused_with_the_name_of_its_modality(modality):
    features = {name: values.detach() for name, values in make_features().items()}
    features[modality][2, 3] = torch.nan
    with pytest.raises(ValueError, match=f"The {modality} features hold NaN"):
        AlignmentObjective()(features)


def test_objective_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="two modalities"):
        AlignmentObjective()(make_features(modalities=("image",)))
    with pytest.raises(ValueError, match=r"answer features must be .*\(8, 16\), got \(7, 16\)"):
        AlignmentObjective()({"image": torch.zeros(8, 16), "answer": torch.zeros(7, 16)})
    with pytest.raises(ValueError, match="`loss` must be one of"):
        AlignmentObjective("triplet")
    with pytest.raises(ValueError, match="`num_samples` must be at least 1"):
        AlignmentObjective(num_samples=0)
    with pytest.raises(ValueError, match="`step` must be above 0"):
        AlignmentObjective(step=0)


@pytest.mark.parametrize("loss", ["multi_graph", "first_order"])
def test_training_on_the_objective_aligns_held_out_items(loss):
    from logramed.trainer.alignment import recall_at_k

    torch.manual_seed(0)
    generator = seeded()
    mixing = {name: torch.randn(6, SIZE, generator=generator) for name in ("image", "answer")}
    encoders = torch.nn.ModuleDict({name: torch.nn.Linear(SIZE, 8) for name in mixing})
    optimizer = torch.optim.Adam(encoders.parameters(), lr=0.02)
    objective = AlignmentObjective(loss)

    def features(num_items):
        latents = torch.randn(num_items, 6, generator=generator)
        return {name: encoders[name](latents @ matrix) for name, matrix in mixing.items()}

    def recall():
        with torch.no_grad():
            held_out = features(50)
        return recall_at_k(held_out["image"], held_out["answer"])

    before = recall()
    for _ in range(60):
        optimizer.zero_grad()
        objective(features(12), None, generator).loss.backward()
        optimizer.step()
    assert before < 0.2
    assert recall() > 0.6
