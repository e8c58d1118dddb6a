import pytest
import torch

from logramed.trainer.alignment.graph_network import GraphNetwork, join_messages


PATH = torch.tensor([[0, 1], [1, 2]])  # messages 0 -> 1 -> 2


def make_network(aggregation="max", **options):
    torch.manual_seed(0)
    return GraphNetwork(4, aggregation=aggregation, **options).eval()


def layer_by_hand(layer, features, edges, join):
    rows = []
    for node in range(len(features)):
        received = [features[sender] for sender, receiver in edges.T.tolist() if receiver == node]
        joined = join(torch.stack(received)) if received else torch.zeros(features.shape[1])
        rows.append(layer.lin_rel.weight @ joined + layer.lin_rel.bias + layer.lin_root.weight @ features[node])
    return torch.stack(rows).relu()


@pytest.mark.parametrize(
    ("aggregation", "join"), [("max", lambda x: x.amax(0)), ("mean", lambda x: x.mean(0)), ("sum", lambda x: x.sum(0))]
)
def test_graph_network_equals_a_loop_over_nodes(aggregation, join):
    network = make_network(aggregation)
    features = torch.randn(5, 4)
    edges = torch.tensor([[0, 1, 2, 3, 3], [4, 4, 4, 0, 1]])
    expected = layer_by_hand(network.conv2, layer_by_hand(network.conv1, features, edges, join), edges, join)
    torch.testing.assert_close(network(features, edges), expected)


def test_messages_go_from_row_0_to_row_1():
    network = make_network(num_layers=1)
    features = torch.randn(3, 4)
    changed = features.clone()
    changed[0] += 1
    is_changed = (network(features, PATH) != network(changed, PATH)).any(1)
    assert is_changed[1]
    assert not is_changed[2]


def test_parameters_carry_the_names_of_the_release():
    assert set(make_network().state_dict()) == {
        f"conv{layer}.{name}" for layer in (1, 2) for name in ("lin_rel.weight", "lin_rel.bias", "lin_root.weight")
    }


@pytest.mark.parametrize("num_nodes", [1, 3])
def test_a_graph_without_edges_receives_zeros(num_nodes):
    network = make_network(num_layers=1)
    features = torch.randn(num_nodes, 4)
    expected = (features @ network.conv1.lin_root.weight.T + network.conv1.lin_rel.bias).relu()
    torch.testing.assert_close(network(features, torch.zeros(2, 0, dtype=torch.int64)), expected)


@pytest.mark.parametrize("aggregation", ["max", "mean", "sum"])
def test_graph_network_passes_gradcheck(aggregation):
    network = make_network(aggregation).double()
    features = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: network(x, torch.tensor([[0, 1, 2, 3], [1, 2, 3, 1]])), features)


@pytest.mark.parametrize("aggregation", ["max", "mean", "sum"])
def test_messages_joined_by_a_sparse_product_equal_scattered_ones(aggregation, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(7, 3, generator=generator, requires_grad=True)
    senders, receivers = torch.randint(7, (20,), generator=generator), torch.randint(5, (20,), generator=generator)
    upstream = torch.randn(9, 3, generator=generator)  # receivers 5 to 8 receive nothing

    def joined_and_gradient():
        received = join_messages(features, senders, receivers, 9, aggregation)
        return received, *torch.autograd.grad(received, features, upstream)

    sparse = joined_and_gradient()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(joined_and_gradient(), sparse)
    assert (sparse[0][5:] == 0).all()


@pytest.mark.parametrize("aggregation", ["max", "mean", "sum"])
def test_equal_messages_give_finite_gradients_that_add_up_to_the_upstream_one(aggregation):
    features = torch.ones(3, 2, requires_grad=True)
    received = join_messages(features, torch.tensor([0, 1, 2]), torch.zeros(3, dtype=torch.int64), 1, aggregation)
    received.sum().backward()
    assert features.grad.sum().item() == pytest.approx(3 * 2 if aggregation == "sum" else 2)


def test_graphs_that_start_from_the_same_features_need_them_once():
    network = make_network()
    features = torch.randn(3, 4)
    edges = torch.cat([PATH, PATH.flip(0) + 3], dim=1)  # the second graph is nodes 3 to 5, its path turned around
    shared = network(features, edges, node_index=torch.tensor([0, 1, 2, 0, 1, 2]))
    torch.testing.assert_close(shared, network(features.repeat(2, 1), edges))


@pytest.mark.parametrize("num_layers", [2, 3])
def test_a_narrower_network_leads_back_to_the_size_it_started_from(num_layers):
    network = make_network(num_layers=num_layers, graph_hidden_size=2)
    shapes = [tuple(network.get_submodule(f"conv{layer}").lin_rel.weight.shape) for layer in (1, num_layers)]
    assert shapes == [(2, 4), (4, 2)]
    features = torch.randn(3, 4)
    hidden = layer_by_hand(network.conv1, features, PATH, lambda x: x.amax(0))
    for layer in range(2, num_layers + 1):
        hidden = layer_by_hand(network.get_submodule(f"conv{layer}"), hidden, PATH, lambda x: x.amax(0))
    torch.testing.assert_close(network(features, PATH), hidden)


def test_a_narrower_network_needs_two_layers():
    with pytest.raises(ValueError, match="two layers or more, got 2 with `num_layers=1`"):
        make_network(num_layers=1, graph_hidden_size=2)


@pytest.mark.parametrize("aggregation", ["max", "sum"])
def test_compiled_graph_network_equals_the_plain_one(aggregation):
    network = make_network(aggregation)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    gradients = []
    for form in (network, compiled):
        features = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
        output = form(features, PATH)
        output.square().sum().backward()
        gradients.append((output, features.grad))
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_graph_network_works_in_bfloat16(how):
    network = make_network()
    features = torch.randn(3, 4)
    expected = network(features, PATH)
    if how == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            output = network(features, PATH)
    else:
        output = network.to(torch.bfloat16)(features.to(torch.bfloat16), PATH)
    torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.05)


def test_shared_dropout_drops_the_same_features_of_every_node():
    network = make_network(dropout=0.5).train()
    features = torch.rand(1, 4).expand(6, 4)  # equal nodes stay equal only under equal masks
    no_edges = torch.zeros(2, 0, dtype=torch.int64)
    shared = [network(features, no_edges, share_dropout=True) for _ in range(20)]
    assert all(torch.equal(output, output[:1].expand(6, 4)) for output in shared)
    assert len({tuple(output[0].tolist()) for output in shared}) > 1
    own = [network(features, no_edges) for _ in range(20)]
    assert any(not torch.equal(output, output[:1].expand(6, 4)) for output in own)


def test_graph_network_refuses_features_of_another_size():
    with pytest.raises(ValueError, match=r"\(num_nodes, 4\), got \(3, 5\)"):
        make_network()(torch.randn(3, 5), PATH)


def test_graph_network_refuses_an_unknown_aggregation():
    with pytest.raises(ValueError, match="median"):
        GraphNetwork(4, aggregation="median")
