"""Figures and tables of docs/story.md: `python -m training.story --output docs/story`."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers as kl

import keras_deeplab as kd
from keras_deeplab import analysis
from keras_deeplab.analysis import drawing
from keras_deeplab.analysis.table import text_table
from keras_deeplab.cli.options import Parser, command, positive
from keras_deeplab.extras import require
from keras_deeplab.files import write_json, write_png
from keras_deeplab.inference import read_image

logger = logging.getLogger(__name__)

SIDE = 385  # of the photograph
CHANNELS, MAP, ROUNDS = 64, 65, 9  # of the comparison of kernels

NETWORKS: dict[str, Callable[[], keras.Model]] = {
    "U-Net": lambda: kd.UNet(21),
    "V1, VGG16": lambda: kd.DeepLabV1(21),
    "V2, VGG16": lambda: kd.DeepLabV2(21, "vgg16"),
    "V3, ResNet50": lambda: kd.DeepLabV3(21, "resnet50"),
    "V3+, Xception65": lambda: kd.DeepLabV3Plus(21, "xception65"),
}
# Stacks of layers with 7x7 as their field: kernel size and rate of each layer.
KERNELS = {"7x7": [(7, 1)], "three 3x3": [(3, 1)] * 3, "3x3 at rate 3": [(3, 3)]}
SMALL = {"backbone": "mobilenet_v2", "backbone_options": {"depth_multiplier": 0.35}}
ABLATION: dict[str, Callable[[int], keras.Model]] = {
    **{
        f"U-Net, depth {depth}": lambda classes, depth=depth: kd.UNet(
            classes, filters=12, depth=depth, batch_norm=True
        )
        for depth in (2, 3, 4)
    },
    "V1": lambda classes: kd.DeepLabV1(classes, **SMALL, head_filters=128),
    "V3": lambda classes: kd.DeepLabV3(classes, **SMALL, aspp_filters=64),
    "V3+": lambda classes: kd.DeepLabV3Plus(classes, **SMALL, aspp_filters=64, decoder_filters=64),
}


def parser() -> Parser:
    """Returns the parser of the command line."""
    made = Parser(
        prog="python -m training.story",
        description="Draws the figures of docs/story.md and measures its tables.",
    )
    add = made.add_argument
    add("--output", type=Path, default=Path("docs/story"), help="folder for PNG and story.json")
    add("--image", type=Path, help="photograph; default: one that matplotlib contains")
    add("--steps", type=positive, default=400, help="training steps of each network on shapes")
    add("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    add("--ablation", nargs="+", choices=ABLATION, default=list(ABLATION))
    return made


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    options = parser().parse_args(argv)
    require("The story", "plots", "matplotlib")
    figures: dict[str, Any] = {}
    pictures = {
        "taps": drawing.draw_taps(),
        "transposed": drawing.draw_transposed({"plain": (1,) * 4, "atrous": (1, 2, 4, 8)}),
        "live_taps": drawing.draw_live_taps(),
        "pyramid": drawing.draw_bins([(13, 13), (10, 16), (7, 9)]),
    }
    figures["kernels"] = compare_kernels()
    pictures["fields"], figures["fields"] = measure_fields(options.networks, options.image)
    figures["ablation"] = [train_one(name, options.steps) for name in options.ablation]
    for name, pixels in pictures.items():
        write_png(options.output / f"{name}.png", pixels)
    write_json(options.output / "story.json", figures)
    for name, rows in figures.items():
        print(f"{name}\n{text_table([list(rows[0]), *(row.values() for row in rows)])}\n")
    print(f"Wrote {options.output}")
    return 0


def compare_kernels() -> list[dict[str, Any]]:
    """Compares stacks with a field of 7x7: parameters, multiply-adds and time of an image."""
    found, functions = [], {}
    for name, layers in KERNELS.items():
        stack = keras.Sequential([keras.Input((MAP, MAP, CHANNELS))])
        for size, rate in layers:
            stack.add(
                kl.Conv2D(CHANNELS, size, dilation_rate=rate, padding="same", activation="relu")
            )
        functions[name] = tf.function(stack, autograph=False)
        found.append(
            {
                "layers": name,
                "field": analysis.receptive_field(stack).stages[-1].receptive_field[0],
                "parameters": stack.count_params(),
                "multiply-adds": sum(kd.graph.multiply_adds(stack, MAP, MAP).values()),
                "activations": len(layers),
            }
        )
    image = tf.random.stateless_normal([1, MAP, MAP, CHANNELS], [0, 0])
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(ROUNDS):  # in turns, as other programs may run
        for name, function in functions.items():
            start = time.perf_counter()
            function(image)
            seconds[name].append(time.perf_counter() - start)
    return [
        row | {"ms": round(1e3 * statistics.median(seconds[row["layers"]]), 1)} for row in found
    ]


def measure_fields(
    names: Sequence[str], image: Path | None
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Measures the fields of networks with initial weights on a photograph, and draws them."""
    photograph = _photograph(image)
    batch = photograph[None].astype(np.float32)
    fields, rows = {}, []
    for name in names:
        model = NETWORKS[name]()
        if any(
            isinstance(layer, keras.layers.BatchNormalization) for layer in model._flatten_layers()
        ):
            kd.reestimate_batch_norm(model, tf.data.Dataset.from_tensors((batch, batch[..., 0])))
        stage = analysis.receptive_field(model, SIDE, SIDE).stages[-1]
        field = analysis.effective_receptive_field(model, batch)
        fields[name] = stage, field
        rows.append(
            {
                "network": name,
                "theoretical": f"{stage.receptive_field[0]}{' + image' * stage.whole_image}",
                "95 % of the gradient": field.side,
                "parameters": model.count_params(),
                "multiply-adds": sum(kd.graph.multiply_adds(model, 513, 513).values()),
            }
        )
        logger.info("%s: %s", name, rows[-1])
    return drawing.draw_fields(photograph, fields), rows


def _photograph(path: Path | None) -> np.ndarray:
    if path is None:
        from matplotlib import cbook

        path = Path(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))
    pixels = read_image(path)
    top, left = (max(0, (n - SIDE) // 2) for n in pixels.shape[:2])
    pixels = pixels[top : top + SIDE, left : left + SIDE]
    if pixels.shape[:2] != (SIDE, SIDE):
        raise ValueError(f"{path} must have at least {SIDE}x{SIDE} pixels.")
    return pixels


def train_one(name: str, steps: int) -> dict[str, Any]:
    """Trains a small network on shapes and scores it."""
    source = data_set()
    model = ABLATION[name](source.info.num_classes)
    recipe = kd.recipes.get("shapes").replace(steps=steps)
    result = kd.fit(model, source, recipe, verbose=0)
    stage = analysis.receptive_field(model, 97, 97).stages[-1]
    row = {
        "network": name,
        "field": f"{stage.receptive_field[0]}{' + image' * stage.whole_image}",
        "parameters": model.count_params(),
        "multiply-adds": sum(kd.graph.multiply_adds(model, 97, 97).values()),
        "mean IoU": round(result.scores["mean_iou"], 3),
    }
    logger.info("%s", row)
    return row


def data_set() -> kd.data.Source:
    """Returns the embedded data set, whose objects are 22 to 50 pixels large."""
    return kd.data.Shapes()


if __name__ == "__main__":
    raise SystemExit(main())
