from __future__ import annotations

import numpy as np
import pytest
from calibration import image
from hub_server import serving
from models.networks import calibrated

import keras_deeplab as kd
from keras_deeplab.cli import push

pytestmark = pytest.mark.slow

pytest.importorskip("huggingface_hub")
UPLOADED = {"model.keras", "README.md", "dataset.json"}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    calibrated("v3_plus").save(folder / "model.keras")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    (folder / "dataset.json").write_text('{"classes": ["a", "b", "c"]}')
    for name in ("run.json", "last.keras", "history.csv", "secret.txt"):
        (folder / name).write_text("not for others")
    return folder


@pytest.fixture
def hub(tmp_path):
    with serving(tmp_path / "cache") as found:
        yield found


def test_the_listed_files_are_uploaded_and_load_again(run, hub):
    address = kd.push_to_hub(run, "user/mine", token="hf_x")
    commit = hub.revisions["user/mine", "main"]
    assert address == f"hf://user/mine@{commit}"
    files = hub.commits["user/mine", commit]
    assert files == {name: (run / name).read_bytes() for name in UPLOADED}
    assert hub.private["user/mine"]
    x = image(33, 41)
    np.testing.assert_allclose(kd.load_model(address)(x), calibrated("v3_plus")(x), atol=1e-5)


def test_nothing_is_published_by_accident(run, hub):
    hub.commit("user/open", {"notes.txt": b"kept"})
    with pytest.raises(ValueError, match="`private` must be False, as user/open is public"):
        kd.push_to_hub(run, "user/open", token="hf_x")
    assert set(hub.commits["user/open", hub.revisions["user/open", "main"]]) == {"notes.txt"}
    kd.push_to_hub(run, "user/open", private=False, token="hf_x")
    files = hub.commits["user/open", hub.revisions["user/open", "main"]]
    assert set(files) == {*UPLOADED, "notes.txt"}


def test_errors_before_and_during_an_upload(run, hub, capsys):
    with pytest.raises(ValueError, match="`repo` must be 'USER/NAME'"):
        kd.push_to_hub(run, "mine")
    (run / "README.md").rename(run / "other.md")
    with pytest.raises(ValueError, match="Write the model card first"):
        kd.push_to_hub(run, "user/mine")
    (run / "other.md").rename(run / "README.md")
    hub.down = True
    assert push.main(["--run", str(run), "--repo", "user/mine"]) == 2
    assert "error: user/mine: the upload failed: " in capsys.readouterr().err
    hub.down = False
    (run / "model.keras").write_bytes(b"damaged")
    requests = len(hub.requests)
    with pytest.raises(kd.weights.WeightsError, match="damaged"):
        kd.push_to_hub(run, "user/mine")
    assert len(hub.requests) == requests


def test_the_command(run, hub, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert push.main(["--run", str(run), "--repo", "user/mine", "--public"]) == 0
    printed = capsys.readouterr().out
    assert f"Uploaded hf://user/mine@{hub.revisions['user/mine', 'main']}" in printed
    assert not hub.private["user/mine"]
