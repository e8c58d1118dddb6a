import itertools

import pytest

from logramed.trainer.unused_weights import freeze_unused_weights
from tests.tiny_models import TOWERS, tiny_inputs, tiny_model


CHOICES = [{"dense_connector": name} for name in ("none", "sti", "sci", "dci")]
CHOICES += [{"vision_feature_layer": layer} for layer in (-1, 2)]


@pytest.mark.parametrize(("tower", "values"), list(itertools.product(TOWERS, CHOICES)), ids=str)
def test_exactly_the_weights_without_a_gradient_are_frozen(tower, values):
    model = tiny_model(tower, **values)
    inputs = tiny_inputs(model)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    freeze_unused_weights(model, uses_graph_network=False)
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == without
    assert any("vision_tower" in name for name in without)


def test_a_graph_network_in_use_is_trained():
    model = tiny_model()
    freeze_unused_weights(model, uses_graph_network=True)
    assert all(parameter.requires_grad for parameter in model.model.graph_network.parameters())
