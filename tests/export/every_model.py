"""Exports models in all formats and compares each: `python every_model.py FOLDER`.

A program of its own, whose several gigabytes end with it.
"""

from __future__ import annotations

import functools
import gc
import importlib
import sys
from pathlib import Path
from types import ModuleType

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
from keras_deeplab.export import comparison
from keras_deeplab.graph.network import leaf_layers
from keras_deeplab.memory import return_free_memory
from keras_deeplab.models.multi_scale import unwrapped
from training.benchmark.race import peak_bytes

SUFFIXES = {"saved_model": "", "litert": ".tflite", "onnx": ".onnx"}
V3 = {"aspp_filters": 64, "head_filters": 64}
V3_PLUS = {"aspp_filters": 64, "decoder_filters": 64}
MODELS = {
    "v3_resnet50_stride8": lambda: kd.DeepLabV3(5, "resnet50", output_stride=8),
    "v1_vgg16": lambda: kd.DeepLabV1(5, head_filters=256),
    "v2_vgg16": lambda: kd.DeepLabV2(5, "vgg16", head_filters=128),
    "v2_resnet101": lambda: kd.DeepLabV2(5, "resnet101"),
    "v3_mobilenet_v3": lambda: kd.DeepLabV3(5, "mobilenet_v3_large", **V3),
    "v3_mobilenet_v2": lambda: kd.DeepLabV3(5, "mobilenet_v2", aspp_rates=(), **V3),
    "v3_plus_xception65": lambda: kd.DeepLabV3Plus(5, "xception65", **V3_PLUS),
    "v3_plus_resnet101_beta": lambda: kd.DeepLabV3Plus(5, "resnet101_beta", **V3_PLUS),
    "v3_plus_mobilenet_v2": lambda: kd.DeepLabV3Plus(5, "mobilenet_v2", **V3_PLUS),
    "unet": lambda: kd.UNet(5, filters=16),
    "multi_scale": lambda: kd.MultiScale(
        kd.DeepLabV3(5, tiny(), aspp_filters=8), (0.3, 1.0), fusion="mean", flip=True
    ),
}
TOLERANCE = 1e-3  # of probabilities: random weights magnify rounding layer by layer
MEMORY = 3.6 * 2**30  # bytes; it takes 2.9, and 4.4 with TensorFlow's freezing, a copy of the graph


def with_weights(model: keras.Model) -> keras.Model:
    """Calibrated, with small logits: random weights magnify rounding more than trained ones."""
    x = image(65, 65, batch=2)
    calibrate(model, x)
    spread = float(np.std(model(x)))
    for layer in leaf_layers(unwrapped(model)).values():
        if layer.name.startswith("logits"):
            layer.set_weights([weight * 0.25 / spread for weight in layer.get_weights()])
    return model


def backbone_module(name: str) -> ModuleType:
    return importlib.import_module(f"keras_deeplab.backbones.{name}")


def halve() -> None:
    """Gives backbones half of their channels.

    The time of a converter, and most of all the memory that it copies, grows with the weights.
    """
    resnet, vgg16, xception = map(backbone_module, ("resnet", "vgg16", "xception"))
    conv_norm, unit = resnet.conv_norm, xception._unit
    resnet.conv_norm = lambda x, filters, *args, **kw: conv_norm(x, filters // 2, *args, **kw)
    xception._unit = lambda x, filters, *args: unit(x, tuple(n // 2 for n in filters), *args)
    vgg16.BLOCKS = tuple((filters // 2, count) for filters, count in vgg16.BLOCKS)


def shorten() -> None:
    """Leaves out units of backbones that are the same as another one."""
    UNITS.update(dict.fromkeys((50, 101), (2, 1, 2, 3)))
    MIDDLE_UNITS[65] = 1
    mobilenet_v2, mobilenet_v3 = map(backbone_module, ("mobilenet_v2", "mobilenet_v3"))
    mobilenet_v2.STAGES = tuple(
        (*first, min(count, 2), stride) for *first, count, stride in mobilenet_v2.STAGES
    )
    mobilenet_v3.BLOCKS["large"] = tuple(dict.fromkeys(mobilenet_v3.BLOCKS["large"]))


def compare(name: str, folder: Path) -> None:
    """Exports a model in all formats, and compares each with it."""
    limits = export.Limits(probability=TOLERANCE, agreement=0.999)
    keras.utils.set_random_seed(0)
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


def main(folder: Path) -> None:
    shorten()
    halve()
    # All formats are compared with one trace of the model.
    comparison.model_function = functools.lru_cache(1)(comparison.model_function)
    gc.freeze()  # the exports collect garbage again and again
    for number, name in enumerate(MODELS):
        print(name, file=sys.stderr)
        (folder / name).mkdir()
        compare(name, folder / name)
        return_free_memory()
        assert peak_bytes() < MEMORY
        if number == 0:  # the widest, for the bound of the memory
            halve()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
