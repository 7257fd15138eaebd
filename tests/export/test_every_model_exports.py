"""Models of full size, and MultiScale, in each format and in OpenVINO.

Small ones: the exports of a ResNet take several gigabytes.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
from calibration import calibrate, image
from export.small import expected

import keras_deeplab as kd
from keras_deeplab import export, runtimes
from keras_deeplab.graph.network import leaf_layers
from keras_deeplab.models.multi_scale import unwrapped

TOLERANCE = 1e-3
SUFFIXES = {"saved_model": "", "litert": ".tflite", "onnx": ".onnx"}
MODELS = {
    "v3_mobile": lambda: kd.DeepLabV3(5, "mobilenet_v2", aspp_rates=()),
    "v3_plus_mobile": lambda: kd.DeepLabV3Plus(5, "mobilenet_v2"),
    "unet": lambda: kd.UNet(5, filters=16, backbone=None),
    "multi_scale": lambda: kd.MultiScale(
        kd.DeepLabV3Plus(5, "mobilenet_v2"), (0.75, 1.0), fusion="mean", flip=True
    ),
}


def with_weights(model):
    """Calibrated, with small logits: random weights magnify rounding more than trained ones."""
    x = image(65, 65, batch=2)
    calibrate(model, x)
    spread = float(np.std(model(x)))
    for layer in leaf_layers(unwrapped(model)).values():
        if layer.name.startswith("logits"):
            layer.set_weights([weight * 0.25 / spread for weight in layer.get_weights()])
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_model_exports(name, tmp_path):
    """At odd sizes, with limits for random weights, which magnify rounding layer by layer."""
    limits = export.Limits(probability=TOLERANCE, agreement=0.999)
    keras.utils.set_random_seed(0)
    model = with_weights(MODELS[name]())
    for kind, suffix in SUFFIXES.items():
        path = getattr(export, kind)(model, tmp_path / f"{kind}{suffix}", limits=limits)
        pixels = image(71, 49).astype(np.uint8)
        found = runtimes.open_exported(path)(pixels)["probabilities"]
        np.testing.assert_allclose(found, expected(model, pixels), atol=TOLERANCE)
    openvino = pytest.importorskip("openvino")
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for shape in ((1, 97, 129), (2, 71, 65)):
        pixels = image(shape[1], shape[2], shape[0]).astype(np.uint8)
        found = compiled({"images": pixels})["probabilities"]
        np.testing.assert_allclose(found, expected(model, pixels), atol=TOLERANCE)
