import pytest
import torch

from logramed.trainer.alignment import decode_matching, match_graphs, nearest_neighbor_edges


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def shuffled_copies(num_nodes=12, noise=0.0):
    source = torch.randn(num_nodes, 16, generator=seeded())
    order = torch.randperm(num_nodes, generator=seeded(1))
    target = source + noise * torch.randn(num_nodes, 16, generator=seeded(2))
    return source, target[order], order.argsort()


@pytest.mark.parametrize("edge_weight", [0.0, 0.3])
def test_decoding_recovers_a_hidden_matching(edge_weight):
    source, target, labels = shuffled_copies(noise=0.2)
    assert torch.equal(decode_matching(source, target, edge_weight=edge_weight), labels)


def test_decoding_without_edges_is_the_best_matching_by_cosine():
    source, target, _ = shuffled_copies(noise=5.0)
    cosine = torch.nn.functional.normalize(source, dim=-1) @ torch.nn.functional.normalize(target, dim=-1).T
    edges = torch.zeros(2, 0, dtype=torch.int64)
    assert torch.equal(
        decode_matching(source, target, edge_weight=0), match_graphs(-cosine, torch.zeros(0, 0), edges, edges)
    )


def ambiguous_graphs(seed, num_nodes=24, num_types=6, position_noise=0.1):
    """
    Two graphs of items that look like others of their type and are told apart by their neighbours alone: features,
    edges to the 5 nearest by noisy positions, and the true labels.
    """
    generator = seeded(seed)
    look = torch.randn(num_types, 64, generator=generator)[torch.arange(num_nodes) % num_types]
    position = torch.randn(num_nodes, 3, generator=generator)
    order = torch.randperm(num_nodes, generator=generator)
    graphs = []
    for _ in range(2):
        features = look + 0.3 * torch.randn(num_nodes, 64, generator=generator)
        moved = position + position_noise * torch.randn(num_nodes, 3, generator=generator)
        graphs.append((features, nearest_neighbor_edges(moved, 5)))
    (source, source_edges), (target, target_edges) = graphs
    labels = order.argsort()
    return source, target[order], source_edges, labels[target_edges], labels


def test_given_edges_tell_items_apart_that_look_alike():
    accuracies = {0.0: [], 0.3: []}
    for seed in range(5):
        source, target, source_edges, target_edges, labels = ambiguous_graphs(seed)
        for weight, values in accuracies.items():
            found = decode_matching(
                source, target, edge_weight=weight, source_edge_index=source_edges, target_edge_index=target_edges
            )
            values.append((found == labels).float().mean())
    assert torch.stack(accuracies[0.0]).mean() < 0.4  # four items of each look: chance is 0.25
    assert torch.stack(accuracies[0.3]).mean() > 0.85


def test_length_of_the_features_plays_no_part_and_a_batch_is_decoded_one_by_one():
    source, target, _ = shuffled_copies(noise=0.5)
    found = decode_matching(torch.stack([source, 100 * source]), torch.stack([target, 0.01 * target]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], decode_matching(source, target))


@pytest.mark.parametrize("num_nodes", [1, 2, 5])
def test_small_sets_have_fewer_edges(num_nodes):
    source, target, labels = shuffled_copies(num_nodes)
    assert torch.equal(decode_matching(source, target), labels)


def test_decoding_refuses_what_does_not_fit():
    edges = torch.zeros(2, 0, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"one shape .* got \(3, 2\) and \(4, 2\)"):
        decode_matching(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="`target` must be finite"):
        decode_matching(torch.zeros(3, 2), torch.full((3, 2), torch.nan))
    with pytest.raises(ValueError, match="give both or neither"):
        decode_matching(torch.zeros(3, 2), torch.zeros(3, 2), source_edge_index=edges)
    with pytest.raises(ValueError, match="`edge_weight` must not be negative, got -1"):
        decode_matching(torch.zeros(3, 2), torch.zeros(3, 2), edge_weight=-1)
