import warnings

import pytest
import torch

from logramed.trainer.alignment.graph_network import GraphNetwork
from logramed.trainer.alignment.graphs import (
    edge_differences,
    inner_products,
    nearest_neighbor_edges,
    neighbours_for,
    run_graph_network,
    stack_graphs,
    unit_vectors,
)


def test_nearest_neighbor_edges_of_points_on_a_line():
    points = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    expected = [[0, 0, 1, 1, 2, 2, 3, 3], [1, 2, 0, 2, 1, 0, 2, 1]]
    assert nearest_neighbor_edges(points, 2).tolist() == expected


def test_nearest_neighbor_edges_equal_full_sorting():
    points = torch.randn(2, 10, 6, generator=torch.Generator().manual_seed(0))
    edges = nearest_neighbor_edges(points, 3)
    for own_points, own_edges in zip(points, edges, strict=True):
        order = torch.cdist(own_points, own_points, compute_mode="donot_use_mm_for_euclid_dist").argsort(1)
        assert torch.equal(own_edges[1].reshape(10, 3), order[:, 1:4])


def test_duplicates_are_each_others_neighbours_and_never_their_own():
    edges = nearest_neighbor_edges(torch.ones(4, 3), 3)
    assert (edges[0] != edges[1]).all()


def test_no_neighbours_give_no_edges():
    assert nearest_neighbor_edges(torch.randn(1, 3), 0).shape == (2, 0)


def test_as_many_neighbours_as_nodes_are_refused():
    with pytest.raises(ValueError, match="below the 3 nodes, got 3"):
        nearest_neighbor_edges(torch.randn(3, 2), 3)


def test_edge_differences_point_from_row_1_to_row_0_at_unit_length():
    nodes = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    differences = edge_differences(nodes, torch.tensor([[0, 1], [1, 0]]))
    torch.testing.assert_close(differences, torch.tensor([[0.6, 0.8], [-0.6, -0.8]]))


@pytest.mark.parametrize("nodes", [torch.zeros(3, 4), torch.ones(3, 4)])
def test_gradients_are_finite_for_zero_vectors_and_duplicates(nodes):
    nodes.requires_grad_()
    edges = edge_differences(nodes, nearest_neighbor_edges(nodes, 2))
    assert torch.equal(edges, torch.zeros_like(edges))
    (edges.sum() + unit_vectors(nodes).sum()).backward()
    assert torch.isfinite(nodes.grad).all()


def test_unit_vectors_pass_gradcheck():
    vectors = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit_vectors, vectors)


def test_small_batches_shrink_with_one_warning():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        assert [neighbours_for(size, 5) for size in (5, 3, 1, 6)] == [4, 2, 0, 5]
    assert len(caught) == 1
    assert "per_device_train_batch_size" in str(caught[0].message)


def test_stacked_graphs_do_not_touch():
    nodes, edges = stack_graphs(torch.randn(2, 3, 4), torch.tensor([[[0, 1], [1, 2]], [[2, 0], [0, 1]]]))
    assert nodes.shape == (6, 4)
    assert edges.tolist() == [[0, 1, 5, 3], [1, 2, 3, 4]]


def make_network():
    torch.manual_seed(0)
    return GraphNetwork(4).eval()


def test_the_graph_network_runs_on_several_graphs_as_on_each_alone():
    nodes = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    edges = nearest_neighbor_edges(nodes, 2)
    network = make_network()
    alone = torch.stack([network(*graph) for graph in zip(nodes, edges, strict=True)])
    torch.testing.assert_close(run_graph_network(network, nodes, edges), alone)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_of_half_precision_gives_output_in_the_dtype_of_the_features(dtype):
    nodes = torch.randn(2, 5, 4, requires_grad=True)
    output = run_graph_network(make_network().to(dtype), nodes, nearest_neighbor_edges(nodes, 2))
    assert output.dtype == torch.float32
    output.sum().backward()
    assert torch.isfinite(nodes.grad).all()


def test_the_gradient_of_unit_edges_passes_gradcheck():
    nodes = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    edges = nearest_neighbor_edges(nodes, 2)
    assert torch.autograd.gradcheck(lambda x: edge_differences(x, edges), nodes)


def test_inner_products_pass_gradcheck():
    generator = torch.Generator().manual_seed(0)
    vectors = [torch.randn(2, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(inner_products, vectors)


def test_inner_products_are_float32_also_under_autocast():
    vectors = torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        products = inner_products(vectors, vectors)
    assert products.dtype == torch.float32
    torch.testing.assert_close(products, inner_products(vectors, vectors), rtol=0, atol=0)
