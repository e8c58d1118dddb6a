import copy
import pickle

import pytest
import torch

from logramed.trainer.alignment import (
    LOSSES,
    AlignmentConfig,
    AlignmentObjective,
    GraphNetwork,
    entropic_loss,
    hamming_loss,
    register_objective,
    retrieval_metrics,
)
from logramed.trainer.alignment.config import OBJECTIVES
from tests.host_syncs import count_host_syncs


# Every loss by its name, and what else changes the path through the objective.
CASES = {
    **{loss: {"alignment_loss": loss} for loss in LOSSES},
    "infonce with edges": {"alignment_loss": "infonce", "edge_weight": 1.0, "message_weight": 0.3},
}
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


def make_objective(case):
    return AlignmentObjective(AlignmentConfig(**CASES[case]))


def objective_of(alignment_loss="multi_graph", **settings):
    return AlignmentObjective(AlignmentConfig(alignment_loss=alignment_loss, **settings))


def test_hamming_loss_counts_2_for_a_wrong_node_and_1_for_an_unmatched_one():
    matching = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    assert hamming_loss(matching).item() == (2 + 2 + 1) / 4
    groups = torch.tensor([0, 5, 5, 6])  # nodes 1 and 2 are the same sample
    assert hamming_loss(matching, groups.unsqueeze(0) == groups.unsqueeze(1)).item() == 1 / 4


@pytest.mark.parametrize("case", CASES)
def test_aligned_features_have_a_lower_loss_than_unrelated_ones(case):
    objective = make_objective(case)
    network = make_network().eval()
    aligned = objective(make_features(12), network, training=False)
    unrelated = objective(unrelated_features(), network, training=False)
    assert aligned.loss < unrelated.loss
    assert aligned.matching_accuracy > 0.9


@pytest.mark.parametrize("case", [case for case in CASES if case != "paper"])
def test_unrelated_features_are_matched_no_better_than_chance(case):
    assert accuracy_of_unrelated_features(case) < 1.5 / 12


def test_the_paper_form_gives_the_matching_of_unrelated_features_away():
    assert accuracy_of_unrelated_features("paper") > 2 / 12


def accuracy_of_unrelated_features(case):
    objective = make_objective(case)
    network = make_network()  # in training mode: a dropout mask must not give nodes away either
    outputs = [objective(unrelated_features(12, seed), network, seeded(seed)) for seed in range(20)]
    return torch.stack([output.matching_accuracy for output in outputs]).mean()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("modalities", [MODALITIES, ("image", "answer")])
def test_gradients_reach_every_modality_and_the_graph_network_where_it_is_used(case, modalities):
    features = make_features(8, noise=2.0, modalities=modalities)
    network = make_network().eval()
    objective = make_objective(case)
    objective(features, network, seeded()).loss.backward()
    assert all(values.grad.abs().sum() > 0 for values in features.values())
    reached = [parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters()]
    assert all(reached) if objective.uses_graph_network else not any(reached)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_finite_for_zero_vectors_and_duplicates(case):
    features = make_features(8, noise=1.0)
    with torch.no_grad():
        features["image"][0] = 0
        features["answer"][1:4] = features["answer"][1]
        features["extended"][:] = 1
    output = make_objective(case)(features, make_network(), seeded())
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert all(torch.isfinite(values.grad).all() for values in features.values())


@pytest.mark.parametrize("case", CASES)
def test_evaluation_has_no_noise(case):
    objective = make_objective(case)
    features = make_features(8, noise=1.0)
    network = make_network().eval()
    first, second = (objective(features, network, seeded(seed), training=False) for seed in (0, 1))
    assert torch.equal(first.loss, second.loss)


def test_training_noise_of_paper_is_fresh_and_seeded():
    objective = make_objective("paper")
    features = make_features(12, noise=2.0)
    generator = seeded()
    first, second = (objective(features, None, generator) for _ in range(2))
    again = objective(features, None, seeded())
    labels = [torch.stack(list(output.matchings.values())) for output in (first, second, again)]
    assert torch.equal(labels[0], labels[2])
    assert not torch.equal(labels[0], labels[1])


@pytest.mark.parametrize("case", CASES)
def test_order_of_the_nodes_does_not_matter(case):
    features = make_features(10, noise=0.7)
    order = torch.randperm(10, generator=seeded())
    network = make_network().eval()
    objective = make_objective(case)
    plain = objective(features, network, training=False)
    moved = objective({name: values[order] for name, values in features.items()}, network, training=False)
    torch.testing.assert_close(plain.loss, moved.loss)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_half_precision_features_and_network_give_a_float32_loss(case, dtype):
    features = make_features(8, dtype=dtype)
    network = make_network().eval().to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        output = make_objective(case)(features, network, seeded())
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert all(values.grad.dtype == dtype and torch.isfinite(values.grad).all() for values in features.values())


