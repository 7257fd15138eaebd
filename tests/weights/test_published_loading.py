"""Published weights from a server into models, with the conversion that is kept."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import socket
from collections import Counter
from http.server import BaseHTTPRequestHandler

import keras
import numpy as np
import pytest
from calibration import image
from local_server import serving
from models.networks import tiny
from parity import write_tf1
from sources import HEAD, as_the_authors_write_it, scattered, tar_gz, write_applications

import keras_deeplab
from keras_deeplab import weights
from keras_deeplab.weights import WeightsError, opening, published
from keras_deeplab.weights.families import tf1_deeplab
from keras_deeplab.weights.source import Source

PIXELS = image(65, 97)
NAME, NETWORK = "pascal_voc", {"backbone": "mobilenet_v2"}
HALF = {"backbone_options": {"depth_multiplier": 0.5}}
ENTRY = published.find(NAME, "DeepLabV3", "mobilenet_v2")
HALF_ENTRY = published.find(NAME, "DeepLabV3", "mobilenet_v2", {"depth_multiplier": 0.5})
IMAGENET = published.find("imagenet", "DeepLabV3", "mobilenet_v2")
KEPT = f"{ENTRY.file_name}.converted-1.npz"


class Site(BaseHTTPRequestHandler):
    """Sends files by name; of those that are `cut` all but the end."""

    files: dict[str, bytes] = {}
    cut: set[str] = set()
    requests: Counter[str] = Counter()

    def log_message(self, *arguments) -> None:
        """Not on the screen."""

    def do_GET(self) -> None:
        name = self.path.strip("/")
        Site.requests[name] += 1
        if name not in self.files:
            self.send_error(404)
            return
        body = self.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if name in self.cut else body)


def authors_archive(folder, width: float, seed: int) -> tuple[keras.Model, bytes]:
    """A network as the authors have it, and an archive of its checkpoint as they publish it."""
    model = keras_deeplab.DeepLabV3(
        21,
        "mobilenet_v2",
        aspp_rates=(),
        head_filters=None,
        align_corners=True,
        backbone_options={"depth_multiplier": width, "padding": "same"},
    )
    arrays = as_the_authors_write_it(
        scattered(model, seed), {**dict(tf1_deeplab._blocks()), **HEAD}
    )
    folder.mkdir()
    write_tf1(folder / "model.ckpt-30000", arrays)
    return model, tar_gz(folder)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Networks and the files that hold them, by the files' names."""
    folder = tmp_path_factory.mktemp("published")
    mobile, mobile_file = authors_archive(folder / "mobile", 1.0, 1)
    half, half_file = authors_archive(folder / "half", 0.5, 2)
    network = scattered(keras.applications.MobileNetV2(include_top=False, weights=None), 3)
    return {
        ENTRY.file_name: (mobile, mobile_file),
        HALF_ENTRY.file_name: (half, half_file),
        IMAGENET.file_name: (
            network,
            write_applications(folder / "network.h5", network).read_bytes(),
        ),
    }


