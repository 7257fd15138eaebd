"""An HTML page that shows the receptive field of each predicted pixel of an image."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_deeplab.analysis.effective_field import EffectiveField, differentiable, influence_shares
from keras_deeplab.analysis.receptive_field import receptive_field
from keras_deeplab.html_page import data_uri
from keras_deeplab.inference import logits_of, logits_spec
from keras_deeplab.inference.pixels import ImageLike, image_pixels
from keras_deeplab.metrics import checked_names
from keras_deeplab.pictures import Colors, overlay
from keras_deeplab.validation import error, integer

HEAT_SIDE = 64  # samples of a heat map's longer side
TEMPLATE = Path(__file__).with_name("page.html")


def receptive_field_page(
    model: keras.Model,
    image: ImageLike,
    class_names: Sequence[str] | None = None,
    *,
    title: str = "Receptive fields",
    colors: Colors | None = None,
    grid: int = 8,
    max_side: int = 513,
    value_range: tuple[float, float] | None = None,
) -> str:
    """Returns an HTML page on which a click on a predicted pixel shows its receptive field.

    It shows the class, the theoretical field as a rectangle, cut at the border of the image, and
    the effective field as heat. The heat is not that of the pixel itself but of the nearest of
    `grid x grid` pixels, which the page marks: the absolute gradient of the logit of its predicted
    class, for this image, as means of cells on a square root scale.

    Args:
        model: A functional segmentation model on pixels in 0..255, with logits of the image's size.
        image: Path, array or `PIL.Image`, as of `predict`.
        class_names: One name per class; the class numbers by default.
        title: Title of the page.
        colors: One `(red, green, blue)` in 0..255 per class; PASCAL VOC's by default.
        grid: Pixels per axis with a heat map; each takes a gradient of the model and about 2 kB.
        max_side: Longest side in pixels to which a larger image is shrunk.
        value_range: As of `predict`.

    Returns:
        The text of a page that needs no other file.

    Raises:
        ValueError: If an argument is out of its range, or the output does not depend on the image.

    Example:

    >>> inputs = keras.Input((None, None, 3))
    >>> model = keras.Model(inputs, keras.layers.Conv2D(2, 5, padding="same")(inputs))
    >>> image = np.full((32, 48, 3), 128, "uint8")
    >>> page = keras_deeplab.analysis.receptive_field_page(model, image, ["sky", "ground"], grid=2)

    Reference:
        [Luo et al., 2016](https://arxiv.org/abs/1701.04128), section 3.
    """
    spec, classes = logits_spec(model)
    names = checked_names(classes, class_names)
    integer("grid", grid)
    pixels = image_pixels(image, spec.shape[-1], value_range)
    pixels = _shrunk(pixels, spec, integer("max_side", max_side))
    height, width = pixels.shape[1:3]
    network = differentiable(model)
    logits = logits_of(network, pixels)
    if logits.shape[1:3] != (height, width):
        raise error("model", f"one with logits of the size {height}x{width}", logits.shape)
    labels = tf.argmax(logits[0], -1, tf.int32).numpy()
    stage = receptive_field(network, height, width).stages[-1]
    rows, columns = (
        ((np.arange(grid) + 0.5) * side / grid).astype(int) for side in (height, width)
    )
    places = [(int(row), int(column)) for row in rows for column in columns]
    heats, sides = [], []
    for place, influence in zip(places, _influences(network, pixels, labels, places), strict=True):
        sides.append(EffectiveField(influence, place).side)
        heats.append(data_uri(_heat(influence), "PNG"))
    bands = pixels[0, ..., :3] if spec.shape[-1] > 2 else pixels[0, ..., :1].repeat(3, -1)
    shown = np.uint8(np.clip(bands, 0, 255))
    # A class number has the low byte in red and the high one in green.
    numbers = np.uint8(np.stack([labels % 256, labels // 256, 0 * labels], -1))
    content = {
        "size": [height, width],
        "names": names,
        "stride": stage.stride,
        "offset": stage.offset,
        "field": stage.receptive_field,
        "wholeImage": stage.whole_image,
        "places": places,
        "sides": sides,
        "heats": heats,
        "labels": data_uri(numbers, "PNG"),
        "image": data_uri(shown, "JPEG"),
        "overlay": data_uri(overlay(shown, labels, colors, ignore_label=None), "JPEG"),
    }
    text = json.dumps(content, allow_nan=False).replace("<", "\\u003c")
    filled = {"TITLE": html.escape(title), "CONTENT": text}
    template = TEMPLATE.read_text(encoding="utf-8")
    page = re.sub("|".join(filled), lambda found: filled[found[0]], template)
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def _shrunk(pixels: np.ndarray, spec: tf.TensorSpec, max_side: int) -> np.ndarray:
    """Returns one image float32 `(1, height, width, channels)` of the model's own size if fixed."""
    if pixels.ndim == 4:
        if len(pixels) != 1:
            raise error("image", "one image", pixels.shape)
        pixels = pixels[0]
    scale = min(max_side / max(pixels.shape[:2]), 1)
    size = [
        own or max(round(scale * side), 1)
        for own, side in zip(spec.shape[1:3], pixels.shape[:2], strict=True)
    ]
    pixels = tf.cast(pixels, tf.float32)[None]
    if pixels.shape[1:3] != size:
        pixels = tf.image.resize(pixels, size, antialias=True)
    return pixels.numpy()


def _influences(
    network: keras.Model, pixels: np.ndarray, labels: np.ndarray, places: Sequence[tuple[int, int]]
) -> Iterator[np.ndarray]:
    """Yields for each place the share of each pixel in the gradient, with a sum of 1."""
    image = tf.constant(pixels)

    @tf.function(autograph=False)
    def gradient(row: tf.Tensor, column: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(image)
            value = logits_of(network, image)[0, row, column, label]
        return tape.gradient(value, image, unconnected_gradients="zero")

    for place in places:
        found = gradient(*map(tf.constant, place), tf.constant(labels[place])).numpy()
        yield influence_shares(found, f"at the pixel {place}")[0]


def _heat(influence: np.ndarray) -> np.ndarray:
    """Returns a heat map as uint8: means of cells, square roots relative to the largest."""
    scale = min(HEAT_SIDE / max(influence.shape), 1)
    size = [max(round(scale * side), 1) for side in influence.shape]
    means = tf.image.resize(influence[..., None], size, "area")[..., 0].numpy()
    return np.uint8(np.rint(255 * np.sqrt(means / means.max())))
