"""All random changes of an image with its label map, in their order."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import tensorflow as tf

from keras_deeplab import validation
from keras_deeplab.data.augmentation.color import (
    ColorJitter,
    jitter_strengths,
    random_blur,
    random_color,
    random_jpeg,
)
from keras_deeplab.data.augmentation.crops import (
    Pair,
    Size,
    enclosing,
    random_flip,
    random_pad,
    random_scaled_crop,
    rotated,
)
from keras_deeplab.data.augmentation.mixing import keep_classes, mosaic, paste, random_cutout

Transform = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], Pair]

check_scales = partial(validation.interval, low=0.01)
# The names are those of `keras.layers.RandomFlip`; True is "horizontal".
FLIPS = (True, False, "horizontal", "vertical", "horizontal_and_vertical")
check_flip = partial(validation.one_of, choices=FLIPS)
# Checks of the arguments that are off by default, which recipes share.
CHECKS = {
    "rotation": partial(validation.interval, low=-180, high=180),
    "blur": partial(validation.interval, low=0),
    "jpeg_quality": partial(validation.interval, low=1, high=100),
    "cutout": validation.fraction,
    "copy_paste": validation.fraction,
    "copy_paste_classes": validation.strings,
    "mosaic": validation.fraction,
}
# Numbers of their seeds: the first four changes keep those they have without the others.
ROTATION, MOSAIC, COPY_PASTE, BLUR, JPEG, CUTOUT, TRANSFORM, UPSIDE_DOWN = range(1, 9)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The augmentation of `data.training_dataset`, with its arguments.

    Raises:
        ValueError: If an argument is out of range.
    """

    crop_size: tuple[int, int]
    scales: tuple[float, float] = (0.5, 2.0)
    scale_step: float | None = None
    flip: bool | str = True
    color_jitter: ColorJitter = None
    class_focus: float = 0.0
    rotation: tuple[float, float] | None = None
    blur: tuple[float, float] | None = None
    jpeg_quality: tuple[float, float] | None = None
    cutout: float = 0.0
    copy_paste: float = 0.0
    copy_paste_classes: Sequence[str] | None = None
    mosaic: float = 0.0
    transform: Transform | None = None
    classes: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "crop_size", validation.pair("crop_size", self.crop_size))
        jitter_strengths(self.color_jitter)
        validation.fraction("class_focus", self.class_focus)
        check_scales("scales", self.scales)
        check_flip("flip", self.flip)
        if self.scale_step is not None:
            validation.positive("scale_step", self.scale_step)
        for name, check in CHECKS.items():
            if getattr(self, name) is not None:
                check(name, getattr(self, name))
        if self.mosaic and min(self.crop_size) < 2:
            raise validation.error("crop_size", "at least (2, 2) for `mosaic`", self.crop_size)
        if self.copy_paste and not self.copy_paste_classes:
            rule = "a list of class names for `copy_paste`"
            raise validation.error("copy_paste_classes", rule, self.copy_paste_classes)
        for name in self.copy_paste_classes or ():
            validation.one_of("copy_paste_classes", name, self.classes)
        if self.transform is not None and not _takes_three(self.transform):
            rule = "a function of an image, a label map and a seed"
            raise validation.error("transform", rule, self.transform)

    @property
    def images(self) -> int:
        """The number of images that it takes to make one."""
        return 1 + 3 * (self.mosaic > 0) + (self.copy_paste > 0)

    def check_channels(self, channels: int) -> None:
        """Raises a ValueError if images of so many channels cannot be changed like this."""
        if self.jpeg_quality and channels not in (1, 3):
            rule = f"None for images of {channels} channels"
            raise validation.error("jpeg_quality", rule, self.jpeg_quality)

    def __call__(self, pairs: Sequence[Pair], seed: tf.Tensor) -> Pair:
        """Augments the first of `images` images with their label maps, by a seed int `(2,)`.

        Returns the image float32 `(*crop_size, channels)` in 0..255 and the label int32
        `crop_size`.
        """
        channels = pairs[0][0].shape[-1] or 3

        def key(number: int) -> tf.Tensor:
            return _folded(seed, number)

        def alone() -> Pair:
            return self._cropped(pairs[0], seed, self.crop_size)

        def of_four() -> Pair:
            def tile(number: int, size: tf.Tensor) -> Pair:
                return self._cropped(pairs[number], _folded(key(MOSAIC), number), size)

            return mosaic(tile, key(MOSAIC), self.crop_size)

        def with_pasted() -> Pair:
            other, classes = pairs[-1], list(map(self.classes.index, self.copy_paste_classes))
            wanted = keep_classes(other[1], classes)
            other = self._cropped(other, key(COPY_PASTE), self.crop_size, wanted)
            return paste(image, label, other, classes)

        if self.mosaic:
            image, label = tf.cond(_happens(self.mosaic, key(MOSAIC)), of_four, alone)
        else:
            image, label = alone()
        if self.copy_paste:
            image, label = tf.cond(
                _happens(self.copy_paste, key(COPY_PASTE)), with_pasted, lambda: (image, label)
            )
        image = tf.ensure_shape(image, (*self.crop_size, channels))
        label = tf.ensure_shape(label, self.crop_size)
        # In the order of a camera: its lens, its file; cut out last, so that edges stay sharp.
        if self.blur:
            image = random_blur(image, key(BLUR), self.blur)
        if self.jpeg_quality:
            image = random_jpeg(image, key(JPEG), self.jpeg_quality)
        if self.cutout:
            image, label = random_cutout(image, label, key(CUTOUT), self.cutout)
        label = tf.cast(label, tf.int32)
        if self.transform is not None:
            image, label = self._transformed(image, label, key(TRANSFORM))
        return image, label

    def _cropped(
        self, pair: Pair, seed: tf.Tensor, size: Size, wanted: tf.Tensor | None = None
    ) -> Pair:
        """Scales, crops, flips, changes colours and turns or pads one image, of `size` in the end.

        With the label map `wanted` the window is around a pixel of one of its classes.
        """
        seeds = tf.random.split(seed, 4)
        window = size
        if self.rotation:
            degrees = tf.random.stateless_uniform((), _folded(seed, ROTATION), *self.rotation)
            angle = degrees * (math.pi / 180)
            window = enclosing(size, angle)
        scales = tuple(map(float, self.scales))
        focus = self.class_focus if wanted is None else 1.0
        image, label = random_scaled_crop(
            *pair, seeds[0], window, scales, focus, self.scale_step, wanted
        )
        if self.flip and self.flip != "vertical":
            image, label = random_flip(image, label, seeds[1], axis=1)
        if self.flip in ("vertical", "horizontal_and_vertical"):
            image, label = random_flip(image, label, _folded(seed, UPSIDE_DOWN), axis=0)
        strengths = jitter_strengths(self.color_jitter)
        if strengths is not None:
            image = random_color(image, seeds[2], strengths)
        if self.rotation:
            return rotated(image, label, angle, size)
        return random_pad(image, label, seeds[3], size)

    def _transformed(self, image: tf.Tensor, label: tf.Tensor, seed: tf.Tensor) -> Pair:
        # A tf.function, as AutoGraph does not convert the code around it.
        result = tf.function(self.transform)(image, label, seed)
        rule = f"a function that returns (image, label) of shapes {image.shape} and {label.shape}"
        if not isinstance(result, tuple) or len(result) != 2:
            raise validation.error("transform", rule, self.transform)
        tensors = tf.cast(result[0], tf.float32), tf.cast(result[1], tf.int32)
        for tensor, given in zip(tensors, (image, label), strict=True):
            if not tensor.shape.is_compatible_with(given.shape):
                raise validation.error("transform", f"{rule}, not {tensor.shape}", self.transform)
        return tf.ensure_shape(tensors[0], image.shape), tf.ensure_shape(tensors[1], label.shape)


def _folded(seed: tf.Tensor, number: int) -> tf.Tensor:
    return tf.random.fold_in(seed, tf.constant(number, seed.dtype))


def _happens(share: float, seed: tf.Tensor) -> tf.Tensor:
    return tf.random.stateless_uniform((), _folded(seed, -1)) < share


def _takes_three(function: Any) -> bool:
    try:
        inspect.signature(function).bind(None, None, None)
    except TypeError:  # raised for other objects than functions too
        return False
    except ValueError:  # a function without a signature
        return True
    return True
