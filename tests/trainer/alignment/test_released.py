from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from logramed.trainer.alignment import hamming_loss
from logramed.trainer.alignment.graph_network import GraphNetwork
from logramed.trainer.alignment.graphs import edge_differences, nearest_neighbor_edges, unit_vectors
from logramed.trainer.alignment.released import draw_noise, released_matchings, released_pairs, released_problems


FIXTURES = Path(__file__).resolve().parents[3].parent / "shared" / "fixtures" / "alignment"
STEPS = ["step_easy_8x16", "step_hard_8x16", "step_hard_12x32", "step_hard_16x32"]
MODALITIES = ["image", "answer", "extended"]
PAIRS = released_pairs(MODALITIES)
CLOSE = {"rtol": 1e-5, "atol": 1e-6, "check_dtype": False}


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

    def stacked(self, name):
        return torch.stack([self.values[f"{pair}.{name}"] for pair in PAIRS])

    def labels(self, name):
        matching = self.stacked(name)
        return torch.where(matching.any(-1), matching.int().argmax(-1), -1)


@pytest.mark.parametrize("name", STEPS)
def test_released_problems_equal_those_of_the_release(name):
    step = RecordedStep(name)
    nodes = torch.stack(list(step.features.values()))
    noise = step.values["noise.nodes"], step.stacked("noise.edges")
    node_costs, edge_costs, edge_index = released_problems(nodes, step.network, 5, *noise)
    assert torch.equal(edge_index, step.stacked("edge_index"))
    torch.testing.assert_close(node_costs, step.stacked("node_costs"), **CLOSE)
    torch.testing.assert_close(edge_costs, step.stacked("edge_costs"), **CLOSE)


@pytest.mark.parametrize("weight", [1.0, 0.1, 65536.0])
@pytest.mark.parametrize("name", STEPS)
def test_released_loss_and_gradients_equal_those_of_the_release_for_its_matchings(name, weight):
    step = RecordedStep(name)
    recorded = iter((step.labels("matching"), step.labels("backward_matching")))
    names, matchings, labels = released_matchings(
        step.features, step.network, training=False, solver=lambda *_, **__: next(recorded)
    )
    assert names == PAIRS
    assert torch.equal(labels, step.labels("matching"))
    loss = hamming_loss(matchings)
    torch.testing.assert_close(loss.reshape(1), step.values["loss"], **CLOSE)
    (weight * loss).backward()
    for modality, features in step.features.items():
        torch.testing.assert_close(features.grad / weight, step.values[f"gradient.features.{modality}"], **CLOSE)
    for parameter_name, parameter in step.network.named_parameters():
        expected = step.values[f"gradient.graph_network.{parameter_name}"]
        torch.testing.assert_close(parameter.grad / weight, expected, **CLOSE)


def make_features(num_samples=8, size=16, dtype=torch.float32, modalities=MODALITIES):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(num_samples, size, generator=generator).to(dtype) for name in modalities}


def make_network(size=16):
    torch.manual_seed(0)
    return GraphNetwork(size).eval()


def costs_of_pairs(features, network, num_neighbors):
    """The costs without noise, pair by pair."""
    barycenter = torch.stack(list(features.values())).mean(0)
    pairs = [(values, barycenter) for values in features.values()]
    pairs += [(target, source) for source, target in pairs]
    node_costs, edge_costs = [], []
    for source, target in pairs:
        edges = nearest_neighbor_edges(source, num_neighbors)
        source, target = network(source, edges), network(target, edges)
        node_costs.append(0.5 - unit_vectors(source) @ unit_vectors(target).T)
        edge_costs.append(0.25 - 0.5 * edge_differences(source, edges) @ edge_differences(target, edges).T)
    return torch.stack(node_costs), torch.stack(edge_costs)


@pytest.mark.parametrize("num_modalities", [2, 3])
@pytest.mark.parametrize(("num_samples", "num_neighbors"), [(8, 5), (3, 2), (2, 1), (1, 0)])
def test_the_costs_are_those_of_each_pair_alone(num_modalities, num_samples, num_neighbors):
    features, network = make_features(num_samples, modalities=MODALITIES[:num_modalities]), make_network()
    node_costs, edge_costs, _ = released_problems(torch.stack(list(features.values())), network, num_neighbors)
    expected = costs_of_pairs(features, network, num_neighbors)
    torch.testing.assert_close((node_costs, edge_costs), expected, rtol=1e-5, atol=1e-6)


def test_costs_of_zero_nodes_are_those_of_cosine_0_and_pass_no_gradient():
    nodes = torch.stack(list(make_features().values()))
    nodes[0, :2] = 0
    nodes.requires_grad_()
    node_costs, edge_costs, _ = released_problems(nodes, None, 3)
    assert (node_costs[0, :2] == 0.5).all()
    (node_costs.square().sum() + edge_costs.square().sum()).backward()
    assert torch.isfinite(nodes.grad).all()


def test_noise_is_the_releases_gumbel_noise_of_0_05():
    noise, edge_noise = draw_noise(2, 300, 40, torch.Generator().manual_seed(0))
    assert edge_noise.shape == (2, 40, 40)
    assert noise.mean().item() == pytest.approx(0.05 * 0.5772, abs=1e-3)  # Euler's constant
    assert noise.std().item() == pytest.approx(0.05 * torch.pi / 6**0.5, abs=1e-3)


@pytest.mark.parametrize("num_samples", [1, 2, 4])
def test_small_batches_shrink_and_have_finite_gradients(num_samples):
    features = {name: values.requires_grad_() for name, values in make_features(num_samples).items()}
    with pytest.warns(UserWarning, match="fewer neighbours"):
        _, matchings, _ = released_matchings(features, make_network().train())
    hamming_loss(matchings).backward()
    assert all(torch.isfinite(values.grad).all() for values in features.values())


def test_training_noise_is_seeded_and_evaluation_has_none():
    def labels(seed, training):
        generator = torch.Generator().manual_seed(seed)
        return released_matchings(make_features(12), None, generator=generator, training=training)[2]

    assert torch.equal(labels(0, True), labels(0, True))
    assert not torch.equal(labels(0, True), labels(1, True))
    assert torch.equal(labels(0, False), labels(1, False))


@pytest.mark.parametrize("autocast", [False, True])
def test_a_bfloat16_network_gives_float32_costs(autocast):
    features, network = make_features(), make_network().to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        costs = released_problems(torch.stack(list(features.values())), network, 5)[:2]
    assert [values.dtype for values in costs] == [torch.float32, torch.float32]
    expected = costs_of_pairs(features, make_network(), 5)
    torch.testing.assert_close(costs[0], expected[0], rtol=0, atol=0.05)


@pytest.mark.gpu
def test_problems_on_a_gpu_equal_those_on_the_cpu_with_their_gradients():
    results = []
    for device in ("cpu", "cuda"):
        network = make_network().to(device)
        nodes = torch.stack(list(make_features().values())).to(device).requires_grad_()
        node_costs, edge_costs, _ = released_problems(nodes, network, 5)
        (node_costs.square().sum() + edge_costs.square().sum()).backward()
        results.append([values.cpu() for values in (node_costs, edge_costs, nodes.grad)])
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)
