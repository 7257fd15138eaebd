"""Files from elsewhere: a model comes back, or one clear error, and nothing else is opened."""

from __future__ import annotations

import json
import os
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from models.networks import tiny_sequential
from sources import scattered, unchanged

import keras_deeplab
from keras_deeplab import weights
from keras_deeplab.weights import WeightsError

SECRET = "/etc/keras_deeplab_secret"
OPENED: list[str] = []


def note(event: str, arguments: tuple) -> None:
    """What Python opens of the names in the files below."""
    if event in ("open", "socket.getaddrinfo") and SECRET in str(arguments[0]):
        OPENED.append(f"{event} {arguments[0]}")


sys.addaudithook(note)


def small(num_classes: int = 3) -> keras_deeplab.DeepLabV3:
    return keras_deeplab.DeepLabV3(
        num_classes, tiny_sequential(), output_stride=8, aspp_filters=4, head_filters=None
    )


@pytest.fixture(scope="module")
def model() -> keras_deeplab.DeepLabV3:
    return scattered(small())


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


def with_config(good: Path, path: Path, change: Callable[[dict], Any]) -> Path:
    """A copy of a file with another configuration; what `change` returns stands in its place."""
    content = members(good)
    config = json.loads(content["config.json"])
    changed = change(config)
    content["config.json"] = json.dumps(config if changed is None else changed).encode()
    return packed(path, content)


def layers(config: dict) -> list[dict]:
    """Those of the backbone of a user's own in a model's configuration."""
    return config["config"]["backbone"]["config"]["layers"]


def test_a_model_comes_back_as_it_was(model, files):
    loaded = keras_deeplab.load_model(str(files / "model.keras"))
    assert type(loaded) is keras_deeplab.DeepLabV3
    assert not loaded.compiled
    for old, new in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    several = keras_deeplab.load_model(files / "scales.keras", compile=False)
    assert type(several) is keras_deeplab.MultiScale
    np.testing.assert_array_equal(several.model.weights[0], model.weights[0])


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


