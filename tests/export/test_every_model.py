"""The models of the README's table in LiteRT, compared there; for SavedModels see `tests/cli`."""

from __future__ import annotations

import keras
import pytest
from calibration import calibrate, image

import keras_deeplab
from keras_deeplab import export
from keras_deeplab.export import Limits
from training.model_table import ROWS

# Those without the ones that repeat the blocks of another more often.
LARGE = ("resnet101", "resnet101_beta", "xception65", "xception71")
BUILT = [
    pytest.param(row.model, row.backbone, row.arguments, id=f"{row.label}-{row.backbone}")
    for row in ROWS
    if row.model is not keras_deeplab.SPPNet and row.backbone not in LARGE
]


@pytest.mark.slow
@pytest.mark.parametrize("model, backbone, arguments", BUILT)
def test_every_model(model, backbone, arguments, tmp_path):
    """With random weights, under which rounding grows to 0.005 in the cascade of seven blocks."""
    pytest.importorskip("ai_edge_litert")
    keras.utils.set_random_seed(0)
    network = calibrate(model(5, backbone, **arguments), image(65, 97))
    if backbone == "mobilenet_v2":
        network = keras_deeplab.MultiScale(network, (0.75, 1), fusion="mean", flip=True)
    images = [image(65, 97, seed=1)[0].astype("uint8")]
    limits = Limits(probability=0.02, agreement=0.999)
    export.litert(network, tmp_path / "model.tflite", images=images, limits=limits)
