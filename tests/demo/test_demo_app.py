"""The application of the demo: predictions, settings, and what it refuses."""

from __future__ import annotations

import base64
import io
import json
import zlib
from pathlib import Path

import anyio
import numpy as np
import pytest
from calibration import image as structured_image
from inference.test_predicting import channel_model
from models.networks import calibrated
from PIL import ExifTags, Image
from starlette.testclient import TestClient

from keras_deeplab import MultiScale, predict
from keras_deeplab.confidence import margin
from keras_deeplab.crf import PRESETS, RefinedModel
from keras_deeplab.data import DatasetInfo
from keras_deeplab.demo import Choice, app, make_app, predicting
from keras_deeplab.demo.choice import Settings
from keras_deeplab.runtimes import ExportedModel, Metadata

HOST = "http://127.0.0.1:8000"
INFO = DatasetInfo(("red", "<green>", "blue"), ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
PIXELS = structured_image(60, 84)[0].astype(np.uint8)


@pytest.fixture(scope="module")
def network():
    return calibrated("v3_plus")


@pytest.fixture(scope="module")
def client(network):
    several = MultiScale(network, (0.5, 1.0), fusion="mean", flip=True)
    choices = [
        Choice("brightest", channel_model(), INFO),
        Choice("network", network),
        Choice("several", several),
        Choice("grey", channel_model(2, 1, bias_initializer="ones")),
    ]
    with TestClient(make_app(choices), base_url=HOST, raise_server_exceptions=False) as made:
        yield made


def encoded(pixels, kind="PNG", **options):
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, kind, **options)
    return file.getvalue()


def unpacked(text, dtype, size):
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype).reshape(size)


def answered(client, pixels=PIXELS, status=200, body=None, **query):
    response = client.post("/predict", params=query, content=body or encoded(pixels))
    assert response.status_code == status, response.text
    found = response.json()
    if status == 200:
        size = found["height"], found["width"]
        found["labels"] = unpacked(found["labels"], np.uint8, size)
        found["confidence"] = unpacked(found["confidence"], np.uint8, size)
    return found


def opened(data_uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data_uri.partition(",")[2]))))


def refused(client, body, status=400, **query):
    """The message of a fault, after which the server still predicts."""
    message = client.post("/predict", params=query, content=body)
    assert message.status_code == status, message.text
    assert answered(client)["labels"].any()
    return message.json()["error"]


def test_a_prediction_is_that_of_predict(client, network):
    found = answered(client, model=1)
    probabilities = predict(network, PIXELS, probabilities=True)
    labels = predict(network, PIXELS)
    assert len(np.unique(labels)) > 1
    np.testing.assert_array_equal(found["labels"], labels)
    np.testing.assert_array_equal(opened(found["file"]), labels)
    expected = np.rint(255 * margin(probabilities))
    assert np.ptp(expected) > 50
    np.testing.assert_allclose(found["confidence"], expected, atol=1)
    np.testing.assert_allclose(
        found["shares"], np.bincount(labels.ravel(), minlength=3) / labels.size
    )
    assert np.abs(opened(found["image"]).astype(int) - PIXELS).mean() < 30  # noise, as a JPEG
    assert found["seconds"] > 0


