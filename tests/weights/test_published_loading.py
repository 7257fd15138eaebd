"""Published weights from a server into models, downloaded once."""

from __future__ import annotations

import dataclasses
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import keras
import numpy as np
import pytest
from calibration import image
from local_server import serving
from models.networks import tiny
from parity import write_tf1
from sources import scattered, tar_gz, write_applications

import keras_deeplab
from keras_deeplab import weights
from keras_deeplab.weights import WeightsError, published

PIXELS = image(65, 97)
NAME = "pascal_voc"
NETWORK = {"backbone": "mobilenet_v2", "backbone_options": {"depth_multiplier": 0.5}}
WIDTH = {"backbone_options": {"depth_multiplier": 0.35}}
SMALLEST = {"backbone": "mobilenet_v2", **WIDTH}
ENTRY = published.find_published(NAME, "DeepLabV3", *NETWORK.values())
IMAGENET = published.find_published("imagenet", None, *SMALLEST.values())


@pytest.fixture(scope="module")
def network() -> keras.Model:
    arguments = {"include_top": False, "weights": None}
    return scattered(keras.applications.MobileNetV2((96, 96, 3), 0.35, **arguments))


@pytest.fixture(scope="module")
def published_files(authors_arrays, network, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    write_applications(folder / IMAGENET.file_name, network)
    (folder / "mobile").mkdir()
    write_tf1(folder / "mobile" / "model.ckpt-30000", authors_arrays)
    (folder / ENTRY.file_name).write_bytes(tar_gz(folder / "mobile"))
    return folder


@pytest.fixture
def site(published_files, tmp_path, monkeypatch):
    """The server, from which the registry's files come, into a cache of this test's own."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with serving(partial(SimpleHTTPRequestHandler, directory=published_files)) as address:
        entries = [
            dataclasses.replace(entry, url=f"{address}/{entry.file_name}")
            for entry in published.PUBLISHED
        ]
        monkeypatch.setattr(published, "PUBLISHED", entries)
        yield address


@pytest.mark.slow
def test_the_model_is_the_authors_network(site, authors_model, tmp_path):
    model = keras_deeplab.DeepLabV3(weights=NAME, **NETWORK)
    assert model.get_config() == authors_model.get_config()
    np.testing.assert_array_equal(model(PIXELS), authors_model(PIXELS))
    assert [file.name for file in (tmp_path / "keras_deeplab").iterdir()] == [ENTRY.file_name]
    found = weights.open_checkpoint(
        f"{NAME}/DeepLabV3/mobilenet_v2", options=NETWORK["backbone_options"]
    )
    assert (found.model, found.backbone) == ("DeepLabV3", "mobilenet_v2")
    weights.load(scattered(model, 9), NAME)
    np.testing.assert_array_equal(model(PIXELS), authors_model(PIXELS))


def test_a_name_is_not_the_folder_that_lies_here(site, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir()
    found = weights.open_checkpoint(NAME, "DeepLabV3", *NETWORK.values())
    assert found.model_arguments["num_classes"] == 21
    with pytest.raises(WeightsError, match="it is a folder without a checkpoint"):
        weights.open_checkpoint(f"./{NAME}", "DeepLabV3", *NETWORK.values())


@pytest.mark.slow
def test_imagenet_into_a_backbone_and_a_model(site, network):
    model = keras_deeplab.UNet(3, weights="imagenet", **SMALLEST)
    config = model.get_config()
    options = {"padding": "end", "depth_multiplier": 0.35, "divisible_by": 8}
    assert options.items() <= config["backbone_options"].items()
    assert config["preprocessing"] == "tf"
    assert all(path.startswith("backbone/") for path in model.transfer_report.loaded)
    assert not any(path.startswith("backbone/") for path in model.transfer_report.missing_keys)
    kernel = model.backbone.get_layer("block7_depthwise_conv").kernel
    np.testing.assert_array_equal(kernel, network.get_layer("block_7_depthwise").weights[0])


V3 = keras_deeplab.DeepLabV3


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: V3(3, tiny(), weights="imagenet"),
            "`backbone` must be a name for published weights. Received: <Functional",
        ),
        (
            lambda: keras_deeplab.UNet(3, weights="imagenet"),
            "`backbone` must be a name for published weights. Received: None",
        ),
        (
            lambda: weights.from_pretrained("pascal_voc"),
            "opened as NAME/MODEL/BACKBONE, such as 'pascal_voc/DeepLabV3/mobilenet_v2'",
        ),
        (
            lambda: weights.from_pretrained("imagenet/DeepLabV3/mobilenet_v2", **WIDTH),
            "mobilenet_v2 without a head: build a model on it with weights=",
        ),
        (
            lambda: V3(weights="pascal_vok", **NETWORK),
            "pascal_vok: no such weights are published for DeepLabV3 on mobilenet_v2, depth",
        ),
        (
            lambda: weights.from_pretrained("pascal_voc/DeepLabV3/mobilenet"),
            "no such weights are published for DeepLabV3 on mobilenet; there are: none. ",
        ),
        (
            lambda: weights.from_pretrained("runs/first/model.keras"),
            "model.keras: there is no such file",
        ),
    ],
)
def test_names_that_do_not_fit_say_what_there_is(site, call, message):
    with pytest.raises(WeightsError, match=message):
        call()
