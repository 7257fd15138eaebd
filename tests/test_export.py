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

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_deeplab import export
from keras_deeplab.export import ExportError
from keras_deeplab.inference import predict


@keras.saving.register_keras_serializable(package="test_export")
class ResizeTo(keras.layers.Layer):
    """Resizes the first input to the second's height and width."""

    def call(self, inputs):
        return tf.image.resize(tf.cast(inputs[0], tf.float32), tf.shape(inputs[1])[1:3])

    def compute_output_shape(self, shapes):
        return (*shapes[1][:3], shapes[0][-1])


def small_model(classes=5, shape=(None, None, 3), policy="float32", seed=0, scale=3.0, dtype=None):
    """A strided network with batch norm and dropout whose weights and statistics are random."""
    keras.utils.set_random_seed(seed)
    kwargs = {"padding": "same", "dtype": policy}
    inputs = keras.Input(shape, dtype=dtype)
    x = keras.layers.Rescaling(1 / 127.5, -1.0, dtype=policy)(inputs)
    for filters in (8, 16):
        x = keras.layers.Conv2D(filters, 3, strides=2, activation="relu", **kwargs)(x)
        x = keras.layers.BatchNormalization(dtype=policy)(x)
        x = keras.layers.Dropout(0.5, dtype=policy)(x)
    x = keras.layers.Conv2D(classes, 1, **kwargs)(x)
    outputs = ResizeTo(dtype="float32")([x, inputs])
    model = keras.Model(inputs, outputs)
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.gamma.shape[0]
            layer.set_weights(
                [
                    rng.uniform(0.5, 1.5, size),
                    rng.normal(size=size),
                    rng.normal(scale=0.1, size=size),
                    rng.uniform(0.05, 0.2, size),
                ]
            )
    head = model.layers[-2]
    head.set_weights([head.get_weights()[0] * scale, rng.normal(size=classes)])
    return model


def pictures(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def expected(model, images):
    return tf.nn.softmax(tf.cast(model(tf.cast(images, tf.float32)), tf.float32)).numpy()


def png(array, mode=None, **arguments):
    file = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode, **arguments) if mode else image).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model = small_model()
    path = tmp_path_factory.mktemp("export") / "saved_model"
    assert export.saved_model(model, path) == path
    return model, path, tf.saved_model.load(str(path)).signatures


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (3, 40, 31, 3), (2, 33, 64, 3)])
def test_serving_default_at_any_size_and_batch(exported, shape):
    model, _, signatures = exported
    images = pictures(shape)
    answer = signatures["serving_default"](images=tf.constant(images))
    assert set(answer) == {"labels", "probabilities"}
    assert answer["labels"].dtype == tf.uint8
    assert answer["probabilities"].dtype == tf.float32
    right = expected(model, images)
    assert right.std() > 0.01
    np.testing.assert_allclose(answer["probabilities"], right, atol=1e-5)
    np.testing.assert_array_equal(answer["labels"], np.argmax(answer["probabilities"], -1))


def test_signatures_are_as_documented(exported):
    _, _, signatures = exported
    assert set(signatures) == {"serving_default", "serving_encoded"}
    ((_, images),) = [signatures["serving_default"].structured_input_signature]
    assert images == {"images": tf.TensorSpec((None, None, None, 3), tf.uint8, "images")}
    ((_, encoded),) = [signatures["serving_encoded"].structured_input_signature]
    assert encoded == {"encoded": tf.TensorSpec((None,), tf.string, "encoded")}


def test_serving_encoded_takes_png_of_every_kind(exported):
    model, _, signatures = exported
    color, gray = pictures((21, 34, 3)), pictures((21, 34), 1)
    rgba = np.dstack([color, pictures((21, 34), 2)])
    gray_alpha = np.dstack([gray, pictures((21, 34), 3)])
    palette = png(color, "P", palette=Image.Palette.ADAPTIVE, colors=64)
    files = [png(color), png(gray), png(rgba), png(gray_alpha), palette]
    repeated = np.dstack([gray] * 3)
    right = [
        color,
        repeated,
        color,
        repeated,
        np.asarray(Image.open(io.BytesIO(palette)).convert("RGB")),
    ]
    answer = signatures["serving_encoded"](encoded=tf.constant(files))
    np.testing.assert_allclose(answer["probabilities"], expected(model, np.stack(right)), atol=1e-5)