def test_the_models_are_described(client):
    found = client.get("/models").json()
    assert found["max_bytes"] == app.MAX_BYTES
    first, second, third, _ = found["models"]
    assert first["classes"] == list(INFO.classes)
    assert first["colors"] == [list(color) for color in INFO.colors]
    assert (first["output_strides"], first["views"]) == ([], 0)
    assert second["classes"] == ["0", "1", "2"]
    assert (second["output_strides"], second["output_stride"]) == ([8, 16, 32], 16)
    assert third["views"] == 4
    assert not first["reduces"] | third["reduces"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "query, expected",
    [
        ({"scales": "0.5 1"}, lambda m: MultiScale(m, (0.5, 1.0), fusion="mean")),
        ({"flip": 1}, lambda m: MultiScale(m, (1.0,), fusion="mean", flip=True)),
        (
            {"output_stride": 32, "scales": "0.75", "crf": "v2"},
            lambda m: RefinedModel(
                MultiScale(m.with_output_stride(32), (0.75,), fusion="mean"), PRESETS["v2"]
            ),
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "expected",
)
def test_settings_are_applied(client, network, query, expected):
    plain = answered(client, model=1)
    found = answered(client, model=1, **query)
    confidence = 255 * margin(predict(expected(network), PIXELS, probabilities=True).clip(0, 1))
    np.testing.assert_allclose(found["confidence"], confidence, atol=1)
    assert np.abs(found["confidence"].astype(int) - plain["confidence"]).mean() > 1


@pytest.mark.parametrize(
    "scales, options, views",
    [((1.5,), {"fusion": "mean"}, 1), ((1.0,), {"flip": True}, 2), ((0.5,), {}, 0)],
)
def test_one_enlarged_view_is_the_models_own(network, scales, options, views):
    model = MultiScale(network, scales, **options)
    assert Choice("m", model, INFO).to_dict()["views"] == views


@pytest.mark.slow
def test_own_views_are_replaced_by_other_scales(client, network):
    plain = answered(client, model=1)["confidence"].astype(int)
    own = answered(client, model=2)["confidence"].astype(int)
    assert np.abs(own - plain).mean() > 1
    single = answered(client, model=2, scales="1")["confidence"]
    np.testing.assert_allclose(single, plain, atol=1)
    mirrored = MultiScale(network, (1.0,), fusion="mean", flip=True)
    flipped = answered(client, model=2, flip=1)["confidence"]
    expected = 255 * margin(predict(mirrored, PIXELS, probabilities=True))
    np.testing.assert_allclose(flipped, expected, atol=1)


def test_a_model_that_reduces_images_still_does_at_other_scales(network):
    choice = Choice("reduced", MultiScale(network, (0.5,)))
    assert choice.to_dict()["reduces"]
    other = choice.predictor(Settings(scales=(1.0,), flip=True))
    assert (other.scales, other.model.scales, other.model.model) == ((1.0,), (0.5,), network)


def test_models_at_other_settings_are_kept_and_few(network):
    choice = Choice("network", network)
    at_8 = choice.predictor(Settings(output_stride=8))
    assert choice.predictor(Settings(output_stride=8, side=512)) is at_8
    assert choice.predictor(Settings(output_stride=8, crf="v1")).model is at_8
    assert choice.predictor(Settings(output_stride=16)) is network
    assert choice.predictor(Settings()) is network


def test_large_images_are_reduced(client):
    pixels = np.zeros((200, 1030, 3), np.uint8)
    pixels[:, :515, 0] = pixels[:, 515:, 2] = 200
    whole, reduced = answered(client, pixels), answered(client, pixels, side=512)
    assert whole["labels"].shape == (200, 1030)
    assert reduced["labels"].shape == opened(reduced["image"]).shape[:2] == (99, 512)
    np.testing.assert_allclose(reduced["shares"], [0.5, 0, 0.5], atol=0.005)
    assert answered(client, pixels[:, :400], side=512)["labels"].shape == (200, 400)
    grey = answered(client, pixels[..., 0], side=512, model=3)
    assert opened(grey["image"]).shape == (99, 512)


def exif(orientation):
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    return tags


def test_formats_and_kinds_of_images(client):
    shown = Image.fromarray(PIXELS)
    labels = PIXELS.argmax(-1)
    for kind in ("PNG", "BMP", "TIFF"):
        np.testing.assert_array_equal(answered(client, body=encoded(shown, kind))["labels"], labels)
    alpha = shown.convert("RGBA")
    alpha.putalpha(Image.fromarray(PIXELS[..., 0]))
    np.testing.assert_array_equal(answered(client, alpha)["labels"], labels)
    np.testing.assert_array_equal(answered(client, shown.convert("L"))["labels"], 0)
    wide = answered(client, PIXELS[..., 0].astype(np.uint16) * 256)
    assert np.abs(opened(wide["image"])[..., 0].astype(int) - PIXELS[..., 0]).mean() < 12
    turned = answered(client, body=encoded(shown, exif=exif(6)))  # 6: turn it clockwise
    np.testing.assert_array_equal(turned["labels"], np.rot90(labels, -1))
    assert opened(turned["image"]).shape == (84, 60, 3)
    jpeg = answered(client, body=encoded(shown, "JPEG", quality=95))["labels"]
    assert (jpeg == labels).mean() > 0.6
    one = answered(client, PIXELS[:1, :1])
    assert one["labels"].shape == (1, 1)


def bomb(side):
    """A PNG whose header says that it has so many pixels on each side."""
    whole = encoded(PIXELS)
    header = b"IHDR" + side.to_bytes(4, "big") * 2 + whole[24:29]
    return whole[:12] + header + zlib.crc32(header).to_bytes(4, "big") + whole[33:]


BROKEN = [
    (b"", "unreadable file: 0 bytes of an unknown format"),
    (b"a text", "unreadable file: 6 bytes"),
    (b"GIF89a" + bytes(50), "GIF data"),
    (encoded(PIXELS, "JPEG")[:-400], "truncated file"),
    (encoded(PIXELS)[:200], "truncated file"),
    (bomb(9000), "`image` must be at most 50 megapixels. Received: image='9000x9000'"),
    (bomb(60_000), "`image` must be at most 50 megapixels. Received: image="),
]


@pytest.mark.parametrize("body, message", BROKEN, ids=[message for _, message in BROKEN])
def test_broken_files_get_a_message(client, body, message):
    assert message in refused(client, body)


@pytest.mark.parametrize(
    "query, message",
    [
        ({"model": 4}, "`model` must be a number from 0 to 3. Received: model='4'"),
        ({"model": "-1"}, "`model` must be"),
        ({"model": "../a.keras"}, "`model` must be"),
        ({"output_stride": 1, "model": 1}, "`output_stride` must be one of None, 8, 16, 32"),
        ({"output_stride": 8}, "`output_stride` must be left out for this model"),
        ({"scales": "99", "model": 1}, "`scales` must be distinct ones of"),
        ({"scales": "1 1", "model": 1}, "`scales` must be distinct ones of"),
        (
            {"scales": "a"},
            "`scales` must be a number, or several with spaces. Received: scales='a'",
        ),
        ({"side": 100000}, "`side` must be one of None, 512, 1024, 2048"),
        ({"flip": "yes"}, "`flip` must be one of False, True. Received: flip='yes'"),
        ({"crf": "crf.json"}, "`crf` must be one of None, 'v1', 'v2'"),
        ({"output": "/tmp"}, "`query` must be one of"),
    ],
    ids=str,
)
def test_wrong_settings_get_a_message(client, query, message):
    assert message in refused(client, encoded(PIXELS), **query)


def test_too_many_pixels_for_the_classes(client, monkeypatch):
    monkeypatch.setattr(predicting, "MEMORY", 3 * 4 * 3 * 60 * 84)
    assert answered(client)["labels"].size == 60 * 84
    monkeypatch.setattr(predicting, "MEMORY", 3 * 4 * 3 * 60 * 84 - 1)
    response = client.post("/predict", content=encoded(PIXELS))
    assert "megapixels for 3 classes" in response.json()["error"]


def test_too_large_files(client, monkeypatch):
    monkeypatch.setattr(app, "MAX_BYTES", 100_000)
    message = "An image file must be of at most 0 MB."
    assert refused(client, bytes(100_001), 413) == message
    read = []

    def parts():
        for _ in range(100):
            read.append(1)
            yield bytes(50_000)

    response = client.post("/predict", content=parts())
    assert response.status_code == 413


def test_memory_and_unexpected_faults(client, monkeypatch):
    def failing(fault):
        def fail(*_):
            raise fault

        return fail

    for fault, status, message in (
        (MemoryError("small"), 507, "The memory does not suffice: small"),
        (KeyError("x"), 500, "The prediction failed (KeyError); see the terminal."),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(app, "prediction", failing(fault))
            response = client.post("/predict", content=b"")
        assert (response.status_code, response.json()["error"]) == (status, message)
    assert answered(client)["labels"].any()


def test_an_upload_that_is_broken_off_is_no_failure_of_the_server(network):
    made = make_app([Choice("network", network)])
    messages = [{"type": "http.request", "body": encoded(PIXELS)[:100], "more_body": True}]
    messages += [{"type": "http.disconnect"}]
    sent = []

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b""}
    scope |= {"headers": [(b"host", b"127.0.0.1:8000")]}
    anyio.run(made, scope, receive, send)  # raises what a server would log
    assert messages == []
    assert sent[0]["status"] == 500


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8000", "localhost.a"])
def test_other_hosts_are_refused(client, host):
    for path in ("/", "/models"):
        assert client.get(path, headers={"host": host}).status_code == 400
    assert client.post("/predict", headers={"host": host}, content=b"").status_code == 400


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1:8000", "[::1]:8000"])
def test_names_of_this_machine(client, host):
    headers = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
    body = encoded(PIXELS)
    assert client.post("/predict", headers=headers, content=body).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
    ids=str,
)
def test_other_pages_are_refused(client, headers):
    response = client.post("/predict", headers=headers, content=encoded(PIXELS))
    assert response.status_code == 403
    assert response.json() == {"error": "Only the page itself may send images."}


def test_the_page_loads_nothing_from_elsewhere(client):
    pages = [client.get("/"), client.get("/")]
    nonces = set()
    for page in pages:
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        nonce = policy.partition("'nonce-")[2].partition("'")[0]
        assert len(nonce) > 15
        assert page.text.count(f'nonce="{nonce}"') == 2
        nonces.add(nonce)
        assert "//" not in page.text.replace("\n// ", "").replace("  // ", "").replace(" // ", "")
        assert page.headers["x-content-type-options"] == "nosniff"
    assert len(nonces) == 2
    assert client.get("/predict").status_code == 405
    for path in ("/../setup.cfg", "/page.html", "/static/../../setup.cfg"):
        assert client.get(path).status_code == 404


def test_models_of_other_images_are_refused():
    with pytest.raises(ValueError, match="8-bit images in RGB or grey"):
        Choice("bands", channel_model(3, 4))
    info = DatasetInfo(INFO.classes, INFO.colors, value_range=(0, 4095))
    with pytest.raises(ValueError, match="8-bit images in RGB or grey"):
        Choice("range", channel_model(), info)
    with pytest.raises(ValueError, match="at most 255 classes"):
        Choice("many", channel_model(300))
    labels = ExportedModel(Path(), Metadata(3, (None, None, 3), ("labels",)), dict)
    with pytest.raises(ValueError, match="an export with probabilities or logits"):
        Choice("labels", labels)


def test_the_result_is_valid_json():
    found = predicting.prediction(encoded(PIXELS), Choice("a", channel_model()), Settings())
    json.dumps(found, allow_nan=False)
