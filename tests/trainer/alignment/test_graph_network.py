import pytest
import torch

from logramed.trainer.alignment.graph_network import GraphNetwork


PATH = torch.tensor([[0, 1], [1, 2]])  # messages 0 -> 1 -> 2


def make_network(**options):
    torch.manual_seed(0)
    return GraphNetwork(4, **options).eval()


def layer_by_hand(layer, features, edges):
    rows = []
    for node in range(len(features)):
        received = [features[sender] for sender, receiver in edges.T.tolist() if receiver == node]
        joined = torch.stack(received).amax(0) if received else torch.zeros(features.shape[1])
        rows.append(layer.lin_rel.weight @ joined + layer.lin_rel.bias + layer.lin_root.weight @ features[node])
    return torch.stack(rows).relu()


def test_graph_network_equals_a_loop_over_nodes():
    network = make_network()
    features = torch.randn(5, 4)
    edges = torch.tensor([[0, 1, 2, 3, 3], [4, 4, 4, 0, 1]])
    expected = layer_by_hand(network.conv2, layer_by_hand(network.conv1, features, edges), edges)
    torch.testing.assert_close(network(features, edges), expected)


def test_messages_go_from_row_0_to_row_1():
    network = make_network().conv1
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
    layer = make_network().conv1
    features = torch.randn(num_nodes, 4)
    expected = features @ layer.lin_root.weight.T + layer.lin_rel.bias
    torch.testing.assert_close(layer(features, torch.zeros(2, 0, dtype=torch.int64)), expected)


def test_graph_network_passes_gradcheck():
    network = make_network().double()
    features = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: network(x, torch.tensor([[0, 1, 2, 3], [1, 2, 3, 1]])), features)


def test_equal_messages_give_finite_gradients():
    features = torch.ones(3, 4, requires_grad=True)
    make_network()(features, torch.tensor([[0, 1, 2], [0, 0, 0]])).sum().backward()
    assert torch.isfinite(features.grad).all()


def test_compiled_graph_network_equals_the_plain_one():
    network = make_network()
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
