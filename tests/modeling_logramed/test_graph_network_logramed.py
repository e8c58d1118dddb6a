import pytest
import torch

from logramed.graph_network_logramed import GraphNetwork


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


def test_graph_network_passes_gradcheck():
    network = make_network().double()
    features = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: network(x, torch.tensor([[0, 1, 2, 3], [1, 2, 3, 1]])), features)


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