@pytest.mark.parametrize("scale", [2.0, 65536.0])
@pytest.mark.parametrize("case", CASES)
def test_a_loss_weight_or_scale_multiplies_the_gradient(case, scale):
    gradients = []
    for factor in (1.0, scale):
        features = make_features(8, noise=2.0)
        (factor * make_objective(case)(features, make_network().eval(), seeded()).loss).backward()
        gradients.append(features["image"].grad / factor)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("num_nodes", [1, 2, 5])
@pytest.mark.parametrize("case", ["multi_graph", "infonce with edges", "paper"])
def test_small_batches_shrink(case, num_nodes):
    features = make_features(num_nodes)
    with pytest.warns(UserWarning, match="fewer neighbours"):
        output = make_objective(case)(features, make_network(), seeded())
    output.loss.backward()
    assert all(torch.isfinite(values.grad).all() for values in features.values())


def test_losses_without_edges_take_a_batch_of_one_and_of_two():
    for loss in ("first_order", "infonce"):
        for num_nodes in (1, 2):
            assert torch.isfinite(objective_of(loss)(make_features(num_nodes)).loss)


def test_multi_graph_loss_is_the_entropic_loss_of_nodes_plus_that_of_edges_by_hand():
    features = make_features(8, noise=1.0, modalities=("image", "answer"))
    image, answer = (torch.nn.functional.normalize(values, dim=-1) for values in features.values())
    distance = torch.cdist(torch.cat([image, answer], -1), torch.cat([image, answer], -1)).fill_diagonal_(torch.inf)
    ends = [(i, j) for i in range(8) for j in distance[i].argsort()[:3].tolist()]
    edges = [torch.stack([nodes[i] - nodes[j] for i, j in ends]) for nodes in (image, answer)]
    edges = [torch.nn.functional.normalize(values, dim=-1) for values in edges]
    nodes, edges = image @ answer.T, edges[0] @ edges[1].T
    margins = [0.3 * torch.eye(len(values)) for values in (nodes, edges)]
    in_evaluation = 0.1 * (entropic_loss(nodes, 0.1) + 2 * entropic_loss(edges, 0.2))
    in_training = 0.1 * (entropic_loss(nodes - margins[0], 0.1) + 2 * entropic_loss(edges - margins[1], 0.2))
    settings = {"num_neighbors": 3, "edge_weight": 2.0, "edge_temperature": 0.2, "alignment_margin": 0.3}
    objective = objective_of("multi_graph", message_weight=0, **settings)
    torch.testing.assert_close(objective(features).loss, in_training)
    torch.testing.assert_close(objective(features, training=False).loss, in_evaluation)


def test_first_order_is_multi_graph_without_edges():
    features = make_features(8, noise=1.0)
    plain = objective_of("multi_graph", edge_weight=0, message_weight=0)(features).loss
    assert torch.equal(objective_of("first_order")(features).loss, plain)
    assert plain > objective_of("first_order", alignment_margin=0)(features).loss


def test_without_extended_answers_there_is_one_pair():
    output = objective_of()(make_features(modalities=("image", "answer")), None, seeded())
    assert set(output.matchings) == {"image>answer"}
    with_none = {**make_features(modalities=("image", "answer")), "extended": None}
    assert set(objective_of()(with_none, None, seeded()).matchings) == set(output.matchings)


def test_equal_samples_are_one_label():
    features = make_features(8, noise=0.0)
    doubled = {name: torch.cat([values, values]).detach() for name, values in features.items()}
    for case, bound in (("first_order", 0.005), ("infonce", 0.05)):
        objective = make_objective(case)
        groups = torch.arange(8).repeat(2)
        assert objective(doubled, training=False, groups=groups).loss < bound
        assert objective(doubled, training=False).loss > 0.06
        assert objective(doubled, training=False, groups=groups).matching_accuracy == 1


def test_an_edge_between_twins_may_be_laid_onto_any_of_its_group():
    features = make_features(8, noise=0.0)
    doubled = {name: torch.cat([values, values]).detach() for name, values in features.items()}
    with_groups = objective_of(message_weight=0)(doubled, groups=torch.arange(8).repeat(2)).loss
    assert with_groups < objective_of(message_weight=0)(doubled).loss - 0.05


