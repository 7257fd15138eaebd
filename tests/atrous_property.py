"""The property of an exact output stride: the dense feature map holds the coarse one."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers as kl

from keras_deeplab.graph import geometry
from keras_deeplab.graph.network import intercepted_calls, leaf_layers

TOLERANCE = 1e-4  # of the standard deviation of the coarse output


def run(model: keras.Model, x: np.ndarray, pooled: dict[str, object]) -> np.ndarray:
    """The model's output; what its global poolings give is taken from `pooled`, or stored there."""

    def stored(path, call, x):
        name = path.rpartition("/")[2]
        if name not in pooled:
            pooled[name] = call(x)
        return pooled[name]

    layers = leaf_layers(model).items()
    poolings = {p: layer for p, layer in layers if isinstance(layer, kl.GlobalAveragePooling2D)}
    with intercepted_calls(poolings, stored):
        return np.asarray(model(x, training=False))


def compare(coarse: keras.Model, fine: keras.Model, x: np.ndarray) -> float:
    """Largest difference on the whole coarse map at the predicted phase, in its deviations."""
    pooled: dict[str, object] = {}
    expected, found = run(coarse, x, pooled), run(fine, x, pooled)
    at = geometry(coarse, *x.shape[1:3]).output
    finer = geometry(fine, *x.shape[1:3]).output
    assert expected.shape[1:3] == at.size
    assert found.shape[1:3] == finer.size
    assert expected.std() > 1e-2, "the output must live"
    assert at.receptive_field == finer.receptive_field
    ratio, phase = [], []
    for axis in (0, 1):
        ratio.append(int(at.stride[axis] / finer.stride[axis]))
        shift = (at.offset[axis] - finer.offset[axis]) / finer.stride[axis]
        assert shift == int(shift)
        assert 0 <= shift < ratio[axis]
        phase.append(int(shift))
        # The middle of the two maps stays within half a coarse sample.
        middle = [v.offset[axis] + v.stride[axis] * (v.size[axis] - 1) / 2 for v in (at, finer)]
        assert abs(middle[0] - middle[1]) <= at.stride[axis] / 2
    same = found[:, phase[0] :: ratio[0], phase[1] :: ratio[1]]
    assert same.shape == expected.shape
    return np.abs(same - expected).max() / expected.std()


def rates(model: keras.Model) -> dict[str, int]:
    """Every rate above 1 in a network, by layer."""
    return {
        name: layer.dilation_rate[0]
        for name, layer in leaf_layers(model).items()
        if max(getattr(layer, "dilation_rate", (1,))) > 1
    }
