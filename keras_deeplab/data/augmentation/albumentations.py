"""Augmentation by the package albumentations."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from keras_deeplab import validation
from keras_deeplab.data.augmentation.augmenting import Transform


def from_albumentations(compose: Callable[..., Mapping[str, np.ndarray]]) -> Transform:
    """Returns an `albumentations.Compose` as a `transform` of `data.training_dataset`.

    It is called with the crop rounded to uint8 and its label map, and seeded by the pipeline with
    `set_random_seed`, so that a run resumes bit for bit. Each thread of the pipeline has a copy.

    `pip install keras_deeplab[albumentations]` brings albumentations 2, which is under the MIT
    license and no longer maintained. Its successor AlbumentationsX, under the AGPL, works as well,
    and so does each callable with the arguments `image` and `mask`; without a `set_random_seed` the
    callable must not be random for a run to be reproducible.

    Args:
        compose: Returns a mapping with `"image"`, of the same size and channels, and `"mask"`.
            Transforms that move pixels need `fill_mask=255`, which is ignored.

    Raises:
        ValueError: If `compose` is not callable; in training, if a size is changed.

    Example:

    >>> import albumentations as A
    >>> compose = A.Compose([A.GridDistortion(fill=127, fill_mask=255), A.GaussNoise()])
    >>> train = data.training_dataset(
    ...     data.Shapes(), crop_size=(96, 96), transform=data.from_albumentations(compose)
    ... )
    """
    if not callable(compose):
        raise validation.error("compose", "an albumentations.Compose", compose)
    own = threading.local()  # a Compose holds its random state

    def call(image: np.ndarray, label: np.ndarray, seed: np.ndarray) -> tuple[np.ndarray, ...]:
        if not hasattr(own, "compose"):
            own.compose = copy.deepcopy(compose)
        if hasattr(own.compose, "set_random_seed"):
            own.compose.set_random_seed(int(seed) % 2**32)
        changed = own.compose(image=image, mask=label)
        sizes = changed["image"].shape, changed["mask"].shape
        if sizes != (image.shape, label.shape):
            rule = f"a transform that keeps the shapes {image.shape} and {label.shape}"
            raise validation.error("compose", rule, sizes)
        return changed["image"].astype(np.float32), changed["mask"].astype(np.int32)

    def transform(image: tf.Tensor, label: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, ...]:
        pixels = tf.saturate_cast(tf.round(image), tf.uint8)
        arguments = [pixels, tf.cast(label, tf.uint8), seed[0]]
        # The pipeline sets the shapes.
        return tuple(tf.numpy_function(call, arguments, [tf.float32, tf.int32], stateful=False))

    return transform