@pytest.mark.parametrize("case", [case for case in CASES if case != "paper"])
def test_on_a_gpu_the_host_waits_once_for_finiteness_and_for_the_matching_only_if_it_is_asked_for(case, monkeypatch):
    # Takes the paths of a GPU on the CPU.
    monkeypatch.setattr(torch.Tensor, "is_cpu", False, raising=False)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    objective, features, network, generator = make_objective(case), make_features(8), make_network(), seeded()
    with count_host_syncs() as forward:
        output = objective(features, network, generator, groups=torch.arange(8))
    assert forward.total == 1, forward.places
    with count_host_syncs() as backward:
        output.loss.backward()
    assert backward.total == 0, backward.places
    with count_host_syncs() as asked:
        accuracy = output.matching_accuracy
    waits = [place for place in asked.places.elements() if "search.py" not in place]  # which works on the CPU
    assert len(waits) == 2, asked.places  # the seed for ties, and the costs
    assert accuracy == 1


@pytest.mark.parametrize("modality", MODALITIES)
def test_nan_is_refused_with_the_name_of_its_modality(modality):
    features = {name: values.detach() for name, values in make_features().items()}
    features[modality][2, 3] = torch.nan
    with pytest.raises(ValueError, match=f"The {modality} features hold NaN"):
        objective_of()(features)


def test_objective_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="two modalities"):
        objective_of()(make_features(modalities=("image",)))
    with pytest.raises(ValueError, match=r"answer features must be .*\(8, 16\), got \(7, 16\)"):
        objective_of()({"image": torch.zeros(8, 16), "answer": torch.zeros(7, 16)})
    with pytest.raises(ValueError, match=r"`groups` must be of shape \(8,\), one for each node, got \(1,\)"):
        objective_of()(make_features(8), groups=torch.zeros(1))


def test_settings_reach_the_objective():
    settings = {"edge_weight": 0.5, "message_weight": 0.2, "alignment_margin": 0.1}
    objective = objective_of("multi_graph", **settings)
    assert (objective.edge_weight, objective.message_weight, objective.margin) == (0.5, 0.2, 0.1)
    without = objective_of("first_order", edge_weight=0.5, message_weight=0.2)
    assert (without.edge_weight, without.message_weight) == (0, 0)


@pytest.fixture
def squared_error():
    @register_objective("squared_error")
    class SquaredError(AlignmentObjective):
        default_edge_weight = 0.5
        default_margin = 0.0

        def pair_loss(self, similarity, temperature, right):
            return (similarity - right.float()).square().mean()

    yield SquaredError
    del OBJECTIVES["squared_error"]


def test_an_objective_of_ones_own_is_a_class_and_its_name(squared_error):
    features = make_features(8, noise=1.0, modalities=("image", "answer"))
    objective = objective_of("squared_error", num_neighbors=3)
    assert type(objective) is squared_error
    assert not objective.uses_graph_network
    output = objective(features)
    pairs = objective.graph_pairs(features)
    nodes, edges = (
        (source[0] @ target[0].T - torch.eye(len(source[0]))).square().mean()
        for source, target in ((pairs.source_nodes, pairs.target_nodes), (pairs.source_edges, pairs.target_edges))
    )
    torch.testing.assert_close(output.loss, nodes + 0.5 * edges)
    assert output.matchings["image>answer"].shape == (1, 8)
    assert "squared_error" in LOSSES
    with pytest.raises(ValueError, match="'squared_error' already exists, SquaredError: choose another name"):
        register_objective("squared_error")(squared_error)


def test_an_objective_is_copied_and_pickled_as_what_it_is():
    objective = objective_of("infonce", alignment_temperature=0.2)
    for copied in (copy.deepcopy(objective), pickle.loads(pickle.dumps(objective))):
        assert type(copied) is type(objective)
        assert copied.config == objective.config


@pytest.mark.parametrize("case", ["multi_graph", "infonce with edges"])
def test_training_on_the_objective_aligns_held_out_items(case):
    torch.manual_seed(0)
    generator = seeded()
    mixing = {name: torch.randn(6, SIZE, generator=generator) for name in ("image", "answer")}
    encoders = torch.nn.ModuleDict({name: torch.nn.Linear(SIZE, 8) for name in mixing})
    optimizer = torch.optim.Adam(encoders.parameters(), lr=0.02)
    objective = make_objective(case)

    def features(num_items):
        latents = torch.randn(num_items, 6, generator=generator)
        return {name: encoders[name](latents @ matrix) for name, matrix in mixing.items()}

    def recall():
        with torch.no_grad():
            held_out = features(50)
        return retrieval_metrics(held_out, torch.arange(50))["recall_at_1_image_to_answer"]

    before = recall()
    for _ in range(60):
        optimizer.zero_grad()
        objective(features(12), None, generator).loss.backward()
        optimizer.step()
    assert before < 0.2
    assert recall() > 0.6