def test_serving_encoded_takes_jpeg(exported):
    model, _, signatures = exported
    files = [tf.io.encode_jpeg(pictures((21, 34, 3), seed)).numpy() for seed in range(2)]
    files.append(tf.io.encode_jpeg(pictures((21, 34, 1))).numpy())
    right = np.stack([tf.io.decode_jpeg(file, channels=3) for file in files])
    answer = signatures["serving_encoded"](encoded=tf.constant(files))
    np.testing.assert_allclose(answer["probabilities"], expected(model, right), atol=1e-5)


def test_serving_encoded_refuses_with_a_message(exported):
    serve = exported[2]["serving_encoded"]
    mixed = [png(pictures((8, 9, 3))), png(pictures((9, 8, 3)))]
    with pytest.raises(tf.errors.InvalidArgumentError, match="images of one size"):
        serve(encoded=tf.constant(mixed))
    with pytest.raises(tf.errors.InvalidArgumentError, match="at least one image"):
        serve(encoded=tf.constant([], tf.string))


@pytest.mark.parametrize("kind", ["text", "nothing", "GIF", "TIFF", "BMP", "half a PNG"])
def test_serving_encoded_takes_what_training_reads_and_goes_on(exported, kind):
    """Formats that training refuses, or a graph cannot decode, are errors that name the others."""
    model, _, signatures = exported
    serve, color = signatures["serving_encoded"], pictures((21, 34, 3))
    palette = Image.fromarray(color).convert("P" if kind == "BMP" else "RGB")
    file = io.BytesIO()
    if kind in ("GIF", "TIFF", "BMP"):
        palette.save(file, kind)
    other = {"text": b"no picture", "half a PNG": png(color)[:300]}
    message = "(?i)invalid PNG" if kind == "half a PNG" else "JPEG, PNG, WebP .* or BMP"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        serve(encoded=tf.constant([png(color), other.get(kind, file.getvalue())]))
    answer = serve(encoded=tf.constant([png(color)]))
    np.testing.assert_allclose(answer["probabilities"], expected(model, color[None]), atol=1e-5)


