from __future__ import annotations

import keras_deeplab as kd
from keras_deeplab import data
from keras_deeplab.trainer import ModelBuilder, training_cost


def test_steps_and_memory_are_measured():
    source = data.Shapes(train=20, val=2)
    recipe = kd.recipes.get("finetune").replace(
        crop_size=(48, 64), batch_size=8, steps=10, model={"depth": 2, "filters": 4}
    )
    cost = training_cost(ModelBuilder("unet"), source, data.audit(source), recipe)
    assert cost.steps == 12  # whole epochs of 3 steps
    assert 0.001 < cost.seconds < 60
    assert 3e8 < cost.peak_bytes < 20e9
    text = str(cost)
    assert text.startswith("unet on its own network: a step of 8 images of 64x48 takes ")
    assert f"12 steps take {12 * cost.seconds / 3600:.1f} hours" in text
