"""Figures and tables of docs/story.md: `python -m training.story --output docs/story`."""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers as kl
from PIL import Image

import keras_deeplab as kd
from keras_deeplab import analysis
from keras_deeplab.analysis.drawing import panels, rendered
from keras_deeplab.analysis.table import text_table
from keras_deeplab.cli.options import Parser, command, positive
from keras_deeplab.extras import require
from keras_deeplab.files import atomic_write, write_json
from keras_deeplab.inference import read_image
from training import ablation

logger = logging.getLogger(__name__)

COLORS = 128  # of a picture, so that its file is small
SIDE = 385  # of the photograph
CHANNELS, MAP, ROUNDS = 64, 65, 9  # of the comparison of kernels, and of figure 4

NETWORKS: dict[str, Callable[[], keras.Model]] = {
    "U-Net": lambda: kd.UNet(21),
    "V1, VGG16": lambda: kd.DeepLabV1(21),
    "V2, VGG16": lambda: kd.DeepLabV2(21, "vgg16"),
    "V3, ResNet50": lambda: kd.DeepLabV3(21, "resnet50"),
    "V3+, Xception65": lambda: kd.DeepLabV3Plus(21, "xception65"),
}
# Stacks of layers with 7x7 as their field: kernel size and rate of each layer.
KERNELS = {"7x7": [(7, 1)], "three 3x3": [(3, 1)] * 3, "3x3 at rate 3": [(3, 3)]}
STACKS = {"plain": (1, 1, 1, 1), "atrous": (1, 2, 4, 8)}  # rates, from the first to the last layer


