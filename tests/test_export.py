from __future__ import annotations

import io
import json
import pickle
import re
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from calibration import calibrate, image
from PIL import Image

import keras_deeplab
from keras_deeplab import export, verification
from keras_deeplab.export import ExportError
from keras_deeplab.inference import predict


def small_model(classes=5, shape=(None, None, 3), policy="float32", dtype=None):
    """A strided network with batch norm and dropout whose weights and statistics are random."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape, dtype=dtype)
    x = keras.layers.Rescaling(1 / 127.5, -1.0, dtype=policy)(inputs)
    x = keras.layers.Conv2D(8, 3, strides=4, padding="same", dtype=policy, name="conv")(x)
    x = keras.layers.BatchNormalization(dtype=policy)(x)
    x = keras.layers.Dropout(0.5, dtype=policy)(keras.layers.ReLU(dtype=policy)(x))
    x = keras.layers.Conv2D(classes, 1, dtype=policy, name="head")(x)
    model = keras.Model(inputs, keras_deeplab.layers.ResizeLike(dtype="float32")(x, inputs))
    return calibrate(model, image(shape[0] or 33, shape[1] or 33, channels=shape[2]))


def pictures(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def expected(model, images):
    return tf.nn.softmax(model(images)).numpy()


def encoded(array, kind="PNG", mode=None, **options):
    file = io.BytesIO()
    Image.fromarray(array).convert(mode).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model with an optimizer, its SavedModel and this loaded."""
    model = small_model()
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    path = tmp_path_factory.mktemp("export") / "saved_model"
    assert export.saved_model(model, path, max_pixels=1_000_000) == path
    return model, path, tf.saved_model.load(str(path)).signatures


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (3, 40, 31, 3)])
def test_serving_default_at_any_size_and_batch(exported, shape):
    model, _, signatures = exported
    images = pictures(shape)
    output = signatures["serving_default"](images=tf.constant(images))
    assert set(output) == {"labels", "probabilities"}
    assert output["labels"].dtype == tf.uint8
    assert output["probabilities"].dtype == tf.float32
    right = expected(model, images)
    assert right.std() > 0.01
    np.testing.assert_allclose(output["probabilities"], right, atol=1e-5)
    np.testing.assert_array_equal(output["labels"], np.argmax(output["probabilities"], -1))


def test_signatures_and_weights_are_as_documented(exported):
    model, path, signatures = exported
    inputs = {name: f.structured_input_signature[1] for name, f in signatures.items()}
    assert inputs == {
        "serving_default": {"images": tf.TensorSpec((None, None, None, 3), tf.uint8, "images")},
        "serving_encoded": {"encoded": tf.TensorSpec((None,), tf.string, "encoded")},
    }
    stored = tf.train.list_variables(str(path / "variables" / "variables"))
    numbers = sum(int(np.prod(shape)) for name, shape in stored if "CHECKPOINTABLE" not in name)
    assert numbers == model.count_params()


