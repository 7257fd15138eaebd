"""Published weights from a server into models, downloaded once."""

from __future__ import annotations

import dataclasses
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
from keras_deeplab.weights import WeightsError, published
from keras_deeplab.weights.names import tf1_deeplab

PIXELS = image(65, 97)
NAME, NETWORK = "pascal_voc", {"backbone": "mobilenet_v2"}
HALF = {"backbone_options": {"depth_multiplier": 0.5}}
ENTRY = published.find(NAME, "DeepLabV3", "mobilenet_v2")
HALF_ENTRY = published.find(NAME, "DeepLabV3", "mobilenet_v2", {"depth_multiplier": 0.5})
IMAGENET = published.find("imagenet", "DeepLabV3", "mobilenet_v2")


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
    arrays = as_the_authors_write_it(scattered(model, seed), {**tf1_deeplab.mobilenet_v2(), **HEAD})
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


def cached(tmp_path) -> set[str]:
    folder = tmp_path / "keras_deeplab"
    return {file.name for file in folder.iterdir()} if folder.is_dir() else set()


def is_the_same(model: keras.Model, original: keras.Model) -> bool:
    right, found = original(PIXELS).numpy(), model(PIXELS).numpy()
    return right.shape == found.shape and bool(np.all(found == right))


def test_the_model_is_the_authors_network(site, originals, tmp_path):
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
    assert cached(tmp_path) == {ENTRY.file_name}
    again = keras_deeplab.DeepLabV3(weights=NAME, **NETWORK)
    assert again.get_config() == config
    assert again.transfer_report == model.transfer_report
    assert is_the_same(again, original)
    assert Site.requests == {ENTRY.file_name: 1}


def test_other_classes_and_other_widths(site, originals):
    model = keras_deeplab.DeepLabV3(5, weights=NAME, **NETWORK)
    assert model.transfer_report.missing_keys == ("logits",)
    assert model.transfer_report.notes == (
        "logits predicts 5 classes, the checkpoint's 21: it was not loaded",
    )
    original = originals[ENTRY.file_name][0]
    inner = [keras.Model(m.inputs[0], m.get_layer("aspp").output) for m in (model, original)]
    np.testing.assert_array_equal(inner[0](PIXELS), inner[1](PIXELS))
    half = keras_deeplab.DeepLabV3(weights=NAME, **NETWORK, **HALF)
    assert is_the_same(half, originals[HALF_ENTRY.file_name][0])
    assert Site.requests == {ENTRY.file_name: 1, HALF_ENTRY.file_name: 1}


def test_load_and_from_pretrained_take_the_names(site, originals):
    model = scattered(keras_deeplab.DeepLabV3(weights=NAME, **NETWORK), 9)
    weights.load(model, NAME)
    assert is_the_same(model, originals[ENTRY.file_name][0])
    found = weights.from_pretrained(f"{NAME}/DeepLabV3/mobilenet_v2")
    assert is_the_same(found, originals[ENTRY.file_name][0])
    half = weights.from_pretrained(f"{NAME}/DeepLabV3/mobilenet_v2", **HALF, output_stride=8)
    assert half.output_stride == 8
    np.testing.assert_array_equal(half.weights[0], originals[HALF_ENTRY.file_name][0].weights[0])
    assert Site.requests == {ENTRY.file_name: 1, HALF_ENTRY.file_name: 1}


def test_a_name_is_not_the_folder_that_lies_here(site, originals, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir()
    assert (
        weights.open_checkpoint(NAME, "DeepLabV3", "mobilenet_v2").model_arguments["num_classes"]
        == 21
    )
    with pytest.raises(WeightsError, match="a folder that holds no TensorFlow checkpoint"):
        weights.open_checkpoint(f"./{NAME}", "DeepLabV3", "mobilenet_v2")


def test_moving_averages_of_a_file_without_them(site):
    with pytest.raises(WeightsError, match="`moving_averages` must be False: it holds none"):
        weights.from_pretrained(f"{NAME}/DeepLabV3/mobilenet_v2", moving_averages=True)


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
    reason = {"hash": "its hash is not", "404": "404", "refused": "refused"}
    with pytest.raises(WeightsError) as caught:
        keras_deeplab.DeepLabV3(weights=NAME, **NETWORK)
    assert str(caught.value).startswith(f"{url}: ")
    assert reason.get(fault, "incomplete") in str(caught.value)
    assert cached(tmp_path) == set()


def test_imagenet_into_every_kind_of_model(site, originals):
    network = originals[IMAGENET.file_name][0]
    backbone = keras_deeplab.backbones.build("mobilenet_v2", (None, None, 3), padding="end")
    assert weights.load(backbone, "imagenet").missing_keys == ()
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
        assert all(path.startswith("backbone/") for path in model.transfer_report.loaded)
        assert not any(path.startswith("backbone/") for path in model.transfer_report.missing_keys)
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
            "imagenet: published weights need a `backbone` .* Received: a network of your own",
        ),
        (
            lambda: keras_deeplab.UNet(3, weights="imagenet"),
            "imagenet: published weights need a `backbone` that has a name. Received: None",
        ),
        (
            lambda: weights.from_pretrained("pascal_voc"),
            "opened as NAME/MODEL/BACKBONE, such as 'pascal_voc/DeepLabV3/mobilenet_v2'",
        ),
        (
            lambda: weights.from_pretrained("imagenet/DeepLabV3/mobilenet_v2"),
            "mobilenet_v2 without a head: build a model on mobilenet_v2 with weights=",
        ),
        (
            lambda: keras_deeplab.DeepLabV3(weights="pascal_vok", **NETWORK),
            "pascal_vok: no such weights are published for DeepLabV3 on mobilenet_v2; there are: "
            "'pascal_voc', 'pascal_voc_trainval', 'cityscapes', 'imagenet'",
        ),
        (
            lambda: weights.from_pretrained("pascal_vok/DeepLabV3/mobilenet_v2"),
            "pascal_vok: no such weights .* there are: 'pascal_voc', ",
        ),
        (
            lambda: weights.from_pretrained("pascal_voc/DeepLabV3/mobilenet"),
            "no such weights are published for DeepLabV3 on mobilenet; there are: none. "
            "'pascal_voc' is there for DeepLabV3 on mobilenet_v2; ",
        ),
        (
            lambda: weights.from_pretrained("runs/first/model.keras"),
            "model.keras: there is no such file",
        ),
    ],
)
def test_names_that_do_not_fit_say_what_there_is(site, tmp_path, call, message):
    with pytest.raises(WeightsError, match=message):
        call()
    assert cached(tmp_path) <= {IMAGENET.file_name}


def test_the_list_is_the_registry(site):
    rows = weights.list()
    assert [row["file"] for row in rows] == [entry.url for entry in published.PUBLISHED]
    assert rows[0]["file"] == f"{site}/{ENTRY.file_name}"
    assert {"weights", "model", "backbone", "classes", "licence"} < set(rows[0])
