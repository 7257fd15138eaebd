"""Which state dict of a training checkpoint is read, and what of its names is removed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from sources import as_torchvision_writes_it, scattered, unchanged
from torch_bytes import dict_of, plain, state_dict, write_zip

from keras_deeplab import backbones, weights
from keras_deeplab.weights import Checkpoint, WeightsError
from keras_deeplab.weights.errors import UnreadableError
from keras_deeplab.weights.names import tables, torchvision
from keras_deeplab.weights.readers.state_dict import chosen

PATH = Path("some.ckpt")


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


LAYERS = tables.resnet(torchvision.RESNET, 50)
RESNET = {
    f"{name}.{variable}": zeros(1) if "bn" in name or "downsample.1" in name else zeros(1, 64, 1, 1)
    for name in LAYERS.values()
    for variable in ("weight", "bias", "running_mean", "running_var")
    if "bn" in name or "downsample.1" in name or variable == "weight"
}
RESNET["bn1.num_batches_tracked"] = zeros()
OTHER = {"mean": zeros(3)}
# A network that is known, with a layer missing.
BROKEN = {name: array for name, array in RESNET.items() if "layer3.2.conv1" not in name}


def under(prefix: str, arrays: dict = RESNET) -> dict:
    return {f"{prefix}{name}": array for name, array in arrays.items()}


def marked(network: dict = RESNET) -> dict:
    """The same, known by the values of its first kernel."""
    return {**network, "conv1.weight": np.ones((1, 64, 1, 1), np.float32)}


def is_marked(found: Checkpoint) -> bool:
    assert found.backbone == "resnet50"
    return bool(found.arrays["backbone/stem_conv/kernel"].all())


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "model.", "module.model.", "_orig_mod.", "model._orig_mod.module.net.encoder."],
)
def test_wrappers_prefixes_are_removed(prefix, logs):
    arrays = {**under(prefix), "criterion.weight": zeros(2), "n_averaged": zeros()}
    found = chosen(PATH, {("state_dict",): arrays, ("generator",): OTHER}, False)
    assert found.backbone == "resnet50"
    assert {"criterion.weight", "n_averaged"} <= {*found.unexpected, *found.arrays}
    assert f"some.ckpt: weights read from state_dict.{prefix}*; other networks in it: none" in (
        logs.text
    )


def test_weights_of_the_other_network_are_not_unexpected():
    arrays = {**under("model."), **under("ema_model."), "criterion.weight": zeros(2)}
    for moving_averages in (True, False):
        unexpected = chosen(PATH, {(): arrays}, moving_averages).unexpected
        assert "criterion.weight" in unexpected
        assert not [name for name in unexpected if "model." in name]


def test_no_more_is_removed_than_is_needed(logs):
    chosen(PATH, {(): RESNET}, False)
    assert not logs.text
    # All names have `backbone.`, which is torchvision's own.
    assert chosen(PATH, {(): under("backbone.")}, False).title == "torchvision resnet50"
    assert not logs.text
    chosen(PATH, {(): under("module.backbone.")}, False)
    assert "read from module.*;" in logs.text


@pytest.mark.parametrize(
    "place, names",
    [
        (("model_ema",), "module."),
        (("ema_state_dict",), ""),
        (("state_dict_ema",), ""),
        (("ema", "module"), ""),
        (("swa_state",), "module."),
        (("state_dict",), "ema_model.module."),
    ],
)
def test_moving_averages_beside_the_model_are_read_when_asked_for(place, names, logs):
    both = {("state_dict",): under("model.")}
    both[place] = {**both.get(place, {}), **under(names, marked())}
    assert not is_marked(chosen(PATH, both, False))
    other = ".".join((*place, f"{names}*"))
    assert f"read from state_dict.model.*; other networks in it: {other}" in logs.text
    assert is_marked(chosen(PATH, both, True))
    # The averages alone are what the file holds.
    assert is_marked(chosen(PATH, {place: under(names, marked())}, False))


@pytest.mark.parametrize("name", ["schema", "emanet", "remake", "swan", "state_dict"])
def test_moving_averages_that_are_not_there(name):
    with pytest.raises(UnreadableError, match="`moving_averages` must be False: it holds none"):
        chosen(PATH, {(name,): RESNET}, True)


@pytest.mark.parametrize(
    "found, message",
    [
        (
            {("state_dict",): RESNET, ("model",): under("module.")},
            r"must hold one network, and holds 2: state_dict\.\*, model\.module\.\*\. Save",
        ),
        ({(): {**under("student."), **under("teacher.")}}, r"holds 2: student\.\*, teacher\.\*"),
        (
            {("model",): under("module.", BROKEN), (): OTHER},
            r"lacks 1 of its layers: layer3\.2\.conv1",
        ),
        (
            {(): OTHER, ("net",): {"a": zeros(1), "b": zeros(1)}},
            "holds 2 arrays of no known network, among them a, b",
        ),
        ({(): {}}, "holds 0 arrays"),
        # A head that is broken does not make a backbone of the file.
        (
            {
                (): {
                    **under("backbone."),
                    "classifier.0.convs.0.0.weight": zeros(1, 1, 1, 1),
                    "classifier.4.weight": zeros(9, 1, 1, 1),
                }
            },
            "looks like torchvision deeplabv3_resnet50, but lacks",
        ),
    ],
)
def test_what_is_not_one_whole_network_is_refused(found, message):
    with pytest.raises((UnreadableError, WeightsError), match=message):
        chosen(PATH, found, False)


LARGE = torchvision.mobilenet_v3("large", "features.")


@pytest.fixture(scope="module")
def target():
    return scattered(backbones.build("mobilenet_v3_large", (None, None, 3)))


@pytest.fixture(scope="module")
def arrays(target) -> dict[str, np.ndarray]:
    layers = {path.removeprefix("backbone/"): name for path, name in LARGE.items()}
    return as_torchvision_writes_it(target, layers)


def test_the_small_mobilenet_v3_of_torchvision_is_read(tmp_path):
    target = scattered(backbones.build("mobilenet_v3_small", (None, None, 3)))
    right = [np.array(weight) for weight in target.weights]
    names = torchvision.mobilenet_v3("small", "features.")
    layers = {path.removeprefix("backbone/"): name for path, name in names.items()}
    arrays = as_torchvision_writes_it(target, layers)
    shapes = {  # as torchvision prints them
        "features.1.block.0.0.weight": (16, 1, 3, 3),
        "features.1.block.1.fc1.weight": (8, 16, 1, 1),
        "features.1.block.2.1.running_var": (16,),
        "features.2.block.2.0.weight": (24, 72, 1, 1),
        "features.11.block.2.fc2.bias": (576,),
        "features.12.0.weight": (576, 96, 1, 1),
    }
    assert {name: arrays[name].shape for name in shapes} == shapes
    safetensors.numpy.save_file({**arrays, "classifier.3.weight": np.ones((9, 4))}, tmp_path / "a")
    for weight in target.weights:
        weight.assign(weight * 0)
    report = weights.load(target, tmp_path / "a")
    assert report.missing_keys == ()
    for old, new in zip(right, target.weights, strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.slow
def test_a_lightning_checkpoint_comes_back_whole(arrays, target, tmp_path):
    right = [np.array(weight) for weight in target.weights]
    wrapped = {f"model.module.{name}": array for name, array in arrays.items()}
    wrapped["criterion.weight"] = np.ones(2)
    body, storages = state_dict(wrapped)
    averages, more = state_dict({n: a + 1 for n, a in arrays.items()}, len(storages))
    body = dict_of(epoch=plain(3), state_dict=body, ema=averages)
    path = write_zip(tmp_path / "last.ckpt", body, **storages, **more)
    for moving_averages in (True, False):  # the target's own weights at last
        report = weights.load(target, path, moving_averages=moving_averages)
        assert report.missing_keys == ()
        assert report.unexpected_keys == (() if moving_averages else ("criterion.weight",))
        for old, new in zip(right, target.weights, strict=True):
            np.testing.assert_array_equal(old + moving_averages, new)


@pytest.mark.parametrize(
    "name, array, reason",
    [
        ("0.0.weight", zeros(3), r"stem_conv/kernel is \(3, 3, 3, 16\), the checkpoint's"),
        ("0.0.weight", zeros(1, 1, 1, 1, 1), "stem_conv/kernel is"),
        ("0.0.weight", zeros(), "stem_conv/kernel is"),
        ("0.1.bias", np.full(16, np.nan), "stem_norm/beta must hold finite float32 values"),
        ("0.1.running_var", -np.ones(16), "moving_variance must not be negative"),
        ("0.0.weight", np.zeros(3, "int8"), "must hold floating point. Received: dtype=int8"),
    ],
)
def test_wrong_ranks_types_and_values_are_refused(arrays, target, tmp_path, name, array, reason):
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({**arrays, f"features.{name}": array}, path)
    with unchanged(target), pytest.raises(WeightsError, match=reason):
        weights.load(target, path)


def test_names_of_a_file_are_escaped_for_the_terminal(logs):
    chosen(PATH, {("a\x1b[2J\nResuming",): RESNET}, False)
    assert "a\\x1b[2J\\nResuming" in logs.text
    assert "\x1b" not in logs.text


def test_two_networks_of_one_name_are_refused():
    with pytest.raises(UnreadableError, match="it holds two networks of the name a.b"):
        chosen(PATH, {("a.b",): RESNET, ("a", "b"): RESNET}, False)
