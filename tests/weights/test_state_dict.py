"""Which state dict of a training checkpoint is read, and what of its names is removed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from sources import scattered, unchanged
from test_torchvision import as_torchvision_writes_it
from torch_bytes import dict_of, plain, state_dict, write_zip

from keras_deeplab import backbones, weights
from keras_deeplab.weights import WeightsError
from keras_deeplab.weights.names import tables, torchvision
from keras_deeplab.weights.readers.state_dict import chosen

PATH = Path("some.ckpt")
LAYERS = tables.resnet(torchvision.RESNET, (3, 4, 6, 3))
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
@pytest.mark.parametrize("others", [{}, {"criterion.weight": (2,), "n_averaged": ()}])
def test_wrappers_prefixes_are_removed(prefix, others):
    choice = chosen(PATH, {("state_dict",): under(prefix, **others)}, False)
    assert (choice.keys, choice.prefix) == (("state_dict",), prefix)
    after = f", names after `{prefix}`" if prefix else ""
    assert choice.notes == (f"weights read from `state_dict`{after}",)


def test_a_plain_state_dict_needs_no_note():
    assert chosen(PATH, {(): RESNET}, False).notes == ()


def test_no_more_is_removed_than_is_needed():
    # All names have `backbone.`, which is torchvision's own.
    assert chosen(PATH, {(): under("backbone.")}, False).prefix == ""
    assert chosen(PATH, {(): under("module.backbone.")}, False).prefix == "module."


@pytest.mark.parametrize(
    "place, names",
    [
        (("ema",), ""),
        (("model_ema",), "module."),
        (("ema_state_dict",), ""),
        (("state_dict_ema",), ""),
        (("ema", "module"), ""),
        (("swa_state",), "module."),
        (("state_dict",), "ema_model.module."),
        (("state_dict",), "model_ema."),
    ],
)
def test_moving_averages_beside_the_model_are_read_when_asked_for(place, names):
    both = {("state_dict",): under("model.")}
    both[place] = {**both.get(place, {}), **under(names)}
    choice = chosen(PATH, both, False)
    assert (choice.keys, choice.prefix) == (("state_dict",), "model.")
    shown = f"`{'.'.join(place)}`" + (f", names after `{names}`" if names else "")
    assert choice.notes == (
        f"weights read from `state_dict`, names after `model.`; not read: {shown}",
    )
    average = chosen(PATH, both, True)
    assert (average.keys, average.prefix) == (place, names)
    # The averages alone are what the file holds.
    assert chosen(PATH, {place: under(names)}, False).keys == place
    with pytest.raises(WeightsError, match="`moving_averages` must be False: it holds none"):
        chosen(PATH, {("state_dict",): RESNET}, True)


@pytest.mark.parametrize("name", ["schema", "emanet", "remake", "swan"])
def test_other_words_are_no_averages(name):
    assert not chosen(PATH, {(name,): RESNET}, False).is_average


def test_the_state_dict_that_fits_a_network_is_read():
    other = {"weight": (3, 3), "layer.bias": (3,)}
    for places in (("state_dict", "model"), ("model", "state_dict"), ("generator", "net")):
        found = {(places[0],): RESNET, (places[1],): other, (): {"mean": (3,)}}
        assert chosen(PATH, found, False).keys == (places[0],)


@pytest.mark.parametrize(
    "found, listed",
    [
        ({("state_dict",): RESNET, ("model",): under("module.")}, "`state_dict`; `model`, names"),
        (
            {(): {**under("student."), **under("teacher.")}},
            "the file, names after `student.`; the file, names after `teacher.`",
        ),
    ],
)
def test_several_networks_are_listed(found, listed):
    with pytest.raises(WeightsError, match="must hold one network, and holds 2: ") as caught:
        chosen(PATH, found, False)
    assert listed in caught.value.reason


def test_no_network_says_what_is_wrong_or_what_is_there():
    with pytest.raises(WeightsError, match=r"lacks 1 of its layers: layer3\.2\.conv1"):
        chosen(PATH, {("model",): under("module.", BROKEN), (): {"mean": (3,)}}, False)
    with pytest.raises(
        WeightsError, match=r"holds 2 arrays in `net` of no known network, among them a"
    ):
        chosen(PATH, {(): {"mean": (3,)}, ("net",): {"a": (1,), "b\x1b": (1,)}}, False)


def test_a_head_that_is_broken_does_not_make_a_backbone_of_the_file():
    shapes = {**under("backbone."), "classifier.0.convs.0.0.weight": (1, 1, 1, 1)}
    shapes["classifier.4.weight"] = (21, 1, 1, 1)
    with pytest.raises(WeightsError, match="looks like torchvision deeplabv3_resnet50, but lacks"):
        chosen(PATH, {(): shapes}, False)


SMALL = tables.after("features.", torchvision.mobilenet_v3_large())


@pytest.fixture(scope="module")
def network():
    return scattered(backbones.build("mobilenet_v3_large", (None, None, 3)))


@pytest.fixture(scope="module")
def arrays(network) -> dict[str, np.ndarray]:
    layers = {path.removeprefix("backbone/"): name for path, name in SMALL.items()}
    return as_torchvision_writes_it(network, layers)


def test_a_lightning_checkpoint_comes_back_whole(network, arrays, tmp_path):
    wrapped = {f"model.module.{name}": array for name, array in arrays.items()}
    wrapped["criterion.weight"] = np.ones(2)
    body, storages = state_dict(wrapped)
    averages, more = state_dict({n: a + 1 for n, a in arrays.items()}, len(storages))
    body = dict_of(epoch=plain(3), state_dict=body, ema=averages)
    path = write_zip(tmp_path / "last.ckpt", body, **storages, **more)
    target = backbones.build("mobilenet_v3_large", (None, None, 3))
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


@pytest.fixture(scope="module")
def target():
    return backbones.build("mobilenet_v3_large", (None, None, 3))


def written(kind: str, folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    path = folder / f"a.{kind}"
    if kind == "safetensors":
        safetensors.numpy.save_file(arrays, path)
        return path
    body, storages = state_dict(arrays)
    return write_zip(path, body, **storages)


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
@pytest.mark.parametrize(
    "name, array, reason",
    [
        (
            "features.0.0.weight",
            np.zeros(3),
            r"stem_conv/kernel is \(3, 3, 3, 16\), the checkpoint's",
        ),
        ("features.0.0.weight", np.zeros((1,) * 5), "shapes do not fit: stem_conv/kernel"),
        ("features.0.0.weight", np.zeros(()), "shapes do not fit: stem_conv/kernel"),
        ("features.0.1.weight", np.zeros((16, 1)), "shapes do not fit: stem_norm/gamma"),
        (
            "features.0.1.bias",
            np.full(16, np.nan),
            "stem_norm/beta must hold finite float32 values",
        ),
        ("features.0.1.running_var", -np.ones(16), "moving_variance must not be negative"),
    ],
)
def test_wrong_ranks_and_values_are_refused(arrays, target, tmp_path, kind, name, array, reason):
    changed = {**arrays, name: array.astype("float32")}
    path = written(kind, tmp_path, changed)
    with unchanged(target), pytest.raises(WeightsError, match=reason):
        weights.load(target, path)


def test_integers_are_no_weights(arrays, tmp_path):
    name = "features.0.0.weight"
    path = written("safetensors", tmp_path, {**arrays, name: arrays[name].astype("int8")})
    with pytest.raises(
        WeightsError, match=f"{name} must hold floating point. Received: dtype=int8"
    ):
        weights.open_checkpoint(path)
