"""What is given by mistake: one clear error, and no weight changed."""

from __future__ import annotations

import builtins
import io
import os
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from models.networks import tiny
from sources import scattered, unchanged

import keras_deeplab
from keras_deeplab import weights
from keras_deeplab.weights import WeightsError
from keras_deeplab.weights.readers import safetensors, tensorflow, tflite, torch


def small(num_classes: int = 3, **arguments) -> keras_deeplab.DeepLabV3:
    return keras_deeplab.DeepLabV3(num_classes, tiny(), aspp_filters=8, **arguments)


def plain() -> keras.Model:
    return keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3, name="conv")])


def without_weights() -> keras.Model:
    return keras.Sequential([keras.Input((8, 8, 3)), keras.layers.ReLU()])


@pytest.fixture(scope="module")
def model() -> keras_deeplab.DeepLabV3:
    return scattered(small())


@pytest.fixture(scope="module")
def files(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    plain().save(folder / "plain.keras")
    plain().save_weights(folder / "plain.weights.h5")
    (folder / "empty").mkdir()
    (folder / "nothing.pth").touch()
    with zipfile.ZipFile(folder / "some.zip", "w") as archive:
        archive.writestr("readme.txt", "no weights")
    return folder


@pytest.mark.parametrize("source", [5, None, "", b"model.keras", ["model.keras"]])
def test_what_is_no_source_is_said(model, source):
    message = "`checkpoint` must be a path, .* Received: checkpoint="
    for call in (
        lambda: weights.load(model, source),
        lambda: weights.from_pretrained(source),
        lambda: weights.open_checkpoint(source),
    ):
        with unchanged(model), pytest.raises(ValueError, match=message) as caught:
            call()
        assert f"Received: checkpoint={source!r}. " in str(caught.value)
    if source is not None:  # the default
        with pytest.raises(ValueError, match=message):
            small(weights=source)


@pytest.mark.parametrize(
    "name, reason",
    [
        ("empty", "it is a folder that holds no TensorFlow checkpoint"),
        ("nothing.pth", "it is empty"),
        ("some.zip", r"its content is none of the formats .* it begins with b'PK"),
        ("missing.keras", "there is no such file, nor a TensorFlow checkpoint of that name"),
        ("missing/model", "there is no such file, nor a TensorFlow checkpoint of that name"),
        ("plain.keras", r"it holds the Keras model '.*', which does not have \d+ layers of the"),
        ("plain.weights.h5", r"it holds another network than 'deeplab_v3': .* missing in the file"),
    ],
)
@pytest.mark.parametrize("kind", [Path, str])
def test_files_without_these_weights(model, files, name, reason, kind):
    with unchanged(model), pytest.raises(WeightsError, match=reason) as caught:
        weights.load(model, kind(files / name))
    assert str(files / name) in str(caught.value)


@pytest.mark.parametrize("kind", [Path, str])
def test_the_home_is_known(model, files, monkeypatch, kind):
    monkeypatch.setenv("HOME", str(files))
    for name in ("model.keras", "model.weights.h5"):
        assert weights.load(model, kind(f"~/{name}")).missing_keys == ()
    assert weights.from_pretrained(kind("~/model.keras")).num_classes == 3


@pytest.mark.parametrize("target", ["a name", without_weights(), keras.Sequential()])
def test_what_is_no_model_with_weights_is_said(files, target):
    with pytest.raises(ValueError, match="`model` must be a built Keras model with weights. Rec"):
        weights.load(target, files / "model.keras")


def test_a_source_without_weights_is_said(model):
    with unchanged(model), pytest.raises(WeightsError, match=r"model 'bare': .* has no weights"):
        weights.load(model, keras.Sequential([keras.layers.Conv2D(2, 3)], name="bare"))


def test_a_file_that_names_no_model_builds_none(files):
    message = r"model\.weights\.h5: it does not say which model it belongs to: build it and use"
    for call in (
        lambda: weights.from_pretrained(files / "model.weights.h5"),
        lambda: small(weights=files / "model.weights.h5"),
    ):
        with pytest.raises(WeightsError, match=message):
            call()
    with pytest.raises(WeightsError, match=r"plain\.keras: it holds .* without a head: build"):
        weights.from_pretrained(files / "plain.keras")
    with pytest.raises(
        WeightsError, match="`color` must be an argument of DeepLabV3, .* Received: color='red'"
    ):
        weights.from_pretrained(files / "model.keras", color="red")


def compiled(model: keras.Model) -> keras.Model:
    model.compile(keras.optimizers.Adam(), keras_deeplab.losses.CrossEntropy(), run_eagerly=True)
    model.fit(np.zeros((1, 33, 33, 3)), np.zeros((1, 33, 33), "int32"), verbose=0)
    return model


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])
def test_a_compiled_model_keeps_its_optimizer(model, files, name):
    target = compiled(small())
    optimizer = target.optimizer
    before = [np.array(variable) for variable in optimizer.variables]
    assert weights.load(target, files / name).missing_keys == ()
    for old, new in zip(model.weights, target.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    assert target.optimizer is optimizer
    for old, new in zip(before, optimizer.variables, strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])
