"""Networks with weights of no default value, and files of them as others write them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import keras
import numpy as np
from models.networks import tiny_sequential

import keras_deeplab
from keras_deeplab.graph.network import own_weights
from keras_deeplab.weights.transfer import weighted_layers


def small(num_classes: int = 3, **arguments) -> keras_deeplab.DeepLabV3:
    arguments = {"aspp_filters": 8, "head_filters": None, "output_stride": 8, **arguments}
    return keras_deeplab.DeepLabV3(num_classes, tiny_sequential(), **arguments)


def scattered(model: keras.Model, seed: int = 1) -> keras.Model:
    """Every weight random, so that none is found by chance."""
    random = np.random.default_rng(seed)
    for weight in model.weights:
        low, high = (0.5, 1.5) if weight.name in ("gamma", "moving_variance") else (-0.3, 0.3)
        weight.assign(random.uniform(low, high, weight.shape))
    return model


@contextmanager
def unchanged(model: keras.Model) -> Iterator[None]:
    """Asserts that no weight of a model changes."""
    before = [np.array(weight) for weight in model.weights]
    yield
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)


def as_the_authors_write_it(model: keras.Model, layers: dict[str, str]) -> dict[str, np.ndarray]:
    """The model's weights by the authors' names."""
    arrays = {}
    for path, layer in weighted_layers(model).items():
        for name, weight in own_weights(layer).items():
            if not layers[path].endswith("/BatchNorm"):
                is_depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
                kernel = "depthwise_weights" if is_depthwise else "weights"
                name = {"kernel": kernel, "bias": "biases"}[name]
            arrays[f"{layers[path]}/{name}"] = np.array(weight)
    if "concat_projection/weights" in arrays:  # the authors put image pooling first
        kernel = arrays["concat_projection/weights"]
        pooled = arrays["image_pooling/weights"].shape[-1]
        arrays["concat_projection/weights"] = np.concatenate(
            [kernel[:, :, -pooled:], kernel[:, :, :-pooled]], axis=2
        )
    return arrays


TORCH_NAMES = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean"}
TORCH_NAMES |= {"moving_variance": "running_var", "kernel": "weight", "bias": "bias"}


def as_torchvision_writes_it(model: keras.Model, layers: dict[str, str]) -> dict[str, np.ndarray]:
    """The model's weights by torchvision's names."""
    arrays = {}
    for path, layer in weighted_layers(model).items():
        for name, weight in own_weights(layer).items():
            value = np.array(weight)
            if name == "kernel" and value.ndim == 2:
                value = value.T
            elif name == "kernel" and isinstance(layer, keras.layers.DepthwiseConv2D):
                value = np.moveaxis(value, (2, 3), (0, 1))
            elif name == "kernel":
                value = np.moveaxis(value, (3, 2), (0, 1))
            arrays[f"{layers[path]}.{TORCH_NAMES[name]}"] = np.ascontiguousarray(value)
    return arrays


def norm_after(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}conv": theirs, f"{ours}norm": f"{theirs}/BatchNorm"}


def separable(ours: str, theirs: str) -> dict[str, str]:
    return {
        f"{ours}/depthwise": f"{theirs}_depthwise",
        f"{ours}/depthwise_norm": f"{theirs}_depthwise/BatchNorm",
        f"{ours}/pointwise": f"{theirs}_pointwise",
        f"{ours}/pointwise_norm": f"{theirs}_pointwise/BatchNorm",
    }


# Written here a second time, from the list of the authors' names.
HEAD = {
    **norm_after("aspp/conv_1x1/", "aspp0"),
    **norm_after("aspp/image_pooling/conv/", "image_pooling"),
    **norm_after("aspp/project/", "concat_projection"),
    **norm_after("decoder_low_level/", "decoder/feature_projection0"),
    **separable("decoder_0", "decoder/decoder_conv0"),
    **separable("decoder_1", "decoder/decoder_conv1"),
    "logits": "logits/semantic",
}
ASPP = {k: v for i in range(3) for k, v in separable(f"aspp/atrous_{i}", f"aspp{i + 1}").items()}


def tar_gz(folder: Path) -> bytes:
    """A folder as an archive."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        tar.add(folder, folder.name)
    return content.getvalue()


def write_applications(path: Path, network: keras.Model) -> Path:
    """A file as keras.applications publishes them: layers by name, variables by name and ':0'."""
    with h5py.File(path, "w") as file:
        for layer in network.layers:
            group = file.create_group(f"{layer.name}/{layer.name}")
            for weight in layer.weights:
                name = weight.name
                if isinstance(layer, keras.layers.DepthwiseConv2D):
                    name = "depthwise_kernel"
                group.create_dataset(f"{name}:0", data=np.array(weight))
    return path
