from __future__ import annotations

import keras
import pytest

import keras_deeplab as kd
from keras_deeplab import data
from keras_deeplab.trainer import ModelBuilder, training_cost

SOURCE = data.Shapes(train=20, val=2)
RECIPE = kd.recipes.get("finetune").replace(
    crop_size=(48, 64), batch_size=8, steps=10, model={"depth": 2, "filters": 4}
)


@pytest.mark.slow
def test_steps_and_memory_are_measured():
    cost = training_cost(ModelBuilder("unet"), SOURCE, data.audit(SOURCE), RECIPE)
    assert cost.steps == 12  # whole epochs of 3 steps
    assert 0.001 < cost.seconds < 60
    assert 3e8 < cost.peak_bytes < 20e9
    text = str(cost)
    assert text.startswith("unet on its own network: a step of 8 images of 64x48 takes ")
    assert f"12 steps take {12 * cost.seconds / 3600:.1f} hours" in text


@pytest.mark.parametrize("scales", [None, (0.5, 1.0)])
def test_what_is_measured_is_what_the_recipe_trains(scales, monkeypatch):
    seen = []
    monkeypatch.setattr(keras.Model, "train_on_batch", lambda model, *_: seen.append(model))
    recipe = RECIPE.replace(multi_scale=scales)
    training_cost(ModelBuilder("unet"), SOURCE, data.audit(SOURCE), recipe)
    assert seen[0].get_config().get("scales") == scales
    assert seen[0].optimizer.global_clipnorm == recipe.clipnorm
