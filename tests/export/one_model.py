"""Exports a model in all formats and compares each: `python one_model.py NAME FOLDER`.

A program of its own, whose several gigabytes end with it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import keras
import numpy as np
import openvino
from calibration import calibrate, image
from export.small import expected
from models.networks import tiny

import keras_deeplab as kd
from keras_deeplab import export, runtimes
from keras_deeplab.backbones.resnet import UNITS
from keras_deeplab.backbones.xception import MIDDLE_UNITS
from keras_deeplab.graph.network import leaf_layers
from keras_deeplab.models.multi_scale import unwrapped
from training.benchmark.race import peak_bytes

SUFFIXES = {"saved_model": "", "litert": ".tflite", "onnx": ".onnx"}
MODELS = {
    "v1_vgg16": lambda: kd.DeepLabV1(5),
    "v2_vgg16": lambda: kd.DeepLabV2(5, "vgg16", head_filters=128),
    "v2_resnet101": lambda: kd.DeepLabV2(5, "resnet101"),
    "v3_resnet50_stride8": lambda: kd.DeepLabV3(5, "resnet50", output_stride=8),
    "v3_mobilenet_v3": lambda: kd.DeepLabV3(5, "mobilenet_v3_large"),
    "v3_mobilenet_v2": lambda: kd.DeepLabV3(5, "mobilenet_v2", aspp_rates=()),
    "v3_plus_xception65": lambda: kd.DeepLabV3Plus(5, "xception65"),
    "v3_plus_resnet101_beta": lambda: kd.DeepLabV3Plus(5, "resnet101_beta"),
    "v3_plus_mobilenet_v2": lambda: kd.DeepLabV3Plus(5, "mobilenet_v2"),
    "unet": lambda: kd.UNet(5, filters=16),
    "multi_scale": lambda: kd.MultiScale(
        kd.DeepLabV3(5, tiny(), aspp_filters=8), (0.75, 1.0), fusion="mean", flip=True
    ),
}
TOLERANCE = 1e-3  # of probabilities: random weights magnify rounding layer by layer
MEMORY = 9 * 2**30  # bytes; converters that copied the weights for each of their passes took 16


def with_weights(model: keras.Model) -> keras.Model:
    """Calibrated, with small logits: random weights magnify rounding more than trained ones."""
    x = image(65, 65, batch=2)
    calibrate(model, x)
    spread = float(np.std(model(x)))
    for layer in leaf_layers(unwrapped(model)).values():
        if layer.name.startswith("logits"):
            layer.set_weights([weight * 0.25 / spread for weight in layer.get_weights()])
    return model


def main(name: str, folder: Path) -> None:
    limits = export.Limits(probability=TOLERANCE, agreement=0.999)
    keras.utils.set_random_seed(0)
    UNITS.update(dict.fromkeys((50, 101), (2, 1, 2, 3)))  # the other units are the same again
    MIDDLE_UNITS[65] = 3  # of 16 equal ones
    model = with_weights(MODELS[name]())
    shapes = ((1, 97, 129), (2, 71, 65))
    batches = [image(height, width, batch).astype(np.uint8) for batch, height, width in shapes]
    probabilities = [expected(model, pixels) for pixels in batches]
    for kind, suffix in SUFFIXES.items():
        path = getattr(export, kind)(model, folder / f"{kind}{suffix}", limits=limits)
        exported = runtimes.open_exported(path)
        for pixels, known in zip(batches, probabilities, strict=True):
            found = exported(pixels)["probabilities"]
            np.testing.assert_allclose(found, known, atol=TOLERANCE)
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for pixels, known in zip(batches, probabilities, strict=True):
        found = compiled({"images": pixels})["probabilities"]
        np.testing.assert_allclose(found, known, atol=TOLERANCE)
    assert peak_bytes() < MEMORY


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
