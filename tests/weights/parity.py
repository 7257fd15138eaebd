"""Parity cases: what public implementations answered for seeded weights."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import keras
import numpy as np
import safetensors.numpy
import tensorflow as tf


def shapes(shared: Path, name: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a case's weights by the names of its source."""
    case = json.loads((shared / "parity" / f"{name}.json").read_text())
    return {key: tuple(shape) for key, shape in case["parameters"]}


def state(shared: Path, name: str) -> dict[str, np.ndarray]:
    """The weights of a case, made from the names and shapes alone."""
    path = shared / "parity" / "seeded_weights.py"
    spec = importlib.util.spec_from_file_location("seeded_weights", path)
    seeded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(seeded)
    make = seeded.seeded_tf_state if name.startswith("tf1_") else seeded.seeded_state
    return make(shared / "parity" / f"{name}.json")


def write_tf1(prefix: Path, arrays: dict[str, np.ndarray]) -> Path:
    """A TensorFlow 1 checkpoint: variables by name."""
    names = sorted(arrays)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(arrays[name]) for name in names],
    )
    return prefix


def write_case(shared: Path, name: str, folder: Path) -> Path:
    """The weights of a case in a file as its source would write it."""
    arrays = state(shared, name)
    if name.startswith("tf1_"):
        return write_tf1(folder / name, arrays)
    path = folder / f"{name}.safetensors"
    safetensors.numpy.save_file(arrays, path)
    return path


def differences(model: keras.Model, shared: Path, name: str) -> dict[str, float]:
    """Largest differences of the logits at each size, in parts of the largest logit.

    It is infinite where the model's logits have another size. Cases hold the logits at the stride
    of the network, at the image's size, or both.
    """
    with np.load(shared / "parity" / f"{name}.npz") as case:
        found = {}
        for key in case.files:
            if not key.startswith("input_"):
                continue
            size = key.removeprefix("input_")
            outputs = {
                tensor.shape[1:]: tensor.numpy() for tensor in _coarse_and_full(model, case[key])
            }
            for expected in (f"logits_{size}", f"full_{size}"):
                if expected in case.files:
                    right = case[expected]
                    output = outputs.get(right.shape[1:], np.inf)
                    difference = np.abs(output - right).max() / np.abs(right).max()
                    found[expected] = float(difference)
    assert found
    return found


def _coarse_and_full(model: keras.Model, pixels: np.ndarray) -> list[tf.Tensor]:
    names = [layer.name for layer in model.layers]
    coarse = model.get_layer("aspp_sum" if "aspp_sum" in names else "logits").output
    both = keras.Model(model.inputs[0], [coarse, model.outputs[0]])
    return both(pixels, training=False)
