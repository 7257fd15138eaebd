"""Models of the Hugging Face Hub, downloaded from a server on this machine."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from calibration import image
from hub_server import serving
from models.networks import calibrated, tiny

import keras_deeplab as kd
from keras_deeplab.cli import analyze, evaluate, predict
from keras_deeplab.demo.choice import open_choice
from keras_deeplab.weights.hub import is_address, local_path

pytest.importorskip("huggingface_hub")
INFO = json.dumps({"classes": ["sky", "road", "car"]}).encode()


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("stored") / "a.keras"
    calibrated("v3_plus").save(path)
    return path.read_bytes()


@pytest.fixture
def hub(tmp_path, stored):
    with serving(tmp_path / "cache") as found:
        found.commit("user/street", {"model.keras": stored, "dataset.json": INFO, "run.py": b"1/0"})
        yield found


def same(model):
    x = image(33, 41)
    np.testing.assert_allclose(model(x), calibrated("v3_plus")(x), atol=1e-5)
    return True


@pytest.mark.slow
def test_every_function_that_opens_models_takes_an_address(hub, logs):
    address = "hf://user/street"
    assert same(kd.load_model(address))
    assert same(kd.from_pretrained(address))
    fresh = kd.DeepLabV3Plus(3, tiny(), aspp_filters=8, decoder_filters=8)
    kd.weights.load(fresh, address)
    assert same(fresh)
    choice = open_choice(address)
    assert same(choice.model)
    assert choice.info.classes == ("sky", "road", "car")
    commit = hub.revisions["user/street", "main"]
    assert f"{address} is at revision {commit}" in logs.text
    files = [(method, path) for method, path in hub.requests if not path.startswith("api/")]
    assert {path.rpartition("/")[2] for _, path in files} == {"model.keras", "dataset.json"}
    gets = [path for method, path in files if method == "GET"]
    assert len(gets) == 2  # the cache has them afterwards


def test_a_revision_stays_and_a_branch_moves(hub, stored):
    old = hub.revisions["user/street", "main"]
    first = local_path("hf://user/street")
    hub.commit("user/street", {"dataset.json": b'{"classes": ["a", "b", "c"]}'})
    second = local_path("hf://user/street")
    assert (first.parent.name, second.parent.name) == (old, hub.revisions["user/street", "main"])
    assert first.with_name("dataset.json").read_bytes() == INFO
    assert second.with_name("dataset.json").read_bytes() != INFO
    assert local_path(f"hf://user/street@{old}") == first
    hub.commit("user/street", {"dataset.json": b'{"classes": ["d", "e", "f"]}'})
    third = hub.revisions["user/street", "main"]
    hub.commit("user/street", {"dataset.json": INFO})
    found = local_path(f"hf://user/street@{third}")
    assert b'"d"' in found.with_name("dataset.json").read_bytes()
    hub.down = True  # then the cache is used
    assert local_path(f"hf://user/street@{old}") == first


BAD = {
    "hf://user": "must be hf://USER/NAME or hf://USER/NAME@REVISION",
    "hf://user/street@../../up": "must be hf://USER/NAME or hf://USER/NAME@REVISION",
    "hf://user/street/model.keras": "must be hf://USER/NAME or hf://USER/NAME@REVISION",
    "hf://user/other": "there is no such repository. If it is private, log in",
    "hf://user/street@v2": "it has no such revision",
    "hf://user/empty": "it has no model.keras",
}


@pytest.mark.parametrize("address", BAD)
def test_errors_of_a_download(address, hub):
    hub.commit("user/empty", {"README.md": b"a"})
    with pytest.raises(kd.weights.WeightsError, match=f"^{address}: .*") as found:
        kd.load_model(address)
    assert BAD[address] in str(found.value)


@pytest.mark.slow
def test_a_cut_off_download_leaves_no_file(hub, tmp_path):
    hub.truncated = True
    with pytest.raises(kd.weights.WeightsError, match="it cannot be downloaded"):
        kd.load_model("hf://user/street")
    assert not list(tmp_path.rglob("model.keras"))
    hub.truncated = False
    assert same(kd.load_model("hf://user/street"))


def test_an_unreachable_hub(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(kd.weights.WeightsError, match="cannot be reached, and the cache does not"):
        kd.load_model("hf://user/street")


def test_damaged_and_large_files_are_refused(hub, stored):
    damaged = bytearray(stored)
    damaged[len(stored) // 2] ^= 255
    hub.commit("user/damaged", {"model.keras": bytes(damaged)})
    with pytest.raises(kd.weights.WeightsError):
        kd.load_model("hf://user/damaged")
    hub.commit("user/large", {"model.keras": stored, "dataset.json": b" " * (9 << 20)})
    with pytest.raises(kd.weights.WeightsError, match=r"dataset.json has more than 8388608 bytes"):
        kd.load_model("hf://user/large")


@pytest.mark.slow
def test_the_commands_take_an_address(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    from PIL import Image

    Image.fromarray(image(40, 48)[0].astype(np.uint8)).save("a.png")
    model = ["--model", "hf://user/street"]
    assert predict.main([*model, "--images", "a.png"]) == 0
    assert re.search(r"a\.png: (sky|road|car) \d", capsys.readouterr().out)  # of dataset.json
    assert analyze.main([*model, "--size", "65"]) == 0
    assert "receptive field" in capsys.readouterr().out.lower()
    assert evaluate.main([*model, "--data", "shapes"]) == 2
    assert "predicts 3 classes, but shapes has" in capsys.readouterr().err
    assert predict.main(["--model", "hf://user/none", "--images", "a.png"]) == 2
    assert "error: hf://user/none: there is no such repository" in capsys.readouterr().err


def test_paths_are_no_addresses(tmp_path):
    assert not is_address(tmp_path)
    assert local_path("~/a.keras").is_absolute()
