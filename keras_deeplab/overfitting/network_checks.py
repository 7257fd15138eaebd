"""Checks of the data and of the network as it is before training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras
import numpy as np

from keras_deeplab.data import IGNORE_LABEL
from keras_deeplab.graph.network import all_layers, own_weights
from keras_deeplab.overfitting.liveliness import first_dead_layer
from keras_deeplab.overfitting.one_batch import OneBatch, State, batch_norms
from keras_deeplab.overfitting.predictor import find_predictor
from keras_deeplab.overfitting.report import Check, listed

FEW = 0.1  # of the parameters: fewer that train do not make a network


def check_data(one: OneBatch, class_names: Sequence[str]) -> Check:
    """Whether the windows hold something to tell apart."""
    labels, images = one.labels.numpy(), one.images.numpy()
    values, counts = np.unique(labels[labels != IGNORE_LABEL], return_counts=True)
    wrong = values[(values < 0) | (values >= one.num_classes)]
    share = counts.sum() / labels.size
    if not values.size:
        message = "no pixel of the windows counts: all labels are 255 (ignored)"
    elif wrong.size:
        message = (
            f"labels {wrong.tolist()} are no classes, which are 0..{one.num_classes - 1}: do the "
            "label maps count from 1, or hold other values?"
        )
    elif values.size < 2:
        message = (
            f"all {counts.sum()} pixels that count are {class_names[values[0]]!r}: there is "
            "nothing to tell apart. Are the label maps right, or the images too few?"
        )
    elif not np.ptp(images.astype(np.float64), axis=(1, 2)).max():
        message = "every image is of one colour"
    else:
        names = ", ".join(str(class_names[value]) for value in values)
        message = f"{values.size} classes ({names}), {share:.0%} of the pixels count"
        return Check("data", True, message)
    return Check("data", False, message)


def check_trainable(model: keras.Model, trained: bool) -> Check:
    """Whether there is enough to train; without `trained`, whether there is anything."""
    trainable = {id(variable) for variable in model.trainable_variables}
    norms = batch_norms(model).values()
    statistics = {id(v) for norm in norms for v in (norm.moving_mean, norm.moving_variance)}
    frozen, count, total = [], 0, 0
    for path, layer in all_layers(model).items():
        own = own_weights(layer)
        count += sum(math.prod(w.shape) for w in own if id(w) in trainable)
        total += sum(math.prod(w.shape) for w in own if id(w) not in statistics)
        if own and not layer.trainable:
            frozen.append(path)
    measured = f"{count} of {total} parameters are trainable"
    if frozen:
        measured += f"; frozen: {listed(frozen)}"
    last = find_predictor(model)
    if not count:
        return Check("trainable", False, f"nothing is trainable: set `trainable` ({measured})")
    if trained and last is not None and not _trains(last.operation, trainable):
        message = f"the predictor {last.path!r} is frozen: set its `trainable` ({measured})"
        return Check("trainable", False, message)
    if trained and count < FEW * total:
        return Check("trainable", False, f"too little is trainable: {measured}")
    return Check("trainable", True, measured)


def _trains(layer: keras.layers.Layer, trainable: set[int]) -> bool:
    return any(id(weight) in trainable for weight in layer.weights)


def check_gradients(one: OneBatch, end: State) -> Check:
    """Whether the loss reaches every layer, at the beginning or at the end."""
    one.restore(one.beginning)
    first = one.gradients()
    cut = [path for path, value in first.items() if value is None]
    wild = [path for path, v in first.items() if v is not None and not math.isfinite(v)]
    if cut:
        message = (
            f"the graph is cut: the loss does not depend on the weights of {listed(cut)} in a way "
            "that has a gradient. Look for stop_gradient, argmax, rounding or numpy behind them"
        )
        return Check("gradients", False, message)
    if wild:
        message = (
            f"the gradients of {listed(wild)} are not finite before the first step: look for NaN "
            "in the weights, divisions by zero and logarithms of zero"
        )
        return Check("gradients", False, message)
    one.restore(end)
    # A scale that starts at zero has layers behind it without a gradient, but in the first step.
    last = one.gradients()
    zero = [path for path, value in first.items() if value == 0 and last[path] == 0]
    alive = first_dead_layer(one) is None  # else a zero gradient only follows from that
    if zero and alive:
        message = f"the gradients of {listed(zero)} are exactly zero: these layers do not learn"
        return Check("gradients", False, message)
    known = [value for value in first.values() if value is not None]
    message = f"{len(first)} layers, largest gradients {min(known):.2g} to {max(known):.2g}"
    return Check("gradients", True, message)


def check_features(one: OneBatch) -> Check:
    """Whether features and logits differ from pixel to pixel before training."""
    one.restore(one.beginning)
    dead = first_dead_layer(one)
    if dead is not None:
        message = (
            f"{dead.shown} is the same at every pixel (deviation {dead.deviation:.2g}), from layer "
            f"{dead.path!r} on: its activations are dead. Look at its initial weights, biases and "
            "the scale of its input"
        )
        return Check("features", False, message)
    logits = one.model(one.images, training=False).numpy()
    if logits.min() >= 0 and np.allclose(logits.sum(-1), 1, atol=1e-3):
        message = (
            "the model answers with probabilities (they add up to 1), and the losses want logits: "
            "take the softmax out of the model"
        )
        return Check("features", False, message)
    spread = float(logits.std(axis=(0, 1, 2)).max())
    return Check("features", True, f"the logits' deviation over the pixels is {spread:.2g}")