@pytest.fixture
def site(originals, tmp_path, monkeypatch):
    """The server, from which the registry's files come, into a cache of this test's own."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(Site, "files", {name: body for name, (_, body) in originals.items()})
    monkeypatch.setattr(Site, "cut", set())
    Site.requests.clear()
    with serving(Site) as address:
        change_entries(monkeypatch, lambda e: {"url": f"{address}/{e.file_name}"})
        yield address


def change_entries(monkeypatch, changes) -> None:
    entries = tuple(dataclasses.replace(e, **changes(e)) for e in published.PUBLISHED)
    monkeypatch.setattr(published, "PUBLISHED", entries)


def expect_hash_of(monkeypatch, body: bytes) -> None:
    file_hash = f"md5:{hashlib.md5(body).hexdigest()}"
    change_entries(monkeypatch, lambda e: {"file_hash": file_hash} if e.name == NAME else {})


def cached(tmp_path) -> set[str]:
    folder = tmp_path / "keras_deeplab"
    return {file.name for file in folder.iterdir()} if folder.is_dir() else set()


def no_more(monkeypatch) -> None:
    """From here on nothing may be downloaded nor converted."""

    def fail(*arguments, **keywords):
        raise AssertionError("this was not to be called")

    Site.files = {}
    monkeypatch.setattr(opening, "open_file", fail)


def is_the_same(model: keras.Model, original: keras.Model) -> bool:
    right, found = original(PIXELS).numpy(), model(PIXELS).numpy()
    return right.shape == found.shape and bool(np.all(found == right))


def test_the_model_is_the_authors_network(site, originals, tmp_path, monkeypatch, logs):
    model = keras_deeplab.DeepLabV3(weights=NAME, **NETWORK)
    original = originals[ENTRY.file_name][0]
    config = model.get_config()
    assert config["aspp_rates"] == ()
    assert config["head_filters"] is None
    assert config["align_corners"] is True
    assert config["backbone_options"]["padding"] == "same"
    assert config == original.get_config()
    assert is_the_same(model, original)
    assert Site.requests == {ENTRY.file_name: 1}
    assert cached(tmp_path) == {ENTRY.file_name, f".{ENTRY.file_name}.sha256", KEPT}
    assert f"{ENTRY.file_name}: converted in" in logs.text

    no_more(monkeypatch)
    again = keras_deeplab.DeepLabV3(weights=NAME, **NETWORK)
    assert again.get_config() == config
    assert again.transfer_report == model.transfer_report
    assert is_the_same(again, original)
    assert Site.requests == {ENTRY.file_name: 1}


def test_other_classes_and_other_widths(site, originals):
    model = keras_deeplab.DeepLabV3(5, weights=NAME, **NETWORK)
    assert model.transfer_report.fresh == ("logits",)
    assert model.transfer_report.notes == (
        "logits predicts 5 classes, the source's 21: it was not taken",
    )
    original = originals[ENTRY.file_name][0]
    inner = [keras.Model(m.inputs[0], m.get_layer("aspp").output) for m in (model, original)]
    np.testing.assert_array_equal(inner[0](PIXELS), inner[1](PIXELS))
    half = keras_deeplab.DeepLabV3(weights=NAME, **NETWORK, **HALF)
    assert is_the_same(half, originals[HALF_ENTRY.file_name][0])
    assert Site.requests == {ENTRY.file_name: 1, HALF_ENTRY.file_name: 1}


def test_load_and_convert_take_the_names(site, originals):
    model = scattered(keras_deeplab.DeepLabV3(weights=NAME, **NETWORK), 9)
    weights.load(model, NAME)
    assert is_the_same(model, originals[ENTRY.file_name][0])
    found = weights.convert(f"{NAME}/DeepLabV3/mobilenet_v2")
    assert is_the_same(found, originals[ENTRY.file_name][0])
    half = weights.convert(f"{NAME}/DeepLabV3/mobilenet_v2", **HALF, output_stride=8)
    assert half.output_stride == 8
    np.testing.assert_array_equal(half.weights[0], originals[HALF_ENTRY.file_name][0].weights[0])
    assert Site.requests == {ENTRY.file_name: 1, HALF_ENTRY.file_name: 1}


def test_a_name_is_not_the_folder_that_lies_here(site, originals, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir()
    assert weights.open_source(NAME, "DeepLabV3", "mobilenet_v2").own["num_classes"] == 21
    with pytest.raises(WeightsError, match="a folder that holds no TensorFlow checkpoint"):
        weights.open_source(f"./{NAME}", "DeepLabV3", "mobilenet_v2")


@pytest.mark.parametrize("size", [0, 1000, -1])
def test_a_damaged_conversion_is_made_again(site, originals, tmp_path, monkeypatch, logs, size):
    source = weights.open_source(NAME, "DeepLabV3", "mobilenet_v2")
    kept = tmp_path / "keras_deeplab" / KEPT
    whole, time = kept.read_bytes(), kept.stat().st_mtime_ns
    kept.write_bytes(whole[:size])
    os.utime(kept, ns=(time, time))
    logs.clear()
    again = weights.open_source(NAME, "DeepLabV3", "mobilenet_v2")
    said = logs.text
    assert f"{kept}: it is damaged" in said
    assert "it is converted again" in said
    no_more(monkeypatch)
    for found in (again, weights.open_source(NAME, "DeepLabV3", "mobilenet_v2")):
        assert found.values.keys() == source.values.keys()
        for name, array in source.values.items():
            np.testing.assert_array_equal(found.values[name], array)
    assert Site.requests == {ENTRY.file_name: 1}


def test_a_new_file_makes_a_new_conversion(site, originals, tmp_path, monkeypatch):
    def stem() -> np.ndarray:
        found = weights.open_source(NAME, "DeepLabV3", "mobilenet_v2")
        return found.values["backbone/stem_conv/kernel"]

    first = stem()
    newer, body = authors_archive(tmp_path / "newer", 1.0, 7)
    Site.files[ENTRY.file_name] = body
    np.testing.assert_array_equal(stem(), first)  # no hash: what is there is kept
    assert Site.requests == {ENTRY.file_name: 1}
    expect_hash_of(monkeypatch, body)
    np.testing.assert_array_equal(stem(), newer.backbone.get_layer("stem_conv").kernel)
    assert Site.requests == {ENTRY.file_name: 2}
    # A file that came from elsewhere may be older than the conversion of the one before it.
    file = tmp_path / "keras_deeplab" / ENTRY.file_name
    file.write_bytes(originals[ENTRY.file_name][1])
    os.utime(file, (1, 1))
    expect_hash_of(monkeypatch, file.read_bytes())
    np.testing.assert_array_equal(stem(), first)
    assert Site.requests == {ENTRY.file_name: 2}


def test_a_conversion_that_cannot_be_kept_is_no_error(site, originals, monkeypatch, logs):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Source, "write", full)
        model = keras_deeplab.DeepLabV3(weights=NAME, **NETWORK)
    assert is_the_same(model, originals[ENTRY.file_name][0])
    assert "could not be kept ([Errno 28] No space left on device)" in logs.text


def test_moving_averages_are_not_taken_from_what_was_kept(site):
    weights.open_source(NAME, "DeepLabV3", "mobilenet_v2")
    with pytest.raises(WeightsError, match="`moving_averages` were asked for, but it holds none"):
        weights.convert(f"{NAME}/DeepLabV3/mobilenet_v2", moving_averages=True)


@pytest.mark.parametrize("fault", ["hash", "404", "refused", "cut"])
def test_a_failed_download_leaves_nothing(site, tmp_path, monkeypatch, fault):
    if fault == "hash":
        change_entries(monkeypatch, lambda e: {"file_hash": "sha256:" + 64 * "0"})
    elif fault == "404":
        del Site.files[ENTRY.file_name]
    elif fault == "cut":
        Site.cut = {ENTRY.file_name}
    else:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
        change_entries(monkeypatch, lambda e: {"url": f"{nowhere}/{e.file_name}"})
    url = published.find(NAME, "DeepLabV3", "mobilenet_v2").url
    said = {"hash": "should begin with 0000", "404": "HTTP 404", "refused": "refused"}
    with pytest.raises(WeightsError) as caught:
        keras_deeplab.DeepLabV3(weights=NAME, **NETWORK)
    assert str(caught.value).startswith(f"{url}: ")
    assert said.get(fault, "arrived") in str(caught.value)
    assert cached(tmp_path) == set()


def test_imagenet_into_every_kind_of_model(site, originals, monkeypatch):
    network = originals[IMAGENET.file_name][0]
    backbone = keras_deeplab.backbones.build("mobilenet_v2", (None, None, 3), padding="end")
    assert weights.load(backbone, "imagenet").fresh == ()
    no_more(monkeypatch)
    models = [
        keras_deeplab.DeepLabV3Plus(3, weights="imagenet", separable=True, **NETWORK),
        keras_deeplab.UNet(3, weights="imagenet", **NETWORK),
        keras_deeplab.SPPNet(3, weights="imagenet", dense=(), **NETWORK),
    ]
    right = network.get_layer("block_7_depthwise").weights[0]
    for model in models:
        config = model.get_config()
        assert config["backbone_options"]["padding"] == "end"
        assert config["preprocessing"] == "tf"
        assert all(path.startswith("backbone/") for path in model.transfer_report.kept)
        assert not any(path.startswith("backbone/") for path in model.transfer_report.fresh)
    for found in (backbone, *(model.backbone for model in models)):
        np.testing.assert_array_equal(found.get_layer("block7_depthwise_conv").kernel, right)
    features = keras.Model(network.inputs[0], network.get_layer("block_16_project_BN").output)
    x = image(64, 96) / 127.5 - 1
    expected = features(x).numpy()
    assert np.abs(backbone(x).numpy() - expected).max() < 1e-4 * expected.std()
    assert Site.requests == {IMAGENET.file_name: 1}


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: keras_deeplab.DeepLabV3(3, tiny(), weights="imagenet"),
            "imagenet: published weights are for backbones by name.* a network of your own",
        ),
        (
            lambda: keras_deeplab.UNet(3, weights="imagenet"),
            "imagenet: published .* by name: `backbone` must be one, received None",
        ),
        (
            lambda: weights.convert("pascal_voc"),
            "asked for as NAME/MODEL/BACKBONE, such as 'pascal_voc/DeepLabV3/mobilenet_v2'",
        ),
        (
            lambda: weights.convert("imagenet/DeepLabV3/mobilenet_v2"),
            "mobilenet_v2 without a head: build a model on mobilenet_v2 with weights=",
        ),
        (
            lambda: keras_deeplab.DeepLabV3(weights="pascal_vok", **NETWORK),
            "pascal_vok: no such weights are published for DeepLabV3 on mobilenet_v2; there are: "
            "'pascal_voc', 'pascal_voc_trainval', 'cityscapes', 'imagenet'",
        ),
        (
            lambda: weights.convert("pascal_vok/DeepLabV3/mobilenet_v2"),
            "pascal_vok: no such weights .* there are: 'pascal_voc', ",
        ),
        (
            lambda: weights.convert("pascal_voc/DeepLabV3/mobilenet"),
            "no such weights are published for DeepLabV3 on mobilenet; there are: none. "
            "'pascal_voc' is there for DeepLabV3 on mobilenet_v2; ",
        ),
        (lambda: weights.convert("runs/first/model.keras"), "model.keras: there is no such file"),
    ],
)
def test_names_that_do_not_fit_say_what_there_is(site, tmp_path, call, message):
    with pytest.raises(WeightsError, match=message):
        call()
    assert cached(tmp_path) <= {
        IMAGENET.file_name,
        f".{IMAGENET.file_name}.sha256",
        f"{IMAGENET.file_name}.converted-1.npz",
    }


def test_the_list_is_the_registry(site):
    rows = weights.list()
    assert [row["file"] for row in rows] == [entry.url for entry in published.PUBLISHED]
    assert rows[0]["file"] == f"{site}/{ENTRY.file_name}"
    assert {"weights", "model", "backbone", "classes", "licence"} < set(rows[0])
