import pytest
import torch

from logramed.trainer.data.image_cache import CachedTower
from logramed.trainer.engines.parts import freeze_parts
from logramed.trainer.trainer import LoGraMedTrainer
from tests.tiny import tiny_processor
from tests.trainer.test_trainer import arguments, logged, small_model, weights


PARTS = ("projector", "graph", "language")


def frozen_model(**values):
    model = small_model(**values)
    freeze_parts(model, PARTS)
    return model


def pixels(number=2, seed=0):
    return torch.randn(number, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def computed_images(model):
    """The number of images in each pass of the vision tower to come."""
    counts, tower = [], model.model.vision_tower
    embeddings = tower.get_submodule("embeddings" if hasattr(tower, "embeddings") else "vision_model.embeddings")
    embeddings.register_forward_hook(lambda module, inputs, output: counts.append(len(output)))
    return counts


def train(folder, rows, model, **values):
    trainer = LoGraMedTrainer(
        model, arguments(folder, max_steps=6, **values), processing_class=tiny_processor(), train_dataset=rows
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("connector", "pooling", "patch_size"), [("none", None, 4), ("dci", None, 4), ("none", 2, 2), ("dci", 2, 2)]
)
def test_losses_and_weights_are_those_without_the_cache_and_the_tower_runs_once_an_image(
    tmp_path, rows, connector, pooling, patch_size
):
    vision_sizes = {"num_hidden_layers": 5, "patch_size": patch_size}
    options = {"dense_connector": connector, "image_token_pooling": pooling, "vision_sizes": vision_sizes}
    plain = train(tmp_path / "plain", rows, frozen_model(**options))
    model = frozen_model(**options)
    images = computed_images(model)
    cached = train(tmp_path / "cached", rows, model, cache_image_features=str(tmp_path / "features"))
    assert sum(images) == 8  # three epochs of eight images
    torch.testing.assert_close(logged(cached, "loss"), logged(plain, "loss"))
    torch.testing.assert_close(weights(cached), weights(plain))


def test_another_image_or_tower_is_computed_anew(tmp_path):
    CachedTower(frozen_model(), tmp_path)(pixels())
    model = frozen_model()
    images, again = computed_images(model), CachedTower(model, tmp_path)
    again(pixels())
    assert images == []
    again(pixels(seed=1))
    assert images == [2]
    model = frozen_model()
    with torch.no_grad():
        next(model.model.vision_tower.parameters()).add_(1e-3)
    images = computed_images(model)
    CachedTower(model, tmp_path)(pixels())
    assert images == [2]


def test_states_read_are_those_that_were_computed(tmp_path):
    model = frozen_model()
    expected = model.model.vision_tower(pixels(), output_hidden_states=True).hidden_states
    cache = CachedTower(model, tmp_path)
    cache(pixels())
    images = computed_images(model)
    states = cache(pixels()).hidden_states
    assert images == []
    for layer in cache.layers:
        torch.testing.assert_close(states[layer], expected[layer])


def test_a_trained_tower_is_refused(tmp_path):
    with pytest.raises(ValueError, match="needs a frozen vision tower: leave `vision` out of `train`"):
        CachedTower(small_model(), tmp_path)