def parser() -> Parser:
    """Returns the parser of the command line."""
    made = Parser(
        prog="python -m training.story",
        description="Draws the figures of docs/story.md and measures its tables.",
    )
    add = made.add_argument
    add("--output", type=Path, default=Path("docs/story"), help="folder for PNG and story.json")
    add("--image", type=Path, help="photograph; default: one that matplotlib contains")
    add("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    add("--ablation", nargs="*", choices=ablation.NETWORKS, default=list(ablation.NETWORKS))
    add("--steps", type=positive, default=250, help="training steps of each network")
    return made


@command(parser)
def main(options: argparse.Namespace) -> None:
    """Runs the command."""
    require("The story", "plots", "matplotlib")
    pictures = {
        "taps": analysis.taps_picture((1, 6, 12, 18), side=33),
        "transposed": transposed_picture(STACKS),
        "live_taps": live_taps_picture((1, *range(4, MAP + 8, 4))),
        "pyramid": analysis.pyramid_picture([(13, 13), (10, 16), (7, 9)]),
    }
    figures: dict[str, Any] = {"kernels": compare_kernels()}
    pictures["fields"], figures["fields"] = measure_fields(options.networks, options.image)
    for source in ablation.SOURCES if options.ablation else ():
        rows = [ablation.measure(name, source, options.steps) for name in options.ablation]
        figures[f"ablation on {source}"] = rows
    if options.ablation:
        pictures["ablation"] = ablation_picture(figures)
    for name, pixels in pictures.items():
        with atomic_write(options.output / f"{name}.png") as temporary:
            Image.fromarray(pixels).quantize(COLORS).save(temporary, "PNG", optimize=True)
    write_json(options.output / "story.json", figures)
    for name, rows in figures.items():
        print(f"{name}\n{text_table([list(rows[0]), *(row.values() for row in rows)])}\n")
    print(f"Wrote {options.output}")


def transposed_picture(stacks: Mapping[str, Sequence[int]]) -> np.ndarray:
    """Draws a one-hot map after each transposed convolution of stacks of 3x3 kernels of ones."""
    count, side = 1 + max(map(len, stacks.values())), 33
    figure, axes = panels(count, len(stacks), side=2)
    for row, (name, rates) in zip(np.reshape(axes, (-1, count)), stacks.items(), strict=True):
        for done, one in enumerate(row):
            field = np.zeros((side, side))
            field[side // 2, side // 2] = 1
            if done:
                stack = ones(*rates[len(rates) - done :])
                field = analysis.transposed_receptive_field(stack, (side, side))[..., 0]
            extent = int(np.ptp(np.nonzero(field)[0])) + 1
            one.imshow(field / field.max(), cmap="magma")
            after = "one-hot" if not done else f"after {done} (rate {rates[-done]})"
            one.set_title(f"{name}: {after}\n{extent}x{extent}", fontsize=8)
    return rendered(figure)


def live_taps_picture(rates: Sequence[int]) -> np.ndarray:
    """Draws figure 4 of the DeepLabV3 paper: live taps of a 3x3 kernel against its rate."""
    figure, (axes,) = panels(1, side=4, ticks=True)
    found = [analysis.live_taps(ones(rate), MAP, MAP) for rate in rates]
    for taps in (9, 6, 4, 2, 1):
        shares = [one[0].positions.get(taps, 0) if one else float(taps == 9) for one in found]
        axes.plot(rates, shares, label=str(taps))
    axes.set_xlabel(f"atrous rate on a map of {MAP}x{MAP}")
    axes.set_ylabel("share of the positions")
    axes.legend(title="live taps", fontsize=8)
    return rendered(figure)


def ablation_picture(figures: Mapping[str, list[dict[str, Any]]]) -> np.ndarray:
    """Draws mean IoU against the side that holds 95 % of the gradient."""
    named = {name: rows for name, rows in figures.items() if name.startswith("ablation")}
    figure, axes = panels(len(named), side=4, ticks=True)
    for one, (name, rows) in zip(axes, named.items(), strict=True):
        for row in rows:
            one.scatter(row["effective_side"], row["mean_iou"])
            place = (row["effective_side"], row["mean_iou"])
            one.annotate(row["network"], place, (3, 3), textcoords="offset points", fontsize=7)
        one.margins(0.3, 0.1)  # for the names
        one.set_title(name.removeprefix("ablation on "), fontsize=9)
        one.set_xlabel("effective receptive field, pixels")
        one.set_ylabel("mean IoU")
    return rendered(figure)


def ones(*rates: int) -> keras.Model:
    """A stack of 3x3 kernels of ones."""
    options = {"padding": "same", "kernel_initializer": "ones", "use_bias": False}
    kernels = [kl.Conv2D(1, 3, dilation_rate=rate, **options) for rate in rates]
    return keras.Sequential([keras.Input((None, None, 1)), *kernels])


def compare_kernels() -> list[dict[str, Any]]:
    """Compares stacks with a field of 7x7: parameters, multiply-adds and time of an image."""
    found, functions = [], {}
    for name, layers in KERNELS.items():
        stack = keras.Sequential([keras.Input((MAP, MAP, CHANNELS))])
        for size, rate in layers:
            options = {"dilation_rate": rate, "padding": "same", "activation": "relu"}
            stack.add(kl.Conv2D(CHANNELS, size, **options))
        functions[name] = tf.function(stack, autograph=False)
        found.append(
            {
                "layers": name,
                "field": analysis.receptive_field(stack).stages[-1].receptive_field[0],
                "parameters": stack.count_params(),
                "multiply_adds": sum(kd.graph.multiply_adds(stack, MAP, MAP).values()),
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
    medians = {name: round(1e3 * statistics.median(times), 1) for name, times in seconds.items()}
    return [row | {"ms": medians[row["layers"]]} for row in found]


def measure_fields(
    names: Sequence[str], image: Path | None
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Measures the fields of networks with initial weights on a photograph, and draws them."""
    photograph = _photograph(image)
    batch = photograph[None].astype(np.float32)
    fields, rows = {}, []
    for name in names:
        keras.utils.set_random_seed(0)
        model = NETWORKS[name]()
        kd.reestimate_batch_norm(model, tf.data.Dataset.from_tensors((batch, batch[..., 0])))
        stage = analysis.receptive_field(model, SIDE, SIDE).stages[-1]
        fields[name] = stage, analysis.effective_receptive_field(model, batch)
        estimate = analysis.cost(model, 513, 513)
        rows.append(
            {
                "network": name,
                "theoretical": f"{stage.receptive_field[0]:g}{' + image' * stage.whole_image}",
                "effective": fields[name][1].side,
                "parameters": estimate.parameters,
                "multiply_adds": estimate.multiply_adds,
            }
        )
        logger.info("%s", rows[-1])
    return analysis.fields_picture(photograph, fields), rows


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


if __name__ == "__main__":
    raise SystemExit(main())
