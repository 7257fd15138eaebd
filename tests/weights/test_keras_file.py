"""Files from elsewhere: a model comes back, or one clear error, and nothing else is opened."""

from __future__ import annotations

import json
import re
import sys
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from models.networks import tiny_sequential
from sources import scattered, small, unchanged

import keras_deeplab
from keras_deeplab import weights
from keras_deeplab.weights import WeightsError
from keras_deeplab.weights.errors import UnreadableError
from keras_deeplab.weights.readers import keras_file

SECRET = "/etc/keras_deeplab_secret"
OPENED: list[str] = []


def note(event: str, arguments: tuple) -> None:
    """What Python opens of the names in the files below."""
    if event in ("open", "socket.getaddrinfo") and SECRET in str(arguments[0]):
        OPENED.append(f"{event} {arguments[0]}")


sys.addaudithook(note)


@pytest.fixture(scope="module")
def files(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    keras_deeplab.MultiScale(model, (0.5, 1.0)).save(folder / "scales.keras")
    network = scattered(tiny_sequential())
    network.save(folder / "network.h5")
    return folder


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(path: Path, content: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, value in content.items():
            archive.writestr(name, value)
    return path


def with_config(good: Path, path: Path, place: str, value: Any) -> Path:
    """A copy of a model's file with another value in its configuration, or another text."""
    content = members(good)
    config = json.loads(content["config.json"])
    inner = config["config"]
    layers = inner["backbone"]["config"]["layers"]  # of a user's own backbone
    if place == "model":
        inner.update(value)
    elif place == "layer":
        layers.insert(2, value)
    elif place == "activation":
        layers[1]["config"]["activation"] = value
    elif place == "arguments":
        layers[1]["config"].update(value)
    elif place == "loss":  # of the backbone, whose compilation is never left out
        inner["backbone"]["compile_config"] = {"optimizer": "adam", "loss": value}
    else:
        config = value
    text = config if isinstance(config, bytes) else json.dumps(config).encode()
    return packed(path, {**content, "config.json": text})


def an_object(module: str | None, class_name: str, /, **config: Any) -> dict:
    return {"module": module, "class_name": class_name, "config": config, "registered_name": None}


def a_layer(class_name: str, /, **config: Any) -> dict:
    return an_object("keras.layers", class_name, **config)


def a_function(module: str, name: str) -> dict:
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


@pytest.mark.slow
def test_a_model_comes_back_as_it_was(model, files):
    loaded = keras_deeplab.load_model(str(files / "model.keras"))
    assert type(loaded) is keras_deeplab.DeepLabV3
    assert not loaded.compiled
    for old, new in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    several = keras_deeplab.load_model(files / "scales.keras", compile=False)
    assert type(several) is keras_deeplab.MultiScale
    np.testing.assert_array_equal(several.model.weights[0], model.weights[0])


@pytest.mark.slow
def test_a_compiled_model_resumes_or_not(tmp_path):
    trained = small()
    trained.compile("adam", keras_deeplab.losses.CrossEntropy())
    trained.optimizer.build(trained.trainable_variables)
    trained.optimizer.iterations.assign(7)
    trained.save(tmp_path / "model.keras")
    loaded = keras_deeplab.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.iterations == 7
    for old, new in zip(trained.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(old, new)
    assert not keras_deeplab.load_model(tmp_path / "model.keras", compile=False).compiled


CODE = a_layer("Lambda", function={"class_name": "__lambda__"})
PARTS = "parts of networks only, and no code. Received: "
HOSTILE = {
    "weights": ("model", {"weights": SECRET}, "weights='/etc/"),
    "published weights": ("model", {"weights": "pascal_voc"}, "weights='pascal_voc'"),
    "a model on the Hub": ("model", {"weights": "hf://user/street"}, "weights='hf://"),
    "a backbone by path": ("model", {"backbone": SECRET}, "backbone='/etc"),
    "a vocabulary": ("layer", a_layer("StringLookup", vocabulary=SECRET), "vocabulary='/etc"),
    "a SavedModel": ("layer", a_layer("TFSMLayer", filepath="saved"), "filepath='saved'"),
    "code": ("layer", CODE, f"{PARTS}keras.layers.Lambda"),
    "code as activation": ("activation", {"class_name": "__lambda__"}, f"{PARTS}__lambda__"),
    "a torch module": ("layer", a_layer("TorchModuleWrapper"), f"{PARTS}keras.layers.TorchMod"),
    "an address": ("layer", a_layer("Rescaling", scale="https://a.org/x"), "scale='https://"),
    "a path upwards": ("layer", a_layer("Rescaling", scale="a/../../b"), "scale='a/"),
    "building": ("layer", {**a_layer("ReLU"), "build_config": {"file": "x"}}, "file='x'"),
    "a vocabulary as a loss": ("loss", a_layer("StringLookup", vocabulary="x"), "vocabulary='x"),
    "a class by a list": ("layer", {"class_name": ["Lambda"]}, rf"{PARTS}\['Lambda'\]"),
    "a foreign class": ("layer", an_object("os", "system"), "Could not locate class 'system'"),
    "a foreign function": ("activation", a_function("os", "system"), "not locate function 'sys"),
}
# Module and name: Keras looks up one joined to the other, wherever the dots are.
ELSEWHERE = [
    *(
        ("activation", *names)
        for names in (
            ("keras", "datasets.mnist.load_data"),
            ("builtins", "schedules.ExponentialDecay"),
            ("keras.applications", "MobileNetV2"),
            ("keras.src", "datasets.mnist.load_data"),
            ("keras.src.utils.file_utils", "get_file"),
            ("keras.models", "clone_model"),
        )
    ),
    ("loss", "keras.saving", "load_model"),
    *(
        ("layer", *names)
        for names in (
            ("keras", "layers.Lambda"),
            (None, "layers.Lambda"),
            ("keras.src.applications.mobilenet_v2", "MobileNetV2"),
            ("keras.src.export.tfsm_layer", "TFSMLayer"),
            ("keras.src.utils.jax_layer", "JaxLayer"),
            ("keras.src.legacy.layers", "RandomHeight"),
        )
    ),
    ("spec", "keras.datasets.mnist", "load_data"),
]
for place, module, name in ELSEWHERE:
    value = an_object(module, name) if place == "layer" else a_function(module, name)
    if place == "spec":
        value.update(class_name="__typespec__", spec_name=name, config=[])
    shown = re.escape(f"{module}.{name}" if module else name)
    place = "activation" if place == "spec" else place
    HOSTILE[shown] = (place, value, f"{PARTS}{shown}$")


@pytest.fixture
def no_download(monkeypatch):
    monkeypatch.setattr(weights.published, "fetch", lambda *_: OPENED.append("download"))
    monkeypatch.setattr(keras.utils, "get_file", lambda *_, **__: OPENED.append("download"))
    monkeypatch.setattr(weights.hub, "_download", lambda *_: OPENED.append("download"))
    yield
    assert OPENED == []


@pytest.fixture
def unsafe_deserialization():
    state = keras.src.backend.common.global_state
    before = state.get_global_attribute("safe_mode_saving")
    keras.config.enable_unsafe_deserialization()
    yield
    state.set_global_attribute("safe_mode_saving", before)


def test_unsafe_deserialization_does_not_count(files, tmp_path, unsafe_deserialization):
    bad = with_config(files / "model.keras", tmp_path / "bad.keras", "layer", CODE)
    with pytest.raises(WeightsError, match=PARTS):
        keras_deeplab.load_model(bad)


def test_every_way_to_open_a_file_refuses_it(model, files, tmp_path, no_download):
    bad = with_config(files / "model.keras", tmp_path / "bad.keras", "model", {"weights": SECRET})
    for call in (
        weights.from_pretrained,
        lambda path: weights.load(model, path),
        lambda path: keras_deeplab.DeepLabV3(weights=path),
    ):
        with unchanged(model), pytest.raises(WeightsError, match="weights='/etc"):
            call(bad)
    with pytest.raises(ValueError, match="`config` must not have the key 'weights'"):
        keras.models.load_model(bad)


@pytest.mark.parametrize("name", ["LayerScale", "StochasticDepth"])
def test_layers_of_networks_of_keras_are_parts_of_networks(tmp_path, name):
    layer = getattr(keras.src.applications.convnext, name)
    inputs = keras.Input((4, 4, 3))
    outputs = layer(1e-6, 3)(inputs) if name == "LayerScale" else layer(0.1)(inputs)
    outputs = keras.ops.image.resize(keras.ops.relu(outputs), (2, 2))
    keras.Model(inputs, outputs).save(tmp_path / "network.keras")
    loaded = keras_deeplab.load_model(tmp_path / "network.keras")
    assert loaded.layers[1].__class__ is layer
    assert loaded.output_shape == (None, 2, 2, 3)


@keras.saving.register_keras_serializable("a.team")
def doubled(x: Any) -> Any:
    return 2 * x


def test_operations_on_constants_beside_a_tensor_come_back(tmp_path):
    inputs = keras.Input((2, 2, 3))
    shifted = keras.ops.add(1.0, inputs)[..., :2]
    outputs = keras.ops.concatenate([keras.ops.ones((1, 2, 2, 1)), shifted], axis=-1)
    keras.Model(inputs, keras.ops.maximum(x1=0.5, x2=outputs)).save(tmp_path / "network.keras")
    x = np.zeros((1, 2, 2, 3), "float32")
    np.testing.assert_array_equal(keras_deeplab.load_model(tmp_path / "network.keras")(x), 1.0)


def test_ordinary_content_is_no_file_and_no_size(tmp_path):
    inputs = keras.Input((4,))
    outputs = {
        name: keras.layers.Dense(1, activation=doubled, name=f"of_{name}")(inputs)
        for name in ("file", "path")
    }
    network = keras.Model(inputs, outputs)
    text = "trained on data/../others, see https://example.org"
    network.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.1, 150_000_000, 0.9)),
        {"file": "mse", "path": keras.losses.MeanAbsoluteError(name=text)},
    )
    network.optimizer.build(network.trainable_variables)
    network.save(tmp_path / "network.keras")
    loaded = keras_deeplab.load_model(tmp_path / "network.keras")
    assert loaded.loss["file"] == "mse"
    assert loaded.loss["path"].name == text
    assert loaded.optimizer._learning_rate.decay_steps == 150_000_000
    x = np.ones((1, 4), "float32")
    np.testing.assert_array_equal(loaded.predict(x)["file"], network.predict(x)["file"])


