"""Files of this package and Keras models into models, and what is given by mistake."""

from __future__ import annotations

import builtins
import dataclasses
import io
import os
import pickle
import re
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from calibration import image
from models.networks import tiny_sequential
from sources import scattered, small, unchanged

import keras_deeplab
from keras_deeplab import weights
from keras_deeplab.weights import WeightsError

PIXELS = image(65, 97)


def plain() -> keras.Model:
    return keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3, name="conv")])


@pytest.fixture(scope="module")
def target() -> keras_deeplab.DeepLabV3:
    """A model of any weights, which the tests change."""
    return small()


@pytest.fixture(scope="module")
def trained() -> keras_deeplab.DeepLabV3:
    """A model on a backbone of this package."""
    options = {"backbone_options": {"depth_multiplier": 0.25}}
    arguments = {"aspp_filters": 8, "head_filters": None, **options}
    return scattered(keras_deeplab.DeepLabV3(3, "mobilenet_v2", **arguments))


@pytest.fixture(scope="module")
def files(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    plain().save(folder / "plain.keras")
    plain().save_weights(folder / "plain.weights.h5")
    (folder / "empty").mkdir()
    (folder / "nothing.pth").touch()
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    (folder / "model.safetensors.index.json").write_text("{}")
    (folder / "frozen.pb").write_bytes(b"\n\x0a\x05image")
    (folder / "other.pkl").write_bytes(pickle.dumps({"weight": [1.0]}))
    with zipfile.ZipFile(folder / "some.zip", "w") as archive:
        archive.writestr("readme.txt", "no weights")
    return folder


def same_weights(old: keras.Model, new: keras.Model) -> bool:
    found = {weight.path: np.array(weight) for weight in new.weights}
    return all(np.array_equal(found[weight.path], weight) for weight in old.weights)


def compiled(model: keras.Model) -> keras.Model:
    model.compile(keras.optimizers.Adam(), keras_deeplab.losses.CrossEntropy())
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(7)
    return model


@pytest.mark.slow
def test_own_files_come_back(model, files):
    target = compiled(small(dtype="mixed_bfloat16"))
    target.backbone.trainable = False
    optimizer, trainable = target.optimizer, len(target.trainable_weights)
    for name in ("model.keras", "model.weights.h5"):
        report = weights.load(scattered(target, 2), files / name)
        assert report.missing_keys == report.unexpected_keys == report.notes == ()
        assert same_weights(model, target)
    assert {weight.dtype for weight in target.weights} == {"float32"}
    assert len(target.trainable_weights) == trainable < len(model.trainable_weights)
    assert target.optimizer is optimizer
    assert optimizer.iterations == 7


@pytest.mark.slow
def test_a_model_inside_a_users_own_is_named(model, tmp_path):
    inputs = keras.Input((None, None, 3))
    outer = keras.Model(inputs, model(keras.layers.RandomFlip()(inputs)))
    path = tmp_path / "outer.keras"
    outer.save(path)
    expected = rf"'{outer.name}' around '{model.name}' \(which `load_model` and `get_layer` return"
    with pytest.raises(WeightsError, match=expected):
        keras_deeplab.from_pretrained(path)
    inside = keras_deeplab.load_model(path).get_layer(model.name)
    assert same_weights(model, keras_deeplab.from_pretrained(inside))
    assert weights.load(scattered(small(), 2), inside).missing_keys == ()


@pytest.mark.slow
def test_weights_of_a_wrapped_model_come_back(model, files, tmp_path):
    wrapped = keras_deeplab.MultiScale(model, (0.5, 1.0))
    wrapped.save_weights(tmp_path / "wrapped.weights.h5")
    for path in (tmp_path / "wrapped.weights.h5", files / "model.weights.h5"):
        target = scattered(small(), 3)
        weights.load(keras_deeplab.MultiScale(target, (0.5, 1.0)), path)
        assert same_weights(model, target)


@pytest.mark.slow
def test_another_number_of_classes_keeps_its_own_predictor(files):
    target = small(5)
    assert weights.load(target, files / "model.keras").missing_keys == ("logits",)
    message = "another network than 'deeplab_v3': 4 differences, such as layers/conv2d/vars/0"
    with unchanged(target), pytest.raises(WeightsError, match=message):
        weights.load(target, files / "model.weights.h5")


@pytest.mark.slow
def test_a_file_of_a_model_in_training_has_the_optimizers_variables_too(target, tmp_path):
    compiled(target).save_weights(tmp_path / "trained.weights.h5")
    assert weights.load(target, tmp_path / "trained.weights.h5").missing_keys == ()


@pytest.mark.slow
def test_the_constructor_takes_what_the_weights_need(trained, logs):
    model = keras_deeplab.DeepLabV3(7, weights=trained, output_stride=8)
    changed = {"num_classes": 7, "output_stride": 8, "aspp_rates": (12, 24, 36)}
    assert model.get_config() == {**trained.get_config(), **changed}
    assert "weights" not in model.get_config()
    assert "missing keys: logits" in logs.text
    for old, new in zip(trained.backbone.weights, model.backbone.weights, strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.slow
def test_from_pretrained_builds_the_model(model, files):
    found = weights.from_pretrained(files / "model.keras")
    assert type(found) is keras_deeplab.DeepLabV3
    np.testing.assert_array_equal(found(PIXELS), model(PIXELS))
    assert weights.from_pretrained(model, 5).num_classes == 5
    with pytest.raises(WeightsError, match=r"DeepLabV3 has no arguments \['color'\]"):
        weights.from_pretrained(files / "model.keras", color="red")


def test_from_pretrained_keeps_the_channels_of_the_images(tmp_path):
    """An argument of the user comes first, and the first kernels are those of RGB then."""
    model = keras_deeplab.UNet(3, depth=1, filters=4, input_shape=(None, None, 5))
    model.save(tmp_path / "bands.keras")
    found = weights.from_pretrained(tmp_path / "bands.keras", 2)
    assert found.input_shape == (None, None, None, 5)
    for own, loaded in zip(model.weights[:-2], found.weights[:-2], strict=True):
        np.testing.assert_array_equal(own, loaded)
    sized = weights.from_pretrained(model, input_shape=(32, 32, 5))
    assert sized.input_shape == (None, 32, 32, 5)


def test_a_network_without_its_image_scale_is_a_warning(model, target, logs):
    weights.load(target, keras_deeplab.MultiScale(model, (0.25,)))
    assert "trained on images at 0.25 of their size" in logs.text
    assert same_weights(model, target)


def test_models_are_sources_also_in_a_wrapper_and_as_a_backbone(model, target):
    several = keras_deeplab.MultiScale(target, scales=(0.5, 1.0))
    report = weights.load(several, keras_deeplab.MultiScale(model, scales=(1.0,)))
    assert report.missing_keys == report.unexpected_keys == ()
    assert same_weights(model, target)
    network = scattered(tiny_sequential(), 2)
    report = weights.load(target, network)
    assert all(path.startswith("backbone/") for path in report.loaded)
    np.testing.assert_array_equal(
        target.backbone.get_layer("first").kernel, network.get_layer("first").kernel
    )
    report = weights.load(network, model)
    assert report.missing_keys == ()
    assert "logits/kernel" in report.unexpected_keys
    np.testing.assert_array_equal(
        network.get_layer("first").kernel, model.backbone.get_layer("first").kernel
    )


def test_settings_that_differ_are_noted(trained):
    own = weights.open_checkpoint(trained)
    other = {"backbone_options": {"depth_multiplier": 0.5}, "preprocessing": "caffe"}
    arguments = {**own.model_arguments, "epsilon": 0.5, "aspp_rates": [1]}
    found = dataclasses.replace(own, backbone_arguments=other, model_arguments=arguments)
    assert set(weights.load(trained, found).notes) == {
        "`depth_multiplier` is 0.25; the weights were trained with 0.5",
        "`preprocessing` is 'tf'; the weights were trained with 'caffe'",
        "`epsilon` is 1e-05; the weights were trained with 0.5",
    }


@pytest.mark.slow
def test_a_subclass_sets_arguments_beside_weights(trained):
    """Whatever its own constructor looks like, an explicit argument is kept."""

    class Positional(keras_deeplab.DeepLabV3):
        def __init__(self, pretrained):
            super().__init__(5, preprocessing=None, weights=pretrained)

    class Arguments(keras_deeplab.DeepLabV3):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)

    for built in (Positional(trained), Arguments(5, preprocessing=None, weights=trained)):
        config = built.get_config()
        assert (config["num_classes"], config["preprocessing"]) == (5, None)
        assert config["backbone"] == "mobilenet_v2"  # of the weights


@keras.saving.register_keras_serializable("tests")
class Scaled(keras_deeplab.DeepLabV3):
    """A model with a weight of its own."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")


def test_weights_that_a_subclass_adds_are_loaded_or_named(model, tmp_path):
    arguments = {"aspp_filters": 8, "head_filters": None, "output_stride": 8}
    first, second = (Scaled(3, tiny_sequential(), **arguments) for _ in range(2))
    first.scale.assign(3)
    first.save(tmp_path / "model.keras")
    for source in (first, tmp_path / "model.keras"):
        second.scale.assign(1)
        report = weights.load(second, source)
        assert float(second.scale) == 3
        assert second.name in report.loaded
    second.scale.assign(1)
    assert weights.load(second, model).missing_keys == (second.name,)


# --- what is given by mistake: one clear error, and no weight changed ---


@pytest.mark.parametrize("checkpoint", [5, None, "", b"model.keras", ["model.keras"]])
def test_what_is_no_checkpoint(model, checkpoint):
    message = re.escape(f"Received: checkpoint={checkpoint!r}. ")
    calls = [lambda: weights.load(model, checkpoint), lambda: weights.from_pretrained(checkpoint)]
    if checkpoint is not None:  # the default
        calls.append(lambda: small(weights=checkpoint))
    for call in calls:
        with pytest.raises(ValueError, match=rf"`checkpoint` must be a path, .* {message}"):
            call()


@pytest.mark.parametrize(
    "target", ["a name", keras.Sequential(), keras.Sequential([keras.Input((8, 8, 3))])]
)
def test_what_is_no_model_with_weights(files, target):
    with pytest.raises(ValueError, match="`model` must be a built Keras model with weights. Rec"):
        weights.load(target, files / "model.keras")


@pytest.mark.parametrize(
    "name, reason",
    [
        ("empty", "it is a folder without a checkpoint"),
        ("other.pkl", "it is a pickle: save model.state_dict"),
        ("frozen.pb", "it is a graph: give the checkpoint"),
        ("nothing.pth", "it is damaged or none of the formats .* It begins with b''"),
        ("some.zip", "it is damaged or none of the formats .* It begins with b'PK"),
        ("model-00001-of-00002.safetensors", "it is one of several parts: save the weights in one"),
        ("model.safetensors.index.json", "it lists files that hold a part each"),
        ("missing.keras", "there is no such file"),
        ("missing/model", "there is no such file"),
        ("plain.keras", r"it holds the Keras model '.*', which does not have \d+ layers of the"),
        ("plain.weights.h5", "it holds another network than 'deeplab_v3': .* differences, such as"),
        ("a" * 300 + ".pth", "it cannot be read: File name too long"),
    ],
)
def test_files_without_these_weights(model, files, name, reason):
    for kind in (Path, str):
        with unchanged(model), pytest.raises(WeightsError, match=reason) as caught:
            weights.load(model, kind(files / name))
        assert str(files / name) in str(caught.value)


@pytest.mark.slow
def test_another_network_is_refused_and_nothing_changed(model, trained, files):
    message = "it holds a DeepLabV3 on mobilenet_v2, which does not have .* layers of the model's"
    with unchanged(model), pytest.raises(WeightsError, match=message):
        weights.load(model, trained)
    other = plain()
    with unchanged(other), pytest.raises(WeightsError, match="does not have 1 layers"):
        weights.load(other, files / "model.keras")
    wide = small(aspp_filters=16)
    with unchanged(wide), pytest.raises(WeightsError, match="it holds another network than"):
        weights.load(wide, files / "model.weights.h5")


def test_a_model_without_weights_and_files_without_a_model(model, files):
    with unchanged(model), pytest.raises(WeightsError, match=r"model 'bare': .* has no weights"):
        weights.load(model, keras.Sequential([keras.layers.Conv2D(2, 3)], name="bare"))
    message = r"model\.weights\.h5: it does not describe its model: build a model of this "
    message += "package and use weights.load; of another network call its load_weights"
    for call in (weights.from_pretrained, lambda path: small(weights=path)):
        with pytest.raises(WeightsError, match=message):
            call(files / "model.weights.h5")
    with pytest.raises(WeightsError, match=r"plain\.keras: it holds .* opens it as it is"):
        weights.from_pretrained(files / "plain.keras")


def test_a_truncated_file_is_refused(model, files, tmp_path):
    name = "model.weights.h5"
    content = (files / name).read_bytes()
    path = tmp_path / name
    for share in (0.001, 0.99):
        path.write_bytes(content[: int(share * len(content))])
        with unchanged(model), pytest.raises(WeightsError, match=re.escape(name)):
            weights.load(model, path)


def test_a_file_of_a_run_that_went_wrong_is_refused(model, target, tmp_path):
    target.get_layer("logits").bias.assign([np.nan, 0, np.inf])
    target.save_weights(tmp_path / "a.weights.h5")
    target.get_layer("logits").bias.assign([0, 0, 0])
    message = "logits/bias must hold finite float32 values. Received: 2 wrong ones of 3"
    with unchanged(model), pytest.raises(WeightsError, match=message):
        weights.load(model, tmp_path / "a.weights.h5")


def test_the_home_is_known(files, monkeypatch):
    monkeypatch.setenv("HOME", str(files))
    assert weights.open_checkpoint(Path("~/model.keras")).model == "DeepLabV3"


def test_a_named_pipe_is_refused_and_not_opened(model, tmp_path):
    names = ("pipe.pth", "run/checkpoint", "run/model.index", "a.data-00000-of-00001", "b.index")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        os.mkfifo(tmp_path / name)
    (tmp_path / "a.index").write_bytes(b"")
    for name in ("pipe.pth", "a", "b.index", "run"):
        message = "it must be a regular file, not a named pipe or a device"
        with unchanged(model), pytest.raises(WeightsError, match=message) as caught:
            weights.load(model, tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("name", ["model.keras", "nothing.pth"])
def test_a_file_that_the_system_does_not_read(model, files, monkeypatch, name):
    path, opened = files / name, io.open

    def refuse(file, *arguments, **keywords):
        if str(file) == str(path):
            raise PermissionError(13, "Permission denied")
        return opened(file, *arguments, **keywords)

    monkeypatch.setattr(io, "open", refuse)
    monkeypatch.setattr(builtins, "open", refuse)
    with unchanged(model), pytest.raises(WeightsError, match="Permission denied") as caught:
        weights.load(model, path)
    assert str(caught.value).startswith(f"{path}: ")


def without_averages(kind: str, model: keras.Model, path: Path) -> keras.Model | Path:
    """Weights of a kind that has no moving averages."""
    if kind == "model":
        return model
    path = path / kind
    if kind == "tf2":
        return tf.train.Checkpoint(model=model).write(str(path))
    if kind == "a.tflite":
        path.write_bytes(b"....TFL3")
    elif kind == "a.h5":
        keras.saving.save_model(model.backbone, str(path))
    elif kind == "a.weights.h5":
        model.save_weights(path)
    else:
        model.save(path)
    return path


@pytest.mark.parametrize("kind", ["model", "a.keras", "a.weights.h5", "a.h5", "a.tflite", "tf2"])
def test_moving_averages_that_no_weights_of_a_kind_have(model, tmp_path, kind):
    given, rule = without_averages(kind, model, tmp_path), "must be False: it holds none"
    with unchanged(model), pytest.raises(WeightsError, match=f"`moving_averages` {rule}"):
        weights.load(model, given, moving_averages=True)