def test_a_frozen_model_takes_weights_and_stays_frozen(model, files, name):
    target = small()
    target.backbone.trainable = False
    trainable = len(target.trainable_weights)
    assert weights.load(target, files / name).missing_keys == ()
    found = {weight.path: np.array(weight) for weight in target.weights}
    for weight in model.weights:
        np.testing.assert_array_equal(found[weight.path], weight)
    assert len(target.trainable_weights) == trainable < len(model.trainable_weights)


def test_a_file_of_a_model_in_training_has_the_optimizers_variables_too(tmp_path):
    trained = compiled(scattered(small()))
    trained.save_weights(tmp_path / "trained.weights.h5")
    target = small()
    assert weights.load(target, tmp_path / "trained.weights.h5").missing_keys == ()
    np.testing.assert_array_equal(target.weights[0], trained.weights[0])
    other = small(5)
    assert weights.load(other, tmp_path / "trained.weights.h5").missing_keys == ("logits",)


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])
def test_a_model_of_mixed_precision_keeps_its_weights_in_float32(model, files, name):
    target = small(dtype="mixed_bfloat16")
    assert weights.load(target, files / name).missing_keys == ()
    for old, new in zip(model.weights, target.weights, strict=True):
        assert new.dtype == "float32"
        np.testing.assert_array_equal(old, new)


def test_grey_images_do_not_fit_a_network_of_colours(tmp_path):
    def network(channels: int) -> keras_deeplab.DeepLabV3:
        options = {"depth_multiplier": 0.25}
        return keras_deeplab.DeepLabV3(
            *(3, "mobilenet_v2"),
            aspp_filters=8,
            backbone_options=options,
            input_shape=(None, None, channels),
        )

    colours = network(3)
    colours.save(tmp_path / "model.keras")
    colours.save_weights(tmp_path / "model.weights.h5")
    grey = network(1)
    message = r"backbone/stem_conv/kernel is \(3, 3, 1, 8\), the checkpoint's \(3, 3, 3, 8\)"
    with unchanged(grey), pytest.raises(WeightsError, match=message):
        weights.load(grey, tmp_path / "model.keras")
    with unchanged(grey), pytest.raises(WeightsError, match=r"\(3, 3, 1, 8\) in the model, \(3, 3"):
        weights.load(grey, tmp_path / "model.weights.h5")
    with pytest.raises(WeightsError, match=message):
        weights.from_pretrained(tmp_path / "model.keras", input_shape=(None, None, 1))


def test_a_named_pipe_is_refused_and_not_opened(model, files, tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    for name in ("run/checkpoint", "run/model.index", "a.data-00000-of-00001", "index.index"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        os.mkfifo(tmp_path / name)
    (tmp_path / "a.index").write_bytes(b"")
    for name in ("pipe.pth", "a", "index.index", "run"):
        message = "it must be a regular file, not a named pipe or a device"
        with unchanged(model), pytest.raises(WeightsError, match=message) as caught:
            weights.load(model, tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5", "some.zip", "nothing.pth"])
@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), OSError(5, "I/O error")]
)
def test_what_the_system_does_not_read_is_said(model, files, monkeypatch, name, error):
    (files / "nothing.pth").write_bytes(b"\x80\x02")
    path, opened = files / name, io.open

    def refuse(file, *arguments, **keywords):
        if str(file) == str(path):
            raise error
        return opened(file, *arguments, **keywords)

    monkeypatch.setattr(io, "open", refuse)
    monkeypatch.setattr(builtins, "open", refuse)
    calls = [lambda: weights.load(model, path)]
    calls += [lambda: keras_deeplab.load_model(path)] if name == "model.keras" else []
    for call in calls:
        with unchanged(model), pytest.raises(WeightsError, match=error.strerror) as caught:
            call()
        assert str(caught.value).startswith(f"{path}: ")


def test_a_name_that_is_too_long_for_the_system_is_said(model):
    path = Path("a" * 300 + ".pth")
    for given in (path, str(path)):
        with pytest.raises(WeightsError, match="it cannot be read: File name too long"):
            weights.load(model, given)
        with pytest.raises(WeightsError, match="it cannot be read: File name too long"):
            weights.from_pretrained(given)


READERS = {
    "torch": torch.read,
    "safetensors": safetensors.read,
    "tflite": tflite.read,
    "tensorflow": tensorflow.read,
}


@pytest.mark.parametrize("name", READERS)
def test_every_reader_says_that_a_file_is_gone(tmp_path, name):
    with pytest.raises(WeightsError, match=r"gone: it cannot be read: No such file"):
        READERS[name](tmp_path / "gone")
