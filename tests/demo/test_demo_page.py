"""The page of the demo in a browser, with a server of its own."""

from __future__ import annotations

import socket
import threading

import numpy as np
import pytest
import uvicorn
from browser import browse
from demo.test_demo_app import INFO
from inference.test_predicting import channel_model
from PIL import Image

from keras_deeplab.demo import Choice, make_app

READY = {"wait": "document.body.dataset.ready === 'yes'"}
STATUS = "document.getElementById('status').textContent"
DONE = {"wait": f"/^[0-9]+x[0-9]+ pixels/.test({STATUS})"}
CHOOSE = {"click": [".button", 0.5, 0.5]}
UNDER = {"script": "document.getElementById('under').textContent"}
LEGEND = {"script": "[...document.querySelectorAll('#legend li')].map((x) => x.textContent)"}


def change(name, value, event="change"):
    """Sets a control as a user does."""
    return {
        "script": f"""(() => {{ const control = document.getElementById("{name}");
            control.value = "{value}";
            control.dispatchEvent(new Event("{event}", {{bubbles: true}})); }})()"""
    }


def pixel(x, y):
    """The colour of the canvas at fractions of its size."""
    return {
        "script": f"""(() => {{ const view = document.getElementById("view");
            const x = Math.floor(view.width * {x}), y = Math.floor(view.height * {y});
            return [...view.getContext("2d").getImageData(x, y, 1, 1).data].slice(0, 3); }})()"""
    }


@pytest.fixture(scope="module")
def address():
    """A running demo with a model whose class is the brightest channel."""
    other = Choice("<b>other</b>", channel_model(), None)
    app = make_app([Choice("brightest", channel_model(), INFO), other])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A dark image, reddish on the left and greenish on the right, and a text."""
    folder = tmp_path_factory.mktemp("photos")
    pixels = np.full((120, 160, 3), 40, np.uint8)
    pixels[:, :80, 0] = pixels[:, 80:, 1] = 60
    Image.fromarray(pixels).save(folder / "two.halves.png")
    (folder / "broken.jpg").write_text("no picture")
    return folder


def near(found, expected, tolerance=6):
    return np.abs(np.subtract(found, expected)).max() <= tolerance


@pytest.mark.slow
def test_upload_overlay_and_class_under_the_pointer(address, files):
    image = {"files": [str(files / "two.halves.png")]}
    href = "document.getElementById('{}').{}"
    steps = [
        READY,
        image,
        CHOOSE,
        DONE,
        pixel(0.25, 0.5),
        pixel(0.75, 0.5),
        {"hover": ["#view", 0.25, 0.25]},
        UNDER,
        {"hover": ["#view", 0.75, 0.25]},
        UNDER,
        {"script": "document.querySelectorAll('#legend .under').length"},
        LEGEND,
        change("opacity", 0, "input"),
        pixel(0.25, 0.5),
        change("opacity", 100, "input"),
        pixel(0.25, 0.5),
        change("shown", "confidence"),
        pixel(0.25, 0.5),
        {"script": href.format("labels", "download")},
        {"script": href.format("labels", "href.slice(0, 22)")},
        {"wait": href.format("overlay", "href.startsWith('blob:')")},
        {"script": href.format("overlay", "download")},
    ]
    values = browse(address, steps)
    left, right, _, under_left, _, under_right, marked, legend = values[4:12]
    assert near(left, np.array([60, 40, 40]) / 2 + np.array(INFO.colors[0]) / 2)
    assert near(right, np.array([40, 60, 40]) / 2 + np.array(INFO.colors[1]) / 2)
    assert under_left == "red, confidence 1.00"
    assert under_right == "<green>, confidence 1.00"
    assert marked == 1
    assert sorted(legend) == ["<green>50.0 %", "red50.0 %"]
    assert near(values[13], [60, 40, 40])
    assert values[15] == list(INFO.colors[0])
    assert values[17] == [255, 255, 255]
    assert values[18:20] == ["two.halves_labels.png", "data:image/png;base64,"]
    assert values[21] == "two.halves_overlay.png"


def test_a_broken_file_gets_a_message_and_the_next_one_is_predicted(address, files):
    steps = [
        READY,
        {"files": [str(files / "broken.jpg")]},
        CHOOSE,
        {"wait": "document.getElementById('status').className === 'error'"},
        {"script": STATUS},
        {"script": "document.getElementById('view').hidden"},
        {"files": [str(files / "two.halves.png")]},
        CHOOSE,
        DONE,
        {"script": "document.getElementById('status').className"},
        {"script": "document.getElementById('view').hidden"},
    ]
    # The browser reports the status 400 on its console.
    values = browse(address, steps, allowed="400")
    assert "unreadable file: 10 bytes of an unknown format" in values[4]
    assert values[5] is True
    assert values[9:] == ["", False]


@pytest.mark.slow
def test_drop_other_model_and_a_file_that_is_too_large(address):
    """A dropped canvas of blue; the other model has class numbers; limits are in the page too."""
    drop = """(() => { const data = new DataTransfer();
        data.items.add(new File([%s], "a.bmp"));
        document.getElementById("drop").dispatchEvent(
            new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true})); })()"""
    bmp = b"BM" + (54 + 16).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
    bmp += (40).to_bytes(4, "little") + (2).to_bytes(4, "little") * 2 + b"\1\0\x18\0" + bytes(24)
    bmp += (bytes((200, 10, 10)) * 2 + bytes(2)) * 2
    steps = [
        READY,
        {"script": drop % f"new Uint8Array({list(bmp)})"},
        DONE,
        LEGEND,
        {"script": "[...document.getElementById('model').options].map((x) => x.text)"},
        change("model", "1"),
        {"wait": "document.querySelector('#legend li').textContent.startsWith('2')"},
        LEGEND,
        {"script": drop % "new Uint8Array(33 * 2 ** 20)"},
        {"wait": "document.getElementById('status').className === 'error'"},
        {"script": STATUS},
    ]
    values = browse(address, steps)
    assert values[3] == ["blue100.0 %"]
    assert values[4] == ["brightest", "<b>other</b>"]
    assert values[7] == ["2100.0 %"]
    assert values[10] == "The file has 33.0 MB; at most 32 MB are allowed."


@pytest.mark.slow
def test_the_webcam_and_a_phone(address):
    """Chromium's own test picture, mostly green; nothing is wider than the narrow window."""
    steps = [
        READY,
        {"click": ["#webcam", 0.5, 0.5]},
        {"wait": "document.getElementById('video').videoWidth > 0"},
        {"click": ["#frame", 0.5, 0.5]},
        DONE,
        LEGEND,
        {"script": "document.documentElement.scrollWidth <= innerWidth"},
        {"click": ["#webcam", 0.5, 0.5]},
        {"script": "document.getElementById('video').srcObject === null"},
    ]
    values = browse(address, steps, size=(400, 800))
    assert any(entry.startswith("<green>") for entry in values[5])
    assert values[6] is True
    assert values[8] is True
