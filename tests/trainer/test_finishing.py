"""The model that a run ends with."""

from __future__ import annotations

import pytest

from keras_deeplab import MultiScale, UNet
from keras_deeplab.trainer.finishing import final_model


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
    own = final_model(trained)
    assert getattr(own, "fusion", None) == fusion
    assert final.dtype_policy.name == own.dtype_policy.name == "float32"
