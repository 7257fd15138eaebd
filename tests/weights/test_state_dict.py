"""Which state dict of a training checkpoint is read, and what of its names is removed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from sources import as_torchvision_writes_it, scattered, unchanged
from torch_bytes import dict_of, plain, state_dict, write_zip

from keras_deeplab import backbones, weights
from keras_deeplab.weights import WeightsError
from keras_deeplab.weights.names import tables, torchvision
from keras_deeplab.weights.readers.state_dict import chosen

PATH = Path("some.ckpt")
LAYERS = tables.resnet(torchvision.RESNET, 50)
RESNET = {
    f"{name}.{variable}": (1,) if "bn" in name or "downsample.1" in name else (1, 64, 1, 1)
    for name in LAYERS.values()
    for variable in ("weight", "bias", "running_mean", "running_var")
    if "bn" in name or "downsample.1" in name or variable == "weight"
}
RESNET["bn1.num_batches_tracked"] = ()
# A network that is known, with a layer missing.
BROKEN = {name: shape for name, shape in RESNET.items() if "layer3.2.conv1" not in name}


def under(prefix: str, shapes: dict = RESNET, **others: tuple) -> dict:
    return {**{f"{prefix}{name}": shape for name, shape in shapes.items()}, **others}


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "model.", "module.model.", "_orig_mod.", "model._orig_mod.module.net.encoder."],
)
def test_wrappers_prefixes_are_removed(prefix):
    shapes = under(prefix, **{"criterion.weight": (2,), "n_averaged": ()})
    choice, notes = chosen(PATH, {("state_dict",): shapes}, False)
    assert choice == (("state_dict",), prefix)
    after = f", names after `{prefix}`" if prefix else ""
    assert notes == (f"weights read from `state_dict`{after}",)


def test_no_more_is_removed_than_is_needed():
    assert chosen(PATH, {(): RESNET}, False) == (((), ""), ())
    # All names have `backbone.`, which is torchvision's own.
    assert chosen(PATH, {(): under("backbone.")}, False)[0].prefix == ""
    assert chosen(PATH, {(): under("module.backbone.")}, False)[0].prefix == "module."


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
def test_moving_averages_beside_the_model_are_read_when_asked_for(place, names):
    both = {("state_dict",): under("model.")}
    both[place] = {**both.get(place, {}), **under(names)}
    choice, notes = chosen(PATH, both, False)
    assert choice == (("state_dict",), "model.")
    shown = f"`{'.'.join(place)}`" + (f", names after `{names}`" if names else "")
    assert notes == (f"weights read from `state_dict`, names after `model.`; not read: {shown}",)
    assert chosen(PATH, both, True)[0] == (place, names)
    # The averages alone are what the file holds.
    assert chosen(PATH, {place: under(names)}, False)[0].keys == place


def test_moving_averages_that_are_not_there():
    for name in ("schema", "emanet", "remake", "swan", "state_dict"):
        with pytest.raises(WeightsError, match="`moving_averages` must be False: it holds none"):
            chosen(PATH, {(name,): RESNET}, True)


def test_the_state_dict_that_fits_a_network_is_read():
    other = {"weight": (3, 3), "layer.bias": (3,)}
    for places in (("state_dict", "model"), ("generator", "net")):
        found = {(places[0],): RESNET, (places[1],): other, (): {"mean": (3,)}}
        assert chosen(PATH, found, False)[0].keys == (places[0],)


@pytest.mark.parametrize(
    "found, message",
    [
        (
            {("state_dict",): RESNET, ("model",): under("module.")},
            "must hold one network, and holds 2: `state_dict`; `model`, names",
        ),
        (
            {(): {**under("student."), **under("teacher.")}},
            "holds 2: the file, names after `student.`; the file, names after `teacher.`",
        ),
        (
            {("model",): under("module.", BROKEN), (): {"mean": (3,)}},
            r"lacks 1 of its layers: layer3\.2\.conv1",
        ),
        (
            {(): {"mean": (3,)}, ("net",): {"a": (1,), "b\x1b": (1,)}},
            r"holds 2 arrays in `net` of no known network, among them a, b\\x1b",
        ),
        # A head that is broken does not make a backbone of the file.
        (
            {
                (): under(
                    "backbone.",
                    **{
                        "classifier.0.convs.0.0.weight": (1,) * 4,
                        "classifier.4.weight": (9, 1, 1, 1),
                    },
                )
            },
            "looks like torchvision deeplabv3_resnet50, but lacks",
        ),
    ],
)
def test_what_is_not_one_whole_network_is_refused(found, message):
    with pytest.raises(WeightsError, match=message):
        chosen(PATH, found, False)


SMALL = torchvision.mobilenet_v3_large("features.")


@pytest.fixture(scope="module")
def network():
    return scattered(backbones.build("mobilenet_v3_large", (None, None, 3)))


@pytest.fixture(scope="module")
def arrays(network) -> dict[str, np.ndarray]:
    layers = {path.removeprefix("backbone/"): name for path, name in SMALL.items()}
    return as_torchvision_writes_it(network, layers)


@pytest.fixture(scope="module")
def target():
    return backbones.build("mobilenet_v3_large", (None, None, 3))


def test_a_lightning_checkpoint_comes_back_whole(network, arrays, target, tmp_path):
    wrapped = {f"model.module.{name}": array for name, array in arrays.items()}
    wrapped["criterion.weight"] = np.ones(2)
    body, storages = state_dict(wrapped)
    averages, more = state_dict({n: a + 1 for n, a in arrays.items()}, len(storages))
    body = dict_of(epoch=plain(3), state_dict=body, ema=averages)
    path = write_zip(tmp_path / "last.ckpt", body, **storages, **more)
    report = weights.load(target, path)
    assert report.missing_keys == ()
    assert report.unexpected_keys == ("criterion.weight",)
    assert report.notes == (
        "weights read from `state_dict`, names after `model.module.`; not read: `ema`",
    )
    assert report.notes[0] in str(report)
    for old, new in zip(network.weights, target.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    weights.load(target, path, moving_averages=True)
    for old, new in zip(network.weights, target.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(old) + 1, new)


@pytest.mark.parametrize(
    "name, array, reason",
    [
        ("0.0.weight", np.zeros(3), r"stem_conv/kernel is \(3, 3, 3, 16\), the checkpoint's"),
        ("0.0.weight", np.zeros((1,) * 5), "shapes do not fit: stem_conv/kernel"),
        ("0.0.weight", np.zeros(()), "shapes do not fit: stem_conv/kernel"),
        ("0.1.weight", np.zeros((16, 1)), "shapes do not fit: stem_norm/gamma"),
        ("0.1.bias", np.full(16, np.nan), "stem_norm/beta must hold finite float32 values"),
        ("0.1.running_var", -np.ones(16), "moving_variance must not be negative"),
        ("0.0.weight", np.zeros(3, "int8"), "must hold floating point. Received: dtype=int8"),
    ],
)
def test_wrong_ranks_types_and_values_are_refused(arrays, target, tmp_path, name, array, reason):
    if array.dtype.kind == "f":
        array = array.astype("float32")
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({**arrays, f"features.{name}": array}, path)
    with unchanged(target), pytest.raises(WeightsError, match=reason):
        weights.load(target, path)
