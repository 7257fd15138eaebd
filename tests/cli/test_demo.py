"""The command that serves the demo."""

from __future__ import annotations

import json
import socket

import pytest
import uvicorn
from cli.test_bad_commands import refused
from demo.test_demo_app import INFO
from inference.test_predicting import channel_model
from starlette.testclient import TestClient

from keras_deeplab.cli import demo


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_it_serves_this_machine_and_others_with_a_warning(host, tmp_path, monkeypatch, capsys):
    channel_model().save(tmp_path / "model.keras")
    (tmp_path / "dataset.json").write_text(json.dumps(INFO.to_dict()))
    served = {}

    def run(server, sockets):
        served.update(app=server.config.app, address=sockets[0].getsockname())
        raise KeyboardInterrupt

    monkeypatch.setattr(uvicorn.Server, "run", run)
    arguments = ["--model", str(tmp_path / "model.keras"), "--port", "0", "--host", host]
    assert demo.main(arguments) == 0
    printed = capsys.readouterr().out
    assert served["address"][0] == host
    assert f"Open http://{host}:{served['address'][1]} in a browser" in printed
    is_local = host == "127.0.0.1"
    assert ("Warning: everybody who reaches 0.0.0.0 can use this page." in printed) != is_local
    with TestClient(served["app"], base_url="http://127.0.0.1") as client:
        (model,) = client.get("/models").json()["models"]
        assert model["classes"] == list(INFO.classes)
        foreign = client.get("/models", headers={"host": "a.example"}).status_code
    assert foreign == (400 if is_local else 200)


def test_a_port_in_use_is_an_error_before_the_model_is_read(capsys):
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = used.getsockname()[1]
        message = refused(demo, f"--model none.keras --port {port}", capsys)
    assert "`--host, --port` must be an address and a port of this machine that are " in message
    assert "127.0.0.1" in message
