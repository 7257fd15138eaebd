"""The layer that gives the logits, and the best that logits of its size can say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_deeplab.data import IGNORE_LABEL
from keras_deeplab.graph.network import Call, top_level_calls
from keras_deeplab.losses import CrossEntropy
from keras_deeplab.overfitting.one_batch import OneBatch, label_scores

ITERATIONS = 150
RATE = 0.3
CERTAIN = 8.0  # logits that say a class with a probability near 1


@dataclass(frozen=True)
class Best:
    """The best answer of free logits.

    Attributes:
        size: `(height, width)` of the logits in front of the last resize.
        scores: What `metrics.scores` tells of the label maps they give.
    """

    size: tuple[int, int]
    scores: dict[str, Any]


def find_predictor(model: keras.Model) -> Call | None:
    """The last use of a layer with weights, where it gives one map of logits."""
    calls = [call for call in top_level_calls(model) if getattr(call.operation, "weights", ())]
    if not calls or len(calls[-1].outputs) != 1:
        return None
    shape = calls[-1].outputs[0].shape
    return calls[-1] if len(shape) == 4 and shape[-1] == model.output_shape[-1] else None


def best_answer(one: OneBatch, class_names: Sequence[str]) -> Best | None:
    """Chooses the logits in front of the last resize freely, so that the labels come out right.

    What lies between predictor and output is linear, so the search is convex; it begins at the
    labels, shrunk, which are far from the best. It finds the least cross-entropy, not the largest
    IoU: a trained network can be a little better, most of all in a rare class.

    Args:
        one: The model and its batch.
        class_names: One name per class.

    Returns:
        The best answer, or None where the output depends on more than the predictor's map.
    """
    last = find_predictor(one.model)
    if last is None:
        return None
    image, logits = one.model.inputs[0], last.outputs[0]
    size = keras.Model(image, logits)(one.images[:1]).shape[1:3]
    if logits is one.model.outputs[0] or size == one.labels.shape[1:3]:
        return None
    tail = keras.Model([image, logits], one.model.outputs[0])
    if tail.weights:  # other predictors have a say
        return None
    counts = one.labels != IGNORE_LABEL
    ones = tf.one_hot(tf.where(counts, one.labels, -1), one.num_classes)
    free = tf.Variable(CERTAIN * tf.image.resize(ones, size, antialias=True))
    optimizer = keras.optimizers.Adam(RATE)
    optimizer.build([free])
    loss = CrossEntropy()

    @tf.function(autograph=False)
    def improve() -> None:
        with tf.GradientTape() as tape:
            value = loss(one.labels, tail([one.images, free]))
        optimizer.apply([tape.gradient(value, free)], [free])

    for _ in range(ITERATIONS):
        improve()
    predicted = np.argmax(tail([one.images, free]), -1)
    scores = label_scores(one.labels.numpy(), predicted, one.num_classes, list(class_names))
    return Best(tuple(size), scores)