@pytest.mark.parametrize(
    "name", ["MobileNetV2", *(pytest.param(n, marks=pytest.mark.slow) for n in ("ConvNeXtTiny",))]
)
def test_networks_of_keras_are_loaded(tmp_path, name):
    network = getattr(keras.applications, name)(include_top=False, weights=None)
    network.save(tmp_path / "network.keras")
    loaded = keras_deeplab.load_model(tmp_path / "network.keras")
    for old, new in zip(network.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(old, new)


def function(module: str, name: str) -> dict:
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


def at_weights(value: str) -> Callable[[dict], None]:
    def change(config: dict) -> None:
        config["config"]["weights"] = value

    return change


def layer(class_name: str, **config: Any) -> Callable[[dict], None]:
    """Puts a layer into a user's backbone."""

    def change(model: dict) -> None:
        found = {"module": "keras.layers", "class_name": class_name, "config": config}
        layers(model).insert(2, found)

    return change


def activation(module: str, name: str) -> Callable[[dict], None]:
    def change(config: dict) -> None:
        layers(config)[1]["config"]["activation"] = function(module, name)

    return change


def compilation_inside(loss: dict) -> Callable[[dict], None]:
    """Compiles the backbone, which is never left out."""

    def change(config: dict) -> None:
        config["config"]["backbone"]["compile_config"] = {"optimizer": "adam", "loss": loss}

    return change


HOSTILE = {
    "weights": (at_weights(SECRET), "weights='/etc/"),
    "published weights": (at_weights("pascal_voc"), "weights='pascal_voc'"),
    "weights of a backbone": (
        lambda c: c["config"]["backbone"]["config"].update(weights="imagenet"),
        "weights='imagenet'",
    ),
    "a backbone by path": (lambda c: c["config"].update(backbone=SECRET), "backbone='/etc"),
    "keras.applications": (
        lambda c: c["config"].update(
            backbone={
                "module": "keras.applications",
                "class_name": "ResNet50",
                "config": {},
                "registered_name": None,
            }
        ),
        r"keras\.applications\.ResNet50",
    ),
    "a downloading activation": (
        activation("keras.applications", "MobileNetV2"),
        r"keras\.applications\.MobileNetV2",
    ),
    "a data set as activation": (
        activation("keras.datasets.mnist", "load_data"),
        r"keras\.datasets\.mnist\.load_data",
    ),
    "a model as activation": (activation("keras.models", "load_model"), r"models\.load_model"),
    "a vocabulary": (layer("StringLookup", vocabulary=SECRET), "vocabulary='/etc"),
    "a relative vocabulary": (layer("TextVectorization", vocabulary="words.txt"), "vocabulary='w"),
    "a SavedModel": (layer("TFSMLayer", filepath="saved_model"), "filepath='saved_model'"),
    "code": (layer("Lambda", function={"class_name": "__lambda__"}), "hold code. .* Lambda"),
    "code as activation": (
        lambda c: layers(c)[1]["config"].update(
            activation={"class_name": "__lambda__", "config": {"value": "x"}}
        ),
        "hold code. .* __lambda__",
    ),
    "a torch module": (layer("TorchModuleWrapper", module="x"), "hold code. .* TorchModule"),
    "an address": (layer("Rescaling", scale="https://example.org/x"), "scale='https://"),
    "a path upwards": (layer("Rescaling", scale="a/../../b"), "scale='a/"),
    "a compilation inside": (
        compilation_inside(function("keras.saving", "load_model")),
        r"keras\.saving\.load_model",
    ),
    "building": (lambda c: c.update(build_config={"file": "x"}), "file='x'"),
    "a vocabulary as a loss": (
        compilation_inside(
            {
                "module": "keras.layers",
                "class_name": "StringLookup",
                "config": {"vocabulary": SECRET.strip("/")},
            }
        ),
        "vocabulary='etc/",
    ),
    "a class by a list": (
        lambda c: layers(c)[1].update(class_name=["Lambda"]),
        r"class_name=\['Lambda'\]",
    ),
    "a foreign class": (
        lambda c: layers(c).insert(2, {"module": "os", "class_name": "system", "config": {}}),
        "Could not locate class 'system'",
    ),
    "a foreign function": (activation("os", "system"), "Could not locate function 'system'"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_configuration_names_no_file_no_address_and_no_code(
    model, files, tmp_path, monkeypatch, what
):
    change, message = HOSTILE[what]
    bad = with_config(files / "model.keras", tmp_path / "bad.keras", change)
    monkeypatch.setattr(weights.opening.download, "fetch", lambda *_: OPENED.append("download"))
    monkeypatch.setattr(keras.utils, "get_file", lambda *_, **__: OPENED.append("download"))
    for call in (
        lambda: keras_deeplab.load_model(bad),
        lambda: weights.from_pretrained(bad),
        lambda: weights.load(model, bad),
    ):
        with pytest.raises(WeightsError, match=rf"bad\.keras: .*{message}") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert OPENED == []


# Module and name: Keras looks up one joined to the other, wherever the dots are.
ELSEWHERE = {
    "function": [
        ("keras", "datasets.mnist.load_data"),
        ("keras", "applications.mobilenet_v2.MobileNetV2"),
        ("keras", "utils.get_file"),
        ("keras", "layers.relu"),
        ("builtins", "schedules.ExponentialDecay"),
        ("keras.src", "datasets.mnist.load_data"),
        ("keras.src.datasets.mnist", "load_data"),
        ("keras.src.utils.file_utils", "get_file"),
        ("keras.src.models", "clone_model"),
        ("keras.models", "clone_model"),
    ],
    "class": [
        ("keras", "layers.Activation"),
        ("keras", "layers.Lambda"),
        ("keras", "_legacy.layers.RandomHeight"),
        (None, "layers.Lambda"),
        ("keras.src.applications.mobilenet_v2", "MobileNetV2"),
        ("keras.src.export.tfsm_layer", "TFSMLayer"),
        ("keras.src.utils.jax_layer", "JaxLayer"),
        ("keras.src.legacy.layers", "RandomHeight"),
        ("keras.src.distillation.distiller", "Distiller"),
    ],
    "spec": [("keras", "datasets.mnist.load_data"), ("keras.datasets.mnist", "load_data")],
}


@pytest.mark.parametrize(
    "kind, module, name", [(kind, *each) for kind, found in ELSEWHERE.items() for each in found]
)
def test_objects_of_keras_are_parts_of_networks_wherever_the_dots_are(
    files, tmp_path, monkeypatch, kind, module, name
):
    def change(config: dict) -> None:
        if kind == "class":
            found = {"module": module, "class_name": name, "config": {}, "registered_name": None}
            layers(config).insert(2, found)
            return
        found = function(module, name)
        if kind == "spec":
            found.update(class_name="__typespec__", spec_name=name, config=[])
        layers(config)[1]["config"]["activation"] = found

    monkeypatch.setattr(keras.utils, "get_file", lambda *_, **__: OPENED.append("download"))
    bad = with_config(files / "model.keras", tmp_path / "bad.keras", change)
    shown = re.escape(f"{module}.{name}" if module else name)
    with pytest.raises(WeightsError, match=f"parts of networks only. Received: {shown}$"):
        keras_deeplab.load_model(bad)
    assert OPENED == []


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


@pytest.mark.parametrize("value", [SECRET, "pascal_voc"])
@pytest.mark.parametrize("good", ["model.keras", "scales.keras"])
def test_keras_itself_loads_no_weights_named_by_a_configuration(
    files, tmp_path, monkeypatch, good, value
):
    def change(config: dict) -> None:
        inner = config["config"]
        (inner["model"]["config"] if "model" in inner else inner)["weights"] = value

    monkeypatch.setattr(weights.opening.download, "fetch", lambda *_: OPENED.append("download"))
    bad = with_config(files / good, tmp_path / "bad.keras", change)
    with pytest.raises(ValueError, match="`config` must not have the key 'weights'"):
        keras.models.load_model(bad)
    with pytest.raises(WeightsError, match=r"weights='"):
        keras_deeplab.load_model(bad)
    assert OPENED == []


def test_unsafe_deserialization_does_not_count(files, tmp_path):
    state = keras.src.backend.common.global_state
    before = state.get_global_attribute("safe_mode_saving")
    keras.config.enable_unsafe_deserialization()
    try:
        bad = with_config(files / "model.keras", tmp_path / "bad.keras", HOSTILE["code"][0])
        with pytest.raises(WeightsError, match="must not hold code"):
            keras_deeplab.load_model(bad)
    finally:
        state.set_global_attribute("safe_mode_saving", before)


def nest(depth: int) -> dict:
    found: Any = {}
    for _ in range(depth):
        found = [found]
    return {"class_name": "Sequential", "config": found}


TOO_LARGE = {
    "classes": (lambda c: c["config"].update(num_classes=10**8), "builds more than"),
    "filters": (lambda c: c["config"].update(aspp_filters=5 * 10**7), "builds more than"),
    "a layer inside": (
        lambda c: layers(c)[1]["config"].update(filters=5 * 10**7),
        "builds more than",
    ),
    "a layer as a loss": (
        compilation_inside(
            {
                "module": "keras.layers",
                "class_name": "Dense",
                "config": {"units": 5 * 10**8},
                "build_config": {"input_shape": [1, 8]},
            }
        ),
        "builds more than",
    ),
    "constants": (
        lambda c: layers(c)[1]["config"].update(
            filters=10**8,
            kernel_initializer={
                "module": "keras.initializers",
                "class_name": "Constant",
                "config": {"value": {"class_name": "__tensor__", "config": dict(TENSOR)}},
            },
        ),
        "builds more than",
    ),
    "a size": (lambda c: layers(c)[1]["config"].update(filters=10**9), "filters=1000000000"),
    "an input": (lambda c: c["config"].update(input_shape=[None, None, 10**9]), "input_shape=10"),
    "nesting": (lambda c: nest(150), "nested deeper than 100"),
    "deep nesting": (None, "recursion"),
    "length": (None, r"config\.json has \d+ bytes: a model's has at most"),
    "no object": (lambda c: [c], "must hold an object, not list"),
    "a damaged text": (None, "it cannot be loaded as a Keras model: .*decode"),
}
TENSOR = {"value": 1.0, "dtype": "float32"}
TEXTS = {
    "deep nesting": b"[" * 100_000,
    "length": b" " * (9 << 20) + b"{}",
    "a damaged text": b"\xff\xfe{",
}


@pytest.mark.parametrize("what", TOO_LARGE)
def test_a_configuration_takes_no_more_than_its_file_explains(files, tmp_path, what):
    change, message = TOO_LARGE[what]
    bad = tmp_path / "bad.keras"
    if change is None:
        packed(bad, {**members(files / "model.keras"), "config.json": TEXTS[what]})
    else:
        with_config(files / "model.keras", bad, change)
    with pytest.raises(WeightsError, match=rf"bad\.keras: .*{message}"):
        keras_deeplab.load_model(bad)


def test_a_depth_is_bounded_too(tmp_path):
    keras_deeplab.UNet(2, depth=1, filters=2).save(tmp_path / "model.keras")
    change = {"depth": 10**6, "filters": 4096}
    bad = with_config(
        tmp_path / "model.keras", tmp_path / "bad.keras", lambda c: c["config"].update(change)
    )
    with pytest.raises(WeightsError, match="builds more than"):
        keras_deeplab.load_model(bad)


ARCHIVES = {
    "upwards": ({"../outside.txt": b"x"}, r"it holds '\.\./outside\.txt'"),
    "absolute": ({"/outside.txt": b"x"}, "it holds '/outside"),
    "assets": ({"assets/words.txt": b"x"}, "it holds 'assets/words"),
    "a bomb": ({"model.weights.h5": bytes(64 << 20)}, "its members declare .* cannot hold"),
    "no weights": ({"model.weights.h5": None}, r"it lacks model\.weights\.h5"),
    "no configuration": ({"config.json": None}, r"it lacks config\.json"),
    "no HDF5": ({"model.weights.h5": b"x"}, "it is a damaged HDF5 file"),
}


@pytest.mark.parametrize("what", ARCHIVES)
def test_an_archive_holds_what_a_model_has(model, files, tmp_path, what):
    change, message = ARCHIVES[what]
    content = {**members(files / "model.keras"), **change}
    content = {name: value for name, value in content.items() if value is not None}
    bad = packed(tmp_path / "bad.keras", content, zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match=rf"bad\.keras: {message}"):
        keras_deeplab.load_model(bad)
    with pytest.raises(WeightsError, match=r"bad\.keras: "):
        weights.load(model, bad)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_is_there_once(files, tmp_path):
    bad = packed(tmp_path / "bad.keras", members(files / "model.keras"))
    with zipfile.ZipFile(bad, "a") as archive:
        archive.writestr("config.json", b"{}")
    with pytest.raises(WeightsError, match=r"it holds config\.json twice"):
        keras_deeplab.load_model(bad)


def external(file: h5py.File, group: h5py.Group, name: str, secret: Path) -> None:
    shape = group[name].shape
    del group[name]
    size = 4 * int(np.prod(shape))
    group.create_dataset(name, shape, "float32", external=[(str(secret), 0, size)])


def external_link(file: h5py.File, group: h5py.Group, name: str, secret: Path) -> None:
    del group[name]
    group[name] = h5py.ExternalLink(str(secret), "/kernel")


def soft_link(file: h5py.File, group: h5py.Group, name: str, secret: Path) -> None:
    file["elsewhere"] = group[name][()]
    del group[name]
    group[name] = h5py.SoftLink("/elsewhere")


def virtual(file: h5py.File, group: h5py.Group, name: str, secret: Path) -> None:
    shape = group[name].shape
    del group[name]
    layout = h5py.VirtualLayout(shape, "float32")
    layout[:] = h5py.VirtualSource(str(secret), "kernel", shape=shape)
    group.create_virtual_dataset(name, layout)


def twice(file: h5py.File, group: h5py.Group, name: str, secret: Path) -> None:
    file["again"] = group[name]


def circle(file: h5py.File, group: h5py.Group, name: str, secret: Path) -> None:
    group["circle"] = file["/"]


def bomb(file: h5py.File, group: h5py.Group, name: str, secret: Path) -> None:
    del group[name]
    group.create_dataset(name, (1500, 1000, 1000), "float32", chunks=(1, 1000, 1000))


def compressed_bomb(file: h5py.File, group: h5py.Group, name: str, secret: Path) -> None:
    del group[name]
    zeros = np.zeros((40, 1000, 1000), "float32")
    group.create_dataset(name, data=zeros, chunks=(10, 1000, 1000), compression="gzip")


def deep(file: h5py.File, group: h5py.Group, name: str, secret: Path) -> None:
    for _ in range(100):
        group = group.create_group("g")


def text(file: h5py.File, group: h5py.Group, name: str, secret: Path) -> None:
    del group[name]
    group[name] = ["a", "b"]


PLANTED = {
    external: "NAME' must be in the file, but its values are in another file",
    external_link: "NAME' must be in the file, but is a link",
    soft_link: "NAME' must be in the file, but is a link",
    virtual: "NAME' must be in the file, but its values are in another file",
    twice: "must be in the file once, but is twice",
    circle: "circle' must be in the file once, but is twice",
    bomb: "its arrays declare 6000.* bytes, which a file of .* bytes cannot hold",
    compressed_bomb: "its arrays declare 160.* bytes, which a file of .* bytes cannot hold",
    deep: "nested deeper than 64",
    text: "NAME' must be an array of numbers",
}


@pytest.mark.parametrize("carrier", ["network.h5", "model.weights.h5", "model.keras"])
@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_weights_lie_in_the_file_and_are_as_large_as_it(model, files, tmp_path, plant, carrier):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["kernel"] = np.ones((3, 3, 3, 6), "float32")
    bad, inner = tmp_path / f"bad-{carrier}", tmp_path / "inner.h5"
    content = (files / carrier).read_bytes()
    inner.write_bytes(
        members(files / carrier)["model.weights.h5"] if carrier.endswith(".keras") else content
    )
    with h5py.File(inner, "a") as file:
        found: list[str] = []
        file.visititems(lambda n, i: found.append(n) if isinstance(i, h5py.Dataset) else None)
        (kernel, *_) = [n for n in found if file[n].shape == (3, 3, 3, 6)]
        plant(file, file[os.path.dirname(kernel)], os.path.basename(kernel), secret)
    if carrier.endswith(".keras"):
        packed(bad, {**members(files / carrier), "model.weights.h5": inner.read_bytes()})
    else:
        inner.rename(bad)
    target = tiny_sequential() if carrier == "network.h5" else model
    message = rf"{re.escape(str(bad))}: .*{PLANTED[plant].replace('NAME', re.escape(kernel))}"
    with unchanged(target), pytest.raises(WeightsError, match=message):
        weights.load(target, bad)
    if carrier.endswith(".keras"):
        with pytest.raises(WeightsError, match=message):
            keras_deeplab.load_model(bad)


def test_compressed_weights_are_taken(files, tmp_path, model):
    path = tmp_path / "compressed.weights.h5"
    with h5py.File(files / "model.weights.h5") as old, h5py.File(path, "w") as new:

        def copy(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                options = {"chunks": True, "compression": "gzip"} if item.shape else {}
                new.create_dataset(name, data=item[()], **options)

        old.visititems(copy)
    target = small()
    assert weights.load(target, path).missing_keys == ()
    np.testing.assert_array_equal(target.weights[0], model.weights[0])


def test_a_structured_file_has_any_name(files, tmp_path, model):
    path = tmp_path / "renamed.h5"
    path.write_bytes((files / "model.weights.h5").read_bytes())
    target = small()
    assert weights.load(target, path).missing_keys == ()
    np.testing.assert_array_equal(target.weights[0], model.weights[0])


@pytest.mark.parametrize(
    "name, value, message",
    [
        *(
            ("kernel", value, "finite float32 values. Received: 1 of 12 values are NaN or infinite")
            for value in (np.nan, np.inf, -np.inf)
        ),
        ("moving_variance", -1e-3, "must not be negative. Received: 1 of 4 values below 0"),
    ],
)
def test_broken_weights_are_refused_as_weights_load_refuses_them(tmp_path, name, value, message):
    broken = small()
    variable = [w for w in broken.weights if w.name == name][-1]
    content = np.array(variable)
    content.flat[-1] = value
    variable.assign(content)
    broken.save(tmp_path / "model.keras")
    with pytest.raises(WeightsError, match=f"{re.escape(message)}$") as of_file:
        keras_deeplab.load_model(tmp_path / "model.keras")
    with pytest.raises(WeightsError) as of_model:
        weights.load(small(), broken)
    assert of_file.value.reason == of_model.value.reason


@pytest.fixture
def run_folder(files, tmp_path) -> Path:
    run = tmp_path / "run"
    (run / "saved_model").mkdir(parents=True)
    (run / "saved_model" / "saved_model.pb").touch()
    (run / "model.keras").write_bytes((files / "model.keras").read_bytes())
    (run / "cut.keras").write_bytes((files / "model.keras").read_bytes()[:5000])
    (run / "some.pth").write_bytes(b"no archive")
    (run / "other.zip").write_bytes((files / "model.keras").read_bytes())
    (run / "empty").mkdir()
    return run


@pytest.mark.parametrize(
    "name, message",
    [
        (".", "it is the folder of a run: give .*model.keras"),
        ("saved_model", "it is a SavedModel, exported for serving: give the .keras file"),
        ("empty", "it is a folder"),
        ("missing.keras", "there is no such file"),
    ],
)
def test_what_is_given_in_place_of_a_file(model, run_folder, name, message):
    path = run_folder / name
    for call in (
        lambda: keras_deeplab.load_model(path),
        lambda: weights.from_pretrained(path),
        lambda: keras_deeplab.DeepLabV3(weights=path),
        lambda: weights.load(model, path),
    ):
        with pytest.raises(WeightsError, match=rf"{re.escape(str(path))}: {message}"):
            call()


@pytest.mark.parametrize(
    "name, message",
    [
        ("cut.keras", "it is damaged or cut off: a .keras file is a zip archive"),
        ("some.pth", "it is no .keras file; from_pretrained"),
        ("other.zip", "its name must end in .keras"),
    ],
)
def test_what_is_no_keras_file(run_folder, name, message):
    with pytest.raises(WeightsError, match=message):
        keras_deeplab.load_model(run_folder / name)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.keras")
    for call in (keras_deeplab.load_model, weights.from_pretrained):
        with pytest.raises(WeightsError, match="it must be a regular file, not a named pipe"):
            call(tmp_path / "pipe.keras")


@pytest.mark.parametrize("path", [None, 5, b"model.keras"])
def test_what_is_no_path(path):
    with pytest.raises(TypeError, match="`path` must be the path of a .keras file. Received"):
        keras_deeplab.load_model(path)


@pytest.mark.parametrize("name", ["m.h5", "m.hdf5", "M.H5"])
def test_the_older_format_is_refused_as_it_is_saved(model, tmp_path, name):
    for each in (model, keras_deeplab.MultiScale(model, (1.0,))):
        with pytest.raises(ValueError, match=r"`filepath` must end in \.keras: .* Received: file"):
            each.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    keras.saving.save_model(model, str(tmp_path / "m.h5"))  # past the model's own method
    with pytest.raises(WeightsError, match="names several layers alike .* model.load_weights"):
        weights.load(small(), tmp_path / "m.h5")
    again = small()
    again.load_weights(tmp_path / "m.h5")  # as the error says
    np.testing.assert_array_equal(again.weights[0], model.weights[0])