@pytest.mark.parametrize("kind", ["WEBP", "BMP"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_serving_encoded_takes_webp_and_bmp(exported, kind, mode):
    model, _, signatures = exported
    color, file = pictures((21, 34, 3)), io.BytesIO()
    Image.fromarray(color).convert(mode).save(file, kind, lossless=True)
    answer = signatures["serving_encoded"](encoded=tf.constant([file.getvalue()]))
    np.testing.assert_allclose(answer["probabilities"], expected(model, color[None]), atol=1e-5)


def test_serving_encoded_turns_a_portrait_as_predict_does(exported, tmp_path):
    model, _, signatures = exported
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pictures((21, 34, 3))).save(tmp_path / "a.jpg", exif=exif)
    answer = signatures["serving_encoded"](encoded=tf.constant([(tmp_path / "a.jpg").read_bytes()]))
    assert answer["labels"].shape == (1, 34, 21)
    np.testing.assert_array_equal(answer["labels"][0], predict(model, tmp_path / "a.jpg"))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def declared_png(width, height, first=b""):
    """A PNG of a few bytes that declares a size, with chunks in front of its header."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + first + header + pixels + chunk(b"IEND", b"")


def encoded(array, kind, **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


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
DECLARED = "encoded must hold up to 1000000 pixels"
DTYPE, DAMAGED = "Type mismatch", "Invalid PNG|jpeg::Uncompress failed|Invalid JPEG data"
MALFORMED = {
    **{f"rank {len(s)} {s}": (images_request(s), IMAGES) for s in [(), (3,), (40, 50)]},
    "rank 3": (images_request((40, 50, 3)), IMAGES),
    "rank 3 without channels": (images_request((1, 40, 50)), IMAGES),
    "rank 5": (images_request((1, 1, 8, 8, 3)), IMAGES),
    "rank 6": (images_request((1, 1, 1, 8, 8, 3)), IMAGES),
    **{f"{n} channels": (images_request((1, 40, 50, n)), IMAGES) for n in (0, 1, 2, 4)},
    "channels first": (images_request((1, 3, 40, 50)), IMAGES),
    "empty batch": (images_request((0, 40, 50, 3)), PIXELS),
    "no height": (images_request((1, 0, 50, 3)), PIXELS),
    "no width": (images_request((1, 40, 0, 3)), PIXELS),
    "all empty": (images_request((0, 0, 0, 3)), PIXELS),
    "large image": (images_request((1, 1100, 1000, 3)), PIXELS),
    "large batch": (images_request((300, 64, 64, 3)), PIXELS),
    "batch of single pixels": (images_request((1000, 1, 1, 3)), PIXELS),
    "wide image": (images_request((1, 1, 40000, 3)), PIXELS),
    "high image": (images_request((1, 40000, 1, 3)), PIXELS),
    **{dtype: (images_request((1, 8, 9, 3), dtype), DTYPE) for dtype in ("f4", "i4", "?")},
    "files as images": (("serving_default", {"images": np.array([PNG], object)}), DTYPE),
    "missing images": (("serving_default", {}), "must feed a value"),
    "missing files": (("serving_encoded", {}), "must feed a value"),
    "images as files": (("serving_encoded", {"encoded": pictures((1, 8, 8, 3))}), DTYPE),
    "one file": (("serving_encoded", {"encoded": np.array(PNG, object)}), FILES),
    "files of rank 2": (("serving_encoded", {"encoded": np.array([[PNG]], object)}), FILES),
    "no files": (files_request(), "at least one image"),
    "empty file": (files_request(b""), "must hold JPEG, PNG, WebP"),
    "text": (files_request(b"no picture"), "file format|JPEG"),
    "one byte": (files_request(b"\x89"), "file format|JPEG"),
    "PNG signature": (files_request(PNG[:8]), "begin with their header"),
    "cut PNG header": (files_request(PNG[:20]), DAMAGED),
    "cut PNG": (files_request(PNG[:900]), DAMAGED),
    "PNG without pixels": (files_request(declared_png(8, 8)), DAMAGED),
    "JPEG start": (files_request(JPEG[:3]), DAMAGED),
    "cut JPEG": (files_request(JPEG[:900]), DAMAGED),
    "JPEG of size 0": (files_request(declared_jpeg(0, 0)), DAMAGED),
    "cut BMP": (files_request(BMP[:900]), "."),
    "TIFF": (files_request(b"II*\0" + bytes(99)), "file format|JPEG"),
    "files of two sizes": (files_request(PNG, png(pictures((8, 9, 3)))), "of one size"),
    "a good and a bad file": (files_request(PNG, b"no picture"), "file format|JPEG"),
    "PNG of 1001x1000": (files_request(declared_png(1001, 1000)), DECLARED),
    "PNG of 23000x23000": (files_request(declared_png(23000, 23000)), DECLARED),
    "PNG of 100000x100000": (files_request(declared_png(100000, 100000)), DECLARED),
    "PNG of 2^31 - 1": (files_request(declared_png(2**31 - 1, 2**31 - 1)), DECLARED),
    "PNG of 2^32 - 1": (files_request(declared_png(2**32 - 1, 1)), DAMAGED),
    "PNGs together": (files_request(*[declared_png(600, 600)] * 3), DECLARED),
    "PNG with a chunk in front": (
        files_request(declared_png(23000, 23000, chunk(b"abCd", b"x"))),
        "begin with their header",
    ),
    "JPEG of 65500x65500": (files_request(declared_jpeg(65500, 65500)), DECLARED),
    "WebP of 1000x1001": (files_request(WEBP), DECLARED),
    "JPEG of 1001x1000": (files_request(declared_jpeg(1001, 1000)), DECLARED),
}
VALID = {
    "valid": ("serving_default", {"images": pictures((1, 40, 50, 3))}),
    **{f"{n}x{n}": images_request((1, n, n, 3)) for n in range(1, 9)},
    "thin": images_request((2, 1, 3000, 3)),
    "encoded": files_request(PNG, JPEG),
    "largest image": images_request((1, 992, 992, 3)),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """What a server in its own process answers, and its exit status."""
    folder = tmp_path_factory.mktemp("served")
    export.saved_model(small_model(), folder / "model", max_pixels=1_000_000)
    requests = {**VALID, **{name: request for name, (request, _) in MALFORMED.items()}}
    (folder / "requests").write_bytes(pickle.dumps(requests))
    server = Path(__file__).with_name("serving_session.py")
    command = [sys.executable, server, folder / "model", folder / "requests", folder / "answers"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    answers = [json.loads(line) for line in (folder / "answers").read_text().splitlines()]
    return {name: (message, again) for name, message, again in answers}, done


def test_no_request_ends_a_server(served):
    answers, done = served
    assert done.returncode == 0, (list(answers)[-1], done.stderr[-2000:])
    assert set(answers) == {*VALID, *MALFORMED}
    assert [name for name, (_, again) in answers.items() if not again] == []


@pytest.mark.parametrize("name", MALFORMED)
def test_a_server_refuses_malformed_requests(served, name):
    message, _ = served[0][name]
    assert message is not None
    assert re.search(MALFORMED[name][1], message), message


@pytest.mark.parametrize("name", VALID)
def test_a_server_answers_valid_requests(served, name):
    assert served[0][name][0] is None


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
    assertions = [op for op in graph.get_operations() if "Assert" in op.name and op.type != "Const"]
    assert assertions
    assert "EnsureShape" in {op.type for op in found}
    assert {op for op in assertions if op.type in ("Assert", "If", "StatelessIf")} <= found


@pytest.mark.parametrize("size", [(1, 1), (300, 7), (5, 1021)])
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
def test_sizes_in_headers(size, kind, options):
    height, width = size
    file = encoded(pictures((height, width, 3)), kind, **options)
    assert float(export._declared_pixels(tf.constant(file))) == height * width


@pytest.mark.parametrize("file", [BMP, b"", b"text", b"II*\0", b"RIFF"])
def test_other_files_declare_nothing(file):
    assert float(export._declared_pixels(tf.constant(file))) == 0


@pytest.mark.parametrize("name", ["serving_default", "serving_encoded"])
def test_every_entry_refuses_malformed_requests(exported, name):
    """Called from Python: the signature and the endpoint of the same name."""
    loaded = tf.saved_model.load(str(exported[1]))
    (key,) = loaded.signatures[name].structured_input_signature[1]
    good, *bad = {
        "serving_default": [pictures((1, 8, 9, 3)), pictures((8, 9, 3)), pictures((0, 8, 9, 3))],
        "serving_encoded": [[PNG], PNG, np.array([], object)],
    }[name]
    for entry in (lambda x: loaded.signatures[name](**{key: x}), getattr(loaded, name)):
        for request in bad:
            with pytest.raises((TypeError, ValueError, tf.errors.InvalidArgumentError)):
                entry(tf.constant(request, tf.uint8 if key == "images" else tf.string))
        assert entry(tf.constant(good))["labels"].shape[0] == 1


@pytest.mark.parametrize("value", [0, -1, 1e6, True, "100", 2 * 128 * 160 - 1])
def test_max_pixels_must_admit_the_comparison(tmp_path, value):
    with pytest.raises(ValueError, match="`max_pixels` must be an integer of at least 40960"):
        export.saved_model(small_model(), tmp_path / "out", max_pixels=value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size, needed", [((None, None), 2 * 128 * 160), ((40, 70), 2 * 64 * 96)])
def test_the_default_max_pixels_admits_what_is_compared(tmp_path, monkeypatch, size, needed):
    """A fixed size above 2^24 pixels is exported; requests are limited to what was compared."""
    monkeypatch.setattr(export, "MAX_PIXELS", 1000)
    export.saved_model(small_model(shape=(*size, 3)), tmp_path / "out")
    serve = tf.saved_model.load(tmp_path / "out").signatures["serving_default"]
    height, width = (size[0] or 128), (size[1] or 160)
    assert serve(images=tf.zeros((2, height, width, 3), tf.uint8))["labels"].shape[0] == 2
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"must hold 1 to {needed} pixels"):
        serve(images=tf.zeros((3, height, width, 3), tf.uint8))


def test_the_smallest_max_pixels(tmp_path):
    export.saved_model(small_model(), tmp_path / "out", max_pixels=2 * 128 * 160)


def test_loads_with_tensorflow_alone(exported, tmp_path):
    model, path, _ = exported
    images = pictures((2, 37, 50, 3))
    np.save(tmp_path / "images.npy", images)
    code = f"""
import sys
sys.modules["keras"] = sys.modules["keras_deeplab"] = None
import numpy as np, tensorflow as tf
loaded = tf.saved_model.load({str(path)!r})
images = np.load({str(tmp_path / "images.npy")!r})
answer = loaded.signatures["serving_default"](images=tf.constant(images))
encoded = tf.stack([tf.io.encode_png(image) for image in images])
other = loaded.signatures["serving_encoded"](encoded=encoded)
np.testing.assert_array_equal(answer["labels"], other["labels"])
np.save({str(tmp_path / "answer.npy")!r}, answer["probabilities"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "answer.npy"), expected(model, images), atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(tmp_path, policy):
    model = small_model(policy=policy)
    export.saved_model(model, tmp_path / "out")
    images = pictures((2, 30, 41, 3))
    serve = tf.saved_model.load(str(tmp_path / "out")).signatures["serving_default"]
    answer = serve(images=tf.constant(images))["probabilities"]
    assert answer.dtype == tf.float32
    np.testing.assert_allclose(answer, expected(model, images), atol=2e-2)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_channels(tmp_path, channels):
    model = small_model(shape=(None, None, channels))
    export.saved_model(model, tmp_path / "out")
    signatures = tf.saved_model.load(str(tmp_path / "out")).signatures
    assert ("serving_encoded" in signatures) == (channels == 1)
    images = pictures((2, 30, 41, channels))
    right = expected(model, images)
    answer = signatures["serving_default"](images=tf.constant(images))
    np.testing.assert_allclose(answer["probabilities"], right, atol=1e-5)
    if channels == 1:
        files = [png(image[..., 0]) for image in images]
        answer = signatures["serving_encoded"](encoded=tf.constant(files))
        np.testing.assert_allclose(answer["probabilities"], right, atol=1e-5)


def test_fixed_size_many_classes_and_uint8_input(tmp_path):
    model = small_model(classes=300, shape=(32, 48, 3), dtype="uint8")
    export.saved_model(model, tmp_path / "out")
    signatures = tf.saved_model.load(str(tmp_path / "out")).signatures
    images = pictures((3, 32, 48, 3))
    answer = signatures["serving_default"](images=tf.constant(images))
    assert answer["labels"].dtype == tf.int32
    right = tf.nn.softmax(model(images)).numpy()
    np.testing.assert_allclose(answer["probabilities"], right, atol=1e-5)
    with pytest.raises(tf.errors.InvalidArgumentError, match="48"):
        signatures["serving_encoded"](encoded=tf.constant([png(images[0, :31])]))


def test_only_what_serving_needs_is_stored(tmp_path):
    model = small_model()
    model.compile("adam", "mse")
    model.fit(np.zeros((1, 8, 8, 3)), np.zeros((1, 8, 8, 5)), verbose=0)
    export.saved_model(model, tmp_path / "out")
    stored = tf.train.list_variables(str(tmp_path / "out" / "variables" / "variables"))
    numbers = sum(int(np.prod(shape)) for name, shape in stored if "CHECKPOINTABLE" not in name)
    assert numbers == sum(int(np.prod(weight.shape)) for weight in model.weights)


def test_existing_paths(tmp_path):
    first, second = small_model(seed=1), small_model(seed=2)
    out = tmp_path / "deep" / "out"
    export.saved_model(first, out)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match="overwrite=True"):
        export.saved_model(second, out)
    export.verify(first, out)
    export.saved_model(second, out, overwrite=True)
    export.verify(second, out)
    assert sorted(tmp_path.rglob("*")) == before
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    export.saved_model(first, photographs)  # an empty folder is free
    (other := tmp_path / "other").mkdir()
    (other / "precious.txt").write_text("kept")
    for path in (other, other / "precious.txt"):
        with pytest.raises(FileExistsError, match="a new folder or a SavedModel"):
            export.saved_model(first, path, overwrite=True)
    assert (other / "precious.txt").read_text() == "kept"


def put_other_weights(path, model, write):
    """Leaves the graph and its signatures in place and changes one layer's weights."""
    kernel = model.layers[2].kernel
    right = kernel.numpy()
    kernel.assign(right * 1.2)
    shutil.rmtree(path)
    write(model, path)
    kernel.assign(right)


def flip_bytes(path, model, write):
    (data,) = (path / "variables").glob("variables.data*")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 0xFF
    data.write_bytes(content)


def truncate(path, model, write):
    (path / "saved_model.pb").write_bytes((path / "saved_model.pb").read_bytes()[:1000])


@pytest.mark.parametrize(
    "change, message",
    [
        (
            put_other_weights,
            r"serving_default: probabilities differ .* by up to 0\.\d+, .* 0\.0001",
        ),
        (flip_bytes, "cannot be loaded"),
        (truncate, "cannot be loaded"),
    ],
)
def test_a_corrupted_export_never_reaches_the_path(tmp_path, monkeypatch, change, message):
    out = tmp_path / "out"
    old = small_model(seed=3)
    export.saved_model(old, out)
    write = export._write

    def write_and_change(model, path, max_pixels):
        write(model, path)
        change(path, model, write)

    monkeypatch.setattr(export, "_write", write_and_change)
    for path, overwrite in ((out, True), (tmp_path / "fresh", False)):
        with pytest.raises(ExportError, match=message):
            export.saved_model(small_model(), path, overwrite=overwrite)
    export.verify(old, out)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_verify_sees_one_changed_weight(exported):
    model, path, _ = exported
    export.verify(model, path)
    changed = keras.models.clone_model(model)
    changed.set_weights(model.get_weights())
    export.verify(changed, path)
    kernel = changed.layers[2].kernel
    kernel.assign(kernel + 1e-7 * (np.arange(kernel.shape[-1]) == 0))
    with pytest.raises(ExportError, match="no weight of the model"):
        export.verify(changed, path)


@pytest.mark.parametrize("name", ["serving_default", "serving_encoded"])
@pytest.mark.parametrize("mistake", ["labels", "probabilities"])
def test_verify_names_signature_and_output(tmp_path, name, mistake):
    """A signature whose answers are wrong although every weight is right."""
    model = small_model()
    path = tmp_path / "out"
    export._write(model, path)
    loaded = tf.saved_model.load(str(path))
    module = tf.Module()
    module.loaded = loaded
    signatures = {}
    for endpoint, function in loaded.signatures.items():
        ((key, spec),) = function.structured_input_signature[1].items()

        def serve(x, function=function, key=key, endpoint=endpoint):
            result = dict(function(**{key: x}))
            if endpoint == name:
                value = result[mistake]
                result[mistake] = tf.concat([value[:, 1:], value[:, :1]], 1)
            return result

        signatures[endpoint] = tf.function(serve).get_concrete_function(
            tf.TensorSpec(spec.shape, spec.dtype, key)
        )
    tf.saved_model.save(module, str(tmp_path / "wrong"), signatures=signatures)
    with pytest.raises(ExportError, match=f"{name}: {mistake} differ"):
        export.verify(model, tmp_path / "wrong")


def test_verify_is_not_blind(exported):
    """A dead network is told, and its weights are compared all the same."""
    _, path, _ = exported
    dead = small_model(scale=0.0)
    with pytest.warns(UserWarning, match="the same at every pixel"), pytest.raises(ExportError):
        export.verify(dead, path)


def test_a_dead_network_with_other_weights_is_caught(tmp_path):
    out = tmp_path / "out"
    with pytest.warns(UserWarning, match="the same at every pixel"):
        export.saved_model(small_model(scale=0.0), out)
    other = small_model(scale=0.0)
    other.layers[2].kernel.assign(other.layers[2].kernel * 1.5)
    with (
        pytest.warns(UserWarning, match="the same"),
        pytest.raises(ExportError, match="no weight of the model"),
    ):
        export.verify(other, out)


def test_models_that_cannot_be_exported(tmp_path):
    inputs = keras.Input((None, None, 3))
    coarse = keras.Model(inputs, keras.layers.Conv2D(4, 3, strides=2)(inputs))
    with pytest.raises(ExportError, match="at the input's size"):
        export.saved_model(coarse, tmp_path / "out")
    broken = small_model()
    broken.layers[-2].bias.assign(np.full(5, np.nan))
    with pytest.raises(ExportError, match="finite"):
        export.saved_model(broken, tmp_path / "out")
    one_class = keras.Model(inputs, keras.layers.Conv2D(1, 1)(inputs))
    with pytest.raises(ValueError, match="at least 2 classes"):
        export.saved_model(one_class, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_thetest_images_are_lively(exported):
    from keras_deeplab.verification import _expected, test_images

    spec = tf.TensorSpec((None, None, None, 3))
    images, (jpeg, png_files) = test_images((2, 97, 129, 3))
    assert images.min() == 0
    assert images.max() == 255
    assert images.std() > 50
    assert not np.array_equal(images[0], images[1])
    for files in (jpeg, png_files):
        decoded = [tf.io.decode_image(file) for file in files]
        np.testing.assert_array_equal(np.stack(decoded), images)
    assert _expected(exported[0], images, spec).std((1, 2)).max() > 0.01
