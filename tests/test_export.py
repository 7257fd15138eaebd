from __future__ import annotations

import io
import shutil
import subprocess
import sys

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
    with pytest.raises(tf.errors.InvalidArgumentError, match="photographs of one size"):
        serve(encoded=tf.constant(mixed))
    with pytest.raises(tf.errors.InvalidArgumentError, match="at least one photograph"):
        serve(encoded=tf.constant([], tf.string))


@pytest.mark.parametrize("kind", ["text", "nothing", "GIF", "TIFF", "BMP", "half a PNG", "12 bits"])
def test_serving_encoded_takes_what_training_reads_and_goes_on(exported, kind):
    """Formats that training refuses, or a graph cannot decode, are errors that name the others."""
    model, _, signatures = exported
    serve, color = signatures["serving_encoded"], pictures((21, 34, 3))
    palette = Image.fromarray(color).convert("P" if kind == "BMP" else "RGB")
    file = io.BytesIO()
    if kind in ("GIF", "TIFF", "BMP"):
        palette.save(file, kind)
    other = {
        "text": b"no picture",
        "half a PNG": png(color)[:300],
        "12 bits": png(color[..., 0].astype(np.uint16) * 16),
    }
    message = {"half a PNG": "", "12 bits": "values up to"}.get(kind, "JPEG, PNG, WebP .* or BMP")
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
        with pytest.raises(FileExistsError, match="something else"):
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

    def write_and_change(model, path):
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
    with pytest.warns(UserWarning, match="alike at every pixel"), pytest.raises(ExportError):
        export.verify(dead, path)


def test_a_dead_network_with_other_weights_is_caught(tmp_path):
    out = tmp_path / "out"
    with pytest.warns(UserWarning, match="alike at every pixel"):
        export.saved_model(small_model(scale=0.0), out)
    other = small_model(scale=0.0)
    other.layers[2].kernel.assign(other.layers[2].kernel * 1.5)
    with (
        pytest.warns(UserWarning, match="alike"),
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


def test_the_test_pictures_are_lively(exported):
    from keras_deeplab.verification import _expected, _test_pictures

    spec = tf.TensorSpec((None, None, None, 3))
    images, (jpeg, png_files) = _test_pictures((2, 97, 129, 3))
    assert images.min() == 0
    assert images.max() == 255
    assert images.std() > 50
    assert not np.array_equal(images[0], images[1])
    for files in (jpeg, png_files):
        decoded = [tf.io.decode_image(file) for file in files]
        np.testing.assert_array_equal(np.stack(decoded), images)
    assert _expected(exported[0], images, spec).std((1, 2)).max() > 0.01
