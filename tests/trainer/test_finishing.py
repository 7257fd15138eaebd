"""The model that a run ends with."""

from __future__ import annotations

import numpy as np
import pytest

from keras_deeplab import MultiScale, UNet, data
from keras_deeplab.trainer.finishing import PICTURES, few_images, final_model


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("fusion", [None, "max", "mean"])
def test_it_is_in_float32_with_the_test_time_augmentation_that_is_set(fusion, dtype):
    network = UNet(2, depth=1, filters=4, dtype=dtype)
    trained = network if fusion is None else MultiScale(network, (0.5, 1.0), fusion=fusion)
    final = final_model(trained, (1.0, 1.5), True)
    config = final.get_config()
    assert (config["scales"], config["flip"], config["fusion"]) == ((1.0, 1.5), True, "mean")
    assert isinstance(final.model, MultiScale) == (fusion == "max")
    assert final_model(final, (1.0, 1.5), True).get_config() == config  # after a stop
    scaled = final_model(trained, (1.0, 1.5), image_scale=0.25)
    assert (scaled.scales, scaled.model.scales) == ((1.0, 1.5), (0.25,))
    assert scaled.model.model.name == trained.name
    again = final_model(scaled, (1.0, 1.5), image_scale=0.25)
    assert again.get_config() == scaled.get_config()
    own = final_model(trained)
    assert getattr(own, "fusion", None) == fusion
    assert final.dtype_policy.name == own.dtype_policy.name == "float32"


@pytest.mark.parametrize("count", [1, 6, 8, 11, 40])
def test_the_pictures_are_of_the_whole_split(count):
    source = data.Shapes(train=1, val=count)
    everything = [image for image, _ in source.dataset("val").as_numpy_iterator()]
    shown = [image for image, _ in few_images(source, "val").as_numpy_iterator()]
    places = [
        next(n for n, other in enumerate(everything) if np.array_equal(image, other))
        for image in shown
    ]
    assert len(places) == min(count, PICTURES)
    assert (places[0], places[-1]) == (0, count - 1)
    gaps = np.diff(places)
    assert gaps.size == 0 or 0 < gaps.max() <= gaps.min() + 1
