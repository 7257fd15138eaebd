"""Receptive field against mean IoU: networks on one encoder, trained with equal steps."""

from __future__ import annotations

from functools import partial
from typing import Any

import keras
import numpy as np

import keras_deeplab as kd
from keras_deeplab import data
from keras_deeplab.analysis import effective_receptive_field
from keras_deeplab.data.shapes import dull, paint, photographed
from training.drawn import Drawn

FILTERS = 8
CROP = 96
SIDE = 257  # of the images for receptive fields
# Of `FarMark`: the disc is at the right edge, the mark at the left one.
RADIUS, MARK = 12, 5
COLORS = ((220, 60, 60), (60, 110, 220))


class FarMark(Drawn):
    """Grey discs whose class is the colour of a mark at the other edge of the image.

    Between a disc and its mark are at least 58 pixels, so that no network with a smaller field
    to one side can tell the two classes of discs apart.

    Args:
        train, val: Number of images.
    """

    info = data.DatasetInfo(("background", "disc with red mark", "disc with blue mark"))

    def __init__(self, train: int = 400, val: int = 48) -> None:
        super().__init__(train, val)

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draws an image of 96x96 and its label (see `Drawn.draw`)."""
        kind = int(rng.integers(2))
        grid = np.mgrid[:CROP, :CROP].astype(np.float32)
        image = paint(rng, grid, dull(rng))
        rows = rng.integers(RADIUS, CROP - RADIUS, 2)
        disc = np.hypot(grid[0] - rows[0], grid[1] - (CROP - 1 - RADIUS)) < RADIUS
        image[disc] = 128 + 90 * rng.choice([-1, 1])
        mark = np.maximum(abs(grid[0] - rows[1]), abs(grid[1] - MARK)) <= MARK
        image[mark] = COLORS[kind]
        return photographed(rng, image, grid / CROP), np.where(disc, 1 + kind, 0).astype(np.uint8)


SOURCES = {"shapes": partial(data.Shapes, val=100), "far mark": FarMark}


def network(name: str, classes: int) -> keras.Model:
    """Builds a network of the table; all have U-Net's contracting path with 8 to 128 channels."""
    kind, _, depth = name.partition(", depth ")
    unet = kd.UNet(classes, filters=FILTERS, depth=int(depth or 4), batch_norm=True, dropout=0.1)
    if kind == "UNet":
        return unet
    encoder = keras.Model(unet.backbone.inputs, unet.backbone.outputs[0])
    options: dict[str, Any] = {"preprocessing": "tf", "dropout": 0.1}
    if kind == "DeepLabV1":
        return kd.DeepLabV1(classes, encoder, head_filters=64, output_stride=8, **options)
    options |= {"aspp_filters": 64, "output_stride": 8}
    if kind == "DeepLabV3":
        return kd.DeepLabV3(classes, encoder, **options)
    return kd.DeepLabV3Plus(classes, encoder, decoder_filters=64, **options)


NETWORKS = (
    *(f"UNet, depth {depth}" for depth in (2, 3, 4)),
    *("DeepLabV1", "DeepLabV3", "DeepLabV3Plus"),
)


def measure(name: str, source_name: str, steps: int) -> dict[str, Any]:
    """Trains a network and returns its fields, cost and mean IoU as a row of the table."""
    keras.utils.set_random_seed(0)
    source = SOURCES[source_name]()
    model = network(name, source.info.num_classes)
    batches = data.training_dataset(
        source,
        crop_size=(CROP, CROP),
        scales=(1.0, 1.0),
        flip=source_name == "shapes",
        color_jitter=0.0,
        repeat=True,
    )
    rate = keras.optimizers.schedules.PolynomialDecay(3e-3, steps, 1e-5, power=0.9)
    model.compile(keras.optimizers.Adam(rate), kd.losses.CrossEntropy())
    model.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0)
    kd.batch_norm.reestimate_batch_norm(model, batches.take(16))
    scores = kd.evaluate(model, data.evaluation_dataset(source), source.info.classes, verbose=0)
    output = kd.graph.geometry(model, SIDE, SIDE).output.axes[0]
    images = np.stack([image for image, _ in batches.unbatch().take(4).as_numpy_iterator()])
    return {
        "network": name,
        "data": source_name,
        "steps": steps,
        "parameters": model.count_params(),
        "multiply_adds": sum(kd.graph.multiply_adds(model, CROP, CROP).values()),
        "receptive_field": float(output.field),
        "whole_image": output.unbounded,
        "effective_side": effective_receptive_field(model, images).side,
        "mean_iou": scores["mean_iou"],
        "per_class": scores["per_class"],
    }
