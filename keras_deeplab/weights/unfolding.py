"""Batch norms that were folded into convolutions, restored for training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np

from keras_deeplab.graph.network import all_norms, intercepted_calls


def unfold_batch_norms(model: keras.Model, images: Iterable[Any]) -> int:
    """Estimates the statistics of batch norms that are identities.

    A LiteRT file has its batch norms folded into the convolutions, and `load` restores them as
    identities with a shift, which training would normalise by the batch. Here the mean and the
    variance of each norm's input become its moving statistics, with a scale and a shift that undo
    them: the model's predictions stay the same, also in training.

    Args:
        model: A model with weights of such a file; other norms are not changed.
        images: Batches of pixels in 0..255, `(batch, height, width, channels)`, or of tuples that
            begin with them, such as a few batches of a training data set: `train.take(8)`.

    Returns:
        The number of norms that were changed.

    Raises:
        ValueError: If there are such norms but no batch.

    Example:

    >>> model = keras_deeplab.DeepLabV3(3, "mobilenet_v2")
    >>> images = np.random.default_rng(0).uniform(0, 255, (2, 65, 65, 3)).astype("float32")
    >>> keras_deeplab.weights.unfold_batch_norms(model, [images])
    0
    """
    norms = {path: norm for path, norm in all_norms(model).items() if _is_identity(norm)}
    moments: dict[str, list[np.ndarray]] = {path: [] for path in norms}

    def recorded(path: str, call: Callable[..., Any], x: Any, *args: Any, **kwargs: Any) -> Any:
        values = np.asarray(keras.ops.cast(x, "float32"), np.float64)
        axes = tuple(range(values.ndim - 1))
        sums = values.sum(axes), np.square(values).sum(axes)
        moments[path].append(np.stack([*sums, np.full(values.shape[-1:], values[..., 0].size)]))
        return call(x, *args, **kwargs)

    with intercepted_calls(norms, recorded):
        for batch in images if norms else ():
            model(batch[0] if isinstance(batch, tuple) else batch, training=False)
    for path, norm in norms.items():
        if not moments[path]:
            raise ValueError("`images` must hold at least one batch. Received: none")
        total, squares, count = np.sum(moments[path], axis=0)
        mean, square = total / count, squares / count
        variance = np.maximum(square - mean**2, 0)
        norm.moving_mean.assign(mean)
        norm.moving_variance.assign(variance)
        norm.gamma.assign(np.sqrt(variance + norm.epsilon))
        norm.beta.assign(np.asarray(norm.beta) + mean)
    return len(norms)


def _is_identity(layer: keras.layers.BatchNormalization) -> bool:
    return (
        layer.scale
        and layer.center
        and np.all(np.asarray(layer.gamma) == 1)
        and np.all(np.asarray(layer.moving_mean) == 0)
        and np.allclose(np.asarray(layer.moving_variance) + layer.epsilon, 1, rtol=1e-6, atol=0)
    )