def nest(depth: int) -> dict:
    found: Any = {}
    for _ in range(depth):
        found = [found]
    return {"class_name": "Sequential", "config": found}


ONES = {"class_name": "__tensor__", "config": {"value": 1.0, "dtype": "float32"}}
CONSTANT = an_object("keras.initializers", "Constant", value=ONES)
DENSE = {**a_layer("Dense", units=5 * 10**8), "build_config": {"input_shape": [1, 8]}}
MORE = "build no more weights than the file holds"
TENSOR = {"class_name": "__keras_tensor__", "config": {"shape": [1], "dtype": "float32"}}


def a_call(*args: Any) -> dict:
    tile = an_object("keras.src.ops.numpy", "Tile", repeats=[20000, 20000])
    return {**tile, "inbound_nodes": [{"args": args, "kwargs": {}}]}


TEXTS = {"filters": 200_000, "dtype": "string"}
ON_TENSORS = "must call layers on tensors of the network. Received: "
CONFIG = keras_deeplab.UNet(2, depth=1, filters=2).get_config()
DEEP = an_object("keras_deeplab", "UNet", **{**CONFIG, "depth": 10**6, "filters": 4096})
DEEP["config"]["skip_layers"], DEEP["registered_name"] = None, "keras_deeplab>UNet"
TOO_LARGE = {
    "classes": ("model", {"num_classes": 10**8}, MORE),
    "depth": ("text", DEEP, MORE),
    "a layer inside": ("arguments", {"filters": 5 * 10**7}, MORE),
    "a layer as a loss": ("loss", DENSE, MORE),
    "constants": ("arguments", {"filters": 10**8, "kernel_initializer": CONSTANT}, MORE),
    "wide numbers": ("arguments", {"filters": 400_000, "dtype": "float64"}, MORE),
    "texts": ("arguments", {**TEXTS, "kernel_initializer": "zeros"}, MORE),
    "a call of constants": ("layer", a_call([[1.0]]), ON_TENSORS),
    "a call of no arguments": ("layer", {**a_call(), "inbound_nodes": [[]]}, ON_TENSORS),
    "a tensor that is none": ("layer", a_call(1.0, a_layer("ReLU", x=TENSOR)), ON_TENSORS),
    "a size": ("arguments", {"filters": 10**9}, "filters=1000000000"),
    "an input": ("model", {"input_shape": [None, None, 10**9]}, "input_shape=10"),
    "nesting": ("text", nest(150), "be nested at most 100 deep"),
    "deep nesting": ("text", b"[" * 100_000, "recursion"),
    "length": ("text", b" " * (9 << 20) + b"{}", "must have at most 8388608 bytes. Received: 94"),
    "no object": ("text", [], "must hold an object. Received: list"),
    "a damaged text": ("text", b"\xff\xfe{", "it cannot be read: .*decode"),
}