def test_serving_encoded_reads_files_as_predict_does(exported, tmp_path):
    """A JPEG with an EXIF orientation, and another format."""
    model, _, signatures = exported
    exif, paths = Image.Exif(), [tmp_path / "a.jpg", tmp_path / "b.webp"]
    exif[0x0112] = 6
    Image.fromarray(pictures((21, 34, 3))).save(paths[0], exif=exif)
    Image.fromarray(pictures((34, 21, 4))).save(paths[1], lossless=True)
    files = tf.constant([path.read_bytes() for path in paths])
    output = signatures["serving_encoded"](encoded=files)
    np.testing.assert_array_equal(output["labels"], [predict(model, path) for path in paths])


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def declared_png(width, height, first=b""):
    """A PNG of a few bytes that declares a size, with chunks in front of its header."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + first + header + pixels + chunk(b"IEND", b"")


def declared_jpeg(width, height):
    file = bytearray(encoded(pictures((8, 8, 3)), "JPEG"))
    start = file.index(b"\xff\xc0") + 5
    file[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(file)


def images_request(shape, dtype=np.uint8):
    return "serving_default", {"images": np.zeros(shape, dtype)}


def files_request(*files):
    return "serving_encoded", {"encoded": np.array(files, object)}


PNG, JPEG, BMP = (encoded(pictures((64, 64, 3)), kind) for kind in ("PNG", "JPEG", "BMP"))
WEBP = encoded(np.zeros((1001, 1000, 3), np.uint8), "WEBP", lossless=True)
SHAPE = r"Shape of tensor .* is not compatible with expected shape "
IMAGES, FILES = SHAPE + r"\[\?,\?,\?,3\]", SHAPE + r"\[\?\]"
PIXELS = "images must hold 1 to 1000000 pixels"
DECLARED = "encoded must hold images of up to 1000000 pixels"
DTYPE, DAMAGED = "Type mismatch", "Invalid PNG|jpeg::Uncompress failed|Invalid JPEG data"
NO_FORMAT, KNOWN = "file format|JPEG", "must hold JPEG, PNG, WebP .* or BMP"
IN_FRONT = "begin with their header"
SHAPES = {
    IMAGES: [
        (),
        (3,),
        (40, 50, 3),
        (1, 1, 8, 8, 3),
        (1, 40, 50, 0),
        (1, 40, 50, 4),
        (1, 3, 40, 50),
    ],
    PIXELS: [  # empty, large, many, tiny and thin
        *((0, 40, 50, 3), (1, 0, 50, 3), (1, 40, 0, 3), (1, 1100, 1000, 3), (300, 64, 64, 3)),
        *((1000, 1, 1, 3), (1, 1, 40000, 3), (1, 40000, 1, 3)),
    ],
}
MALFORMED = {
    **{f"shape {s}": (images_request(s), rule) for rule, shapes in SHAPES.items() for s in shapes},
    **{dtype: (images_request((1, 8, 9, 3), dtype), DTYPE) for dtype in ("f4", "i4", "?")},
    "files as images": (("serving_default", {"images": np.array([PNG], object)}), DTYPE),
    "missing images": (("serving_default", {}), "must feed a value"),
    "missing files": (("serving_encoded", {}), "must feed a value"),
    "images as files": (("serving_encoded", {"encoded": pictures((1, 8, 8, 3))}), DTYPE),
    "one file": (("serving_encoded", {"encoded": np.array(PNG, object)}), FILES),
    "no files": (files_request(), DECLARED + r".*\[0\]"),
    "empty file": (files_request(b""), KNOWN),
    "text": (files_request(b"no picture"), NO_FORMAT),
    "PNG signature": (files_request(PNG[:8]), IN_FRONT),
    "cut PNG header": (files_request(PNG[:20]), DAMAGED),
    "cut PNG": (files_request(PNG[:900]), DAMAGED),
    "PNG without pixels": (files_request(declared_png(8, 8)), DAMAGED),
    "JPEG start": (files_request(JPEG[:3]), DAMAGED),
    "cut JPEG": (files_request(JPEG[:900]), DAMAGED),
    "JPEG of size 0": (files_request(declared_jpeg(0, 0)), DAMAGED),
    "cut BMP": (files_request(BMP[:900]), "."),
    "TIFF": (files_request(b"II*\0" + bytes(99)), NO_FORMAT),
    "files of two sizes": (
        files_request(PNG, encoded(pictures((8, 9, 3)))),
        r"Incompatible shapes.* \[64,64,3\] vs. \[8,9,3\]",
    ),
    "a good and a bad file": (files_request(PNG, b"no picture"), NO_FORMAT),
    "PNG of 1001x1000": (files_request(declared_png(1001, 1000)), DECLARED),
    "PNG of 2^31 - 1": (files_request(declared_png(2**31 - 1, 2**31 - 1)), DECLARED),
    "PNG of 2^32 - 1": (files_request(declared_png(2**32 - 1, 2**32 - 1)), DECLARED),
    "PNGs together": (files_request(*[declared_png(600, 600)] * 3), DECLARED),
    "PNG with a chunk in front": (
        files_request(declared_png(23000, 23000, chunk(b"abCd", b"x"))),
        IN_FRONT,
    ),
    "JPEG of 65500x65500": (files_request(declared_jpeg(65500, 65500)), DECLARED),
    "WebP of 1000x1001": (files_request(WEBP), DECLARED),
}
VALID = {
    "valid": ("serving_default", {"images": pictures((1, 40, 50, 3))}),
    **{f"{n}x{n}": images_request((1, n, n, 3)) for n in range(1, 9)},
    "thin": images_request((2, 1, 3000, 3)),
    "encoded": files_request(PNG, JPEG),
    "largest image": images_request((1, 992, 992, 3)),
}


@pytest.fixture(scope="module")
def served(exported, tmp_path_factory):
    """The responses of a server in its own process, and its exit status."""
    folder = tmp_path_factory.mktemp("served")
    requests = {**VALID, **{name: request for name, (request, _) in MALFORMED.items()}}
    (folder / "requests").write_bytes(pickle.dumps(requests))
    server = Path(__file__).with_name("serving_session.py")
    command = [sys.executable, server, exported[1], folder / "requests", folder / "responses"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    responses = [json.loads(line) for line in (folder / "responses").read_text().splitlines()]
    return {name: (message, again) for name, message, again in responses}, done


def test_no_request_ends_a_server(served):
    responses, done = served
    assert done.returncode == 0, (list(responses)[-1], done.stderr[-2000:])
    assert set(responses) == {*VALID, *MALFORMED}
    assert [name for name, (_, again) in responses.items() if not again] == []
    assert [name for name in VALID if responses[name][0] is not None] == []


@pytest.mark.parametrize("name", MALFORMED)
def test_a_server_refuses_malformed_requests(served, name):
    message, _ = served[0][name]
    assert message is not None
    assert re.search(MALFORMED[name][1], message), message


@pytest.mark.parametrize(
    "check, spec",
    [
        (lambda x: export._checked_images(x, x.shape, 9), tf.TensorSpec((None, None, None, 3))),
        (lambda x: export._checked_files(x, 9), tf.TensorSpec((None,), tf.string)),
    ],
)
def test_nothing_is_computed_before_the_checks(check, spec):
    """Order in the graph: an assertion beside the network would be too late."""
    run = tf.function(lambda x: tf.stack([check(x)], name="network"))
    graph = run.get_concrete_function(spec).graph
    found, todo = set(), [graph.get_operation_by_name("network").inputs[0].op]
    while todo:
        operation = todo.pop()
        if operation not in found:
            found.add(operation)
            todo += [*operation.control_inputs, *(tensor.op for tensor in operation.inputs)]
    assertions = {op for op in graph.get_operations() if op.type in ("Assert", "If", "StatelessIf")}
    assert assertions
    assert assertions <= found
    assert "EnsureShape" in {op.type for op in found}


@pytest.mark.parametrize(
    "kind, options",
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "exif": b"Exif\0\0" + bytes(99)}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\0\0" + bytes(99)}),
    ],
)
def test_sizes_in_headers(kind, options):
    for height, width in ((1, 1), (300, 7), (5, 1021)):
        file = encoded(pictures((height, width, 3)), kind, **options)
        assert float(export._declared_pixels(tf.constant(file))) == height * width


@pytest.mark.parametrize("file", [BMP, b"", b"text", b"II*\0", b"RIFF"])
def test_other_files_declare_nothing(file):
    assert float(export._declared_pixels(tf.constant(file))) == 0


@pytest.mark.parametrize("value", [0, 2 * 128 * 160 - 1])
def test_max_pixels_must_admit_the_comparison(tmp_path, value):
    with pytest.raises(ValueError, match="`max_pixels` must be an integer of at least 40960"):
        export.saved_model(small_model(), tmp_path / "out", max_pixels=value)
    assert list(tmp_path.iterdir()) == []


def test_mixed_precision_and_four_channels(tmp_path):
    model = small_model(shape=(None, None, 4), policy="mixed_bfloat16")
    export.saved_model(model, tmp_path / "out")
    signatures = tf.saved_model.load(str(tmp_path / "out")).signatures
    assert "serving_encoded" not in signatures
    images = pictures((2, 30, 41, 4))
    output = signatures["serving_default"](images=tf.constant(images))["probabilities"]
    assert output.dtype == tf.float32
    np.testing.assert_allclose(output, expected(model, images), atol=2e-2)


def test_one_channel_of_a_fixed_size_many_classes_and_uint8_input(tmp_path, monkeypatch):
    """By default the largest request is what was compared, where that is more than 2^24 pixels."""
    monkeypatch.setattr(export, "MAX_PIXELS", 1000)
    model = small_model(classes=300, shape=(32, 48, 1), dtype="uint8")
    export.saved_model(model, tmp_path / "out")
    signatures = tf.saved_model.load(str(tmp_path / "out")).signatures
    images = pictures((2, 32, 48, 1))
    files = tf.constant([encoded(image[..., 0]) for image in images])
    for output in (
        signatures["serving_default"](images=tf.constant(images)),
        signatures["serving_encoded"](encoded=files),
    ):
        assert output["labels"].dtype == tf.int32
        np.testing.assert_allclose(output["probabilities"], expected(model, images), atol=1e-5)
    with pytest.raises(tf.errors.InvalidArgumentError, match="48"):
        signatures["serving_encoded"](encoded=tf.constant([encoded(images[0, :31, :, 0])]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="must hold 1 to 4096 pixels"):
        signatures["serving_default"](images=tf.zeros((3, 32, 48, 1), tf.uint8))


@pytest.fixture
def copied(exported, monkeypatch):
    """Exports are copies of the one of `exported`, changed by the function that is given."""
    change = []

    def write(model, path, max_pixels):
        shutil.copytree(exported[1], path)
        for function in change:
            function(path)

    monkeypatch.setattr(export, "_write", write)
    return change.append


def test_existing_paths(exported, copied, tmp_path, monkeypatch):
    model = exported[0]
    monkeypatch.setattr(export, "verify", lambda *arguments: None)
    out = tmp_path / "deep" / "out"
    export.saved_model(model, out)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match="a SavedModel to replace with overwrite=True"):
        export.saved_model(model, out)
    copied(lambda path: (path / "second").touch())
    export.saved_model(model, out, overwrite=True)
    (out / "second").unlink()
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "empty").mkdir()
    export.saved_model(model, tmp_path / "empty")
    (other := tmp_path / "other").mkdir()
    (other / "precious.txt").write_text("kept")
    for path in (other, other / "precious.txt"):
        with pytest.raises(FileExistsError, match="must be a new folder"):
            export.saved_model(model, path, overwrite=True)
    assert (other / "precious.txt").read_text() == "kept"


def test_an_export_with_other_outputs_never_reaches_the_path(exported, copied, tmp_path):
    other = small_model()
    other.get_layer("conv").kernel.assign(other.get_layer("conv").kernel * 1.2)
    message = r"serving_default: probabilities differ .* by up to 0\.\d+, .* 0\.0001"
    with pytest.raises(ExportError, match=message):
        export.saved_model(other, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def flip_bytes(path):
    (data,) = (path / "variables").glob("variables.data*")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 0xFF
    data.write_bytes(content)


def truncate(path):
    (path / "saved_model.pb").write_bytes((path / "saved_model.pb").read_bytes()[:1000])


@pytest.mark.parametrize("change", [flip_bytes, truncate])
def test_a_damaged_export_leaves_the_old_one(exported, copied, tmp_path, change):
    shutil.copytree(exported[1], tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    copied(change)
    with pytest.raises(ExportError, match="cannot be loaded"):
        export.saved_model(exported[0], tmp_path / "out", overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before
    tf.saved_model.load(str(tmp_path / "out"))


def test_verify_sees_one_changed_weight(exported):
    changed = keras.models.clone_model(exported[0])
    changed.set_weights(exported[0].get_weights())
    kernel = changed.get_layer("conv").kernel
    kernel.assign(kernel + 1e-7 * (np.arange(kernel.shape[-1]) == 0))
    with pytest.raises(ExportError, match="no weight of the model"):
        export.verify(changed, exported[1])


@pytest.mark.parametrize("name", ["serving_default", "serving_encoded"])
@pytest.mark.parametrize("mistake", ["labels", "probabilities"])
def test_verify_names_signature_and_output(exported, monkeypatch, name, mistake):
    """A signature whose outputs are wrong although every weight is right."""
    model, path, signatures = exported

    def wrong(**inputs):
        outputs = signatures[name](**inputs)
        return {**outputs, mistake: tf.roll(outputs[mistake], 1, 1)}

    loaded = SimpleNamespace(signatures={**signatures, name: wrong})
    monkeypatch.setattr(tf.saved_model, "load", lambda path: loaded)
    with pytest.raises(ExportError, match=f"{name}: {mistake} differ"):
        export.verify(model, path)


@pytest.mark.parametrize("name", ["serving_default", "serving_encoded"])
def test_an_endpoint_called_from_python_refuses_malformed_requests(exported, name):
    loaded = tf.saved_model.load(str(exported[1]))  # which keeps its variables alive
    entry = getattr(loaded, name)
    good, bad = {
        "serving_default": (pictures((1, 8, 9, 3)), pictures((0, 8, 9, 3))),
        "serving_encoded": (tf.constant([PNG]), tf.constant([], tf.string)),
    }[name]
    with pytest.raises(tf.errors.InvalidArgumentError):
        entry(bad)
    assert entry(good)["labels"].shape[0] == 1


def test_verify_names_a_missing_signature(exported, monkeypatch):
    model, path, signatures = exported
    loaded = SimpleNamespace(signatures={"serving_default": signatures["serving_default"]})
    monkeypatch.setattr(tf.saved_model, "load", lambda path: loaded)
    with pytest.raises(ExportError, match="must have the signature 'serving_encoded'"):
        export.verify(model, path)


def test_models_that_cannot_be_exported(exported, tmp_path):
    inputs = keras.Input((None, None, 3))
    coarse = keras.Model(inputs, keras.layers.Conv2D(4, 3, strides=2)(inputs))
    broken = small_model()
    broken.get_layer("head").bias.assign(np.full(5, np.nan))
    for model, message in ((coarse, "at the input's size"), (broken, "finite")):
        with pytest.raises(ExportError, match=message):
            export.verify(model, exported[1])
    one_class = keras.Model(inputs, keras.layers.Conv2D(1, 1)(inputs))
    with pytest.raises(ValueError, match="at least 2 classes"):
        export.saved_model(one_class, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_test_images_are_lively():
    shape = (2, 97, 129, 3)
    images, encodings = verification.test_images(shape)
    assert images.min() == 0
    assert images.max() == 255
    assert images.std() > 50
    assert not np.array_equal(images[0], images[1])
    for files in encodings:
        decoded = [tf.io.decode_image(file) for file in files]
        np.testing.assert_array_equal(np.stack(decoded), images)
    with pytest.warns(UserWarning, match="the same at every pixel"):
        verification._probabilities(tf.zeros(shape), shape)