@pytest.mark.parametrize("what", [*HOSTILE, *TOO_LARGE])
def test_a_configuration_names_parts_of_networks_that_its_file_explains(
    files, tmp_path, no_download, what
):
    """No file, no address, no code and no size."""
    place, value, message = (HOSTILE | TOO_LARGE)[what]
    bad = with_config(files / "model.keras", tmp_path / "bad.keras", place, value)
    with pytest.raises(WeightsError, match=rf"bad\.keras: .*{message}") as caught:
        keras_deeplab.load_model(bad)
    assert "\n" not in str(caught.value)


ARCHIVES = {
    "twice": ({}, r"it must hold .* Received: config\.json, config\.json, metadata"),
    "upwards": ({"../outside.txt": b"x"}, r"it must hold config\.json, .* Received: \.\./outside"),
    "assets": ({"assets/words.txt": b"x"}, "it must hold .* Received: assets/words.txt, "),
    "a bomb": ({"model.weights.h5": bytes(64 << 20)}, "its members declare .* cannot hold"),
    "no weights": (
        {"model.weights.h5": None},
        r"it must hold .* Received: config\.json, metadata\.json$",
    ),
    "bzip2": ({}, "its members must be stored or deflated. Received: metadata.json"),
    "LZMA": ({}, "its members must be stored or deflated. Received: metadata.json"),
    "no HDF5": ({"model.weights.h5": b"x"}, "it cannot be read: .*signature"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("what", ARCHIVES)
def test_an_archive_holds_what_a_model_has(files, tmp_path, what):
    change, message = ARCHIVES[what]
    content = {**members(files / "model.keras"), **change}
    content = {name: value for name, value in content.items() if value is not None}
    method = {"bzip2": zipfile.ZIP_BZIP2, "LZMA": zipfile.ZIP_LZMA}.get(what, zipfile.ZIP_DEFLATED)
    bad = packed(tmp_path / "bad.keras", content, method)
    if what == "twice":
        with zipfile.ZipFile(bad, "a") as archive:
            archive.writestr("config.json", b"{}")
    with pytest.raises(WeightsError, match=rf"bad\.keras: {message}"):
        keras_deeplab.load_model(bad)


IN_THE_FILE = "KERNEL' must be a contiguous array of numbers in the file, once and not a link"
ELSEWHERE_IN_H5 = {
    **dict.fromkeys(("external", "virtual", "link", "text"), IN_THE_FILE),
    "circle": "circle' must be a contiguous array of numbers in the file",
    "bomb": "its arrays declare 6000.* bytes, which a file of .* bytes cannot hold",
    "chunk": IN_THE_FILE,
    "deep": "nested deeper than 64",
}


def plant(what: str, file: h5py.File, kernel: str, secret: str) -> None:
    """Puts something in the place of a kernel, or beside it."""
    array = file[kernel][()]
    if what not in ("circle", "deep"):
        del file[kernel]
    if what == "external":
        file.create_dataset(kernel, array.shape, "f4", external=[(secret, 0, array.nbytes)])
    elif what == "virtual":
        layout = h5py.VirtualLayout(array.shape, "f4")
        layout[:] = h5py.VirtualSource(secret, "kernel", shape=array.shape)
        file.create_virtual_dataset(kernel, layout)
    elif what == "link":
        file[kernel] = h5py.ExternalLink(secret, "/kernel")
    elif what == "circle":
        file["circle"] = file["/"]
    elif what == "bomb":
        file.create_dataset(kernel, (1500, 1000, 1000), "f4")
    elif what == "chunk":  # it may be much larger than the array, and compressed
        file.create_dataset(kernel, (4,), "f4", chunks=(1000,), maxshape=(None,), compression=9)
    elif what == "deep":
        file.create_group("g/" * 100)
    else:
        file[kernel] = ["a", "b"]


@pytest.mark.parametrize(
    "what, carrier",
    [
        *((what, "network.h5") for what in ELSEWHERE_IN_H5),
        ("external", "model.weights.h5"),
        *((what, "model.keras") for what in ("external", "bomb", "chunk")),
    ],
)
def test_weights_lie_in_the_file_and_are_as_large_as_it(model, files, tmp_path, what, carrier):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["kernel"] = np.ones((3, 3, 3, 6), "float32")
    bad, inner = tmp_path / f"bad-{carrier}", tmp_path / "inner.h5"
    content = (files / carrier).read_bytes()
    if carrier.endswith(".keras"):
        content = members(files / carrier)["model.weights.h5"]
    inner.write_bytes(content)
    with h5py.File(inner, "a") as file:
        places: list[str] = []
        file.visit(places.append)
        (kernel, *_) = [p for p in places if getattr(file[p], "shape", ()) == (3, 3, 3, 6)]
        plant(what, file, kernel, str(secret))
    if carrier.endswith(".keras"):
        packed(bad, {**members(files / carrier), "model.weights.h5": inner.read_bytes()})
    else:
        inner.rename(bad)
    target = tiny_sequential() if carrier == "network.h5" else model
    message = ELSEWHERE_IN_H5[what].replace("KERNEL", re.escape(kernel))
    with (
        unchanged(target),
        pytest.raises(WeightsError, match=f"{re.escape(str(bad))}: .*{message}"),
    ):
        weights.load(target, bad)


def test_broken_weights_are_refused_as_weights_load_refuses_them(tmp_path):
    broken = scattered(tiny_sequential())
    broken.weights[0].assign(np.nan * np.asarray(broken.weights[0]))
    broken.save(tmp_path / "model.keras")
    with pytest.raises(WeightsError, match="finite float32 values. Received: 162 wrong ones of"):
        keras_deeplab.load_model(tmp_path / "model.keras")


@pytest.mark.parametrize(
    "name, message",
    [
        (".", "it is the folder of a run: give .*model.keras"),
        ("empty", "it is a folder without a checkpoint: give a model's .keras file"),
        ("hub", "it is a folder without a checkpoint: give one of its files: model.safetensors"),
        ("missing.keras", "there is no such file"),
        ("cut.keras", "it is damaged or cut off, or no .keras file"),
        ("some.pth", ".* no .keras file; from_pretrained and weights.load read other"),
        ("other.zip", "its name must end in .keras"),
    ],
)
def test_what_is_given_in_place_of_a_file(files, tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/model.safetensors").touch()
    (tmp_path / "hub/config.json").touch()
    content = (files / "model.keras").read_bytes()
    contents = {"model.keras": content, "cut.keras": content[:5000], "other.zip": content}
    for file, body in {**contents, "some.pth": b"no archive"}.items():
        (tmp_path / file).write_bytes(body)
    calls = [keras_deeplab.load_model]
    calls += [] if name == "some.pth" else [weights.from_pretrained]
    for call in calls:
        with pytest.raises(WeightsError, match=rf"{re.escape(str(tmp_path / name))}: {message}"):
            call(tmp_path / name)


@pytest.mark.parametrize("path", [None, 5, b"model.keras"])
def test_what_is_no_path(path):
    with pytest.raises(TypeError, match="`path` must be the path of a .keras file. Received"):
        keras_deeplab.load_model(path)


def test_the_older_format_is_refused_as_it_is_saved(model, tmp_path):
    for each, name in ((model, "m.h5"), (keras_deeplab.MultiScale(model, (1.0,)), "M.HDF5")):
        with pytest.raises(ValueError, match=r"`filepath` must end in \.keras\. Received: file"):
            each.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    keras.saving.save_model(model, str(tmp_path / "m.h5"))  # past the model's own method
    with pytest.raises(WeightsError, match="names several layers alike: .* model.load_weights"):
        weights.load(model, tmp_path / "m.h5")
    again = small()
    again.load_weights(tmp_path / "m.h5")  # as the error says
    np.testing.assert_array_equal(again.weights[0], model.weights[0])


def test_too_many_weights_are_an_error_also_where_another_is_caught():
    def build():
        with keras_file._bounded_variables(8), suppress(UnreadableError):
            tf.Variable(np.zeros(2))

    with pytest.raises(UnreadableError, match=MORE):
        build()
