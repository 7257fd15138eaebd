from __future__ import annotations

import copy
import gc
import io
import json
import os
import pickle
import warnings
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

import keras_deeplab
from keras_deeplab.evaluation import evaluate
from keras_deeplab.inference import _LABEL_FUNCTIONS, predict
from keras_deeplab.metrics import scores
from keras_deeplab.pictures import overlay


def channel_model(classes=3, channels=3, size=(None, None), **dense):
    """Logits are the pixels themselves: the class is the brightest channel."""
    inputs = keras.Input((*size, channels))
    outputs = keras.layers.Dense(classes, kernel_initializer="identity", **dense)(inputs)
    return keras.Model(inputs, outputs)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32", "float64", "bfloat16"])
def test_predict_arrays_and_tensors(image, dtype):
    expected = tf.cast(image, dtype).numpy().astype(np.float32).argmax(-1)
    for given in (tf.cast(image, dtype), tf.cast(image, dtype).numpy()):
        labels = predict(channel_model(), given)
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, expected)
        batch = predict(channel_model(), given[None])
        np.testing.assert_array_equal(batch, expected[None])


def test_predict_pictures_and_paths(image, tmp_path):
    expected = image.argmax(-1)
    picture = Image.fromarray(image)
    np.testing.assert_array_equal(predict(channel_model(), picture), expected)
    alpha = Image.fromarray(np.dstack([image, np.full((9, 7), 9, np.uint8)]))
    palette = Image.fromarray(np.arange(63, dtype=np.uint8).reshape(9, 7), "P")
    palette.putpalette(np.random.default_rng(1).integers(0, 256, 768, np.uint8).tobytes())
    for name, shown in {
        "a.png": picture,
        "b.bmp": picture,
        "c.png": alpha,
        "d.png": palette,
    }.items():
        shown.save(tmp_path / name)
        result = predict(channel_model(), tmp_path / name)
        np.testing.assert_array_equal(result, np.asarray(shown.convert("RGB")).argmax(-1))
        np.testing.assert_array_equal(predict(channel_model(), str(tmp_path / name)), result)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_predict_pil_modes_are_seen_as_viewers_show_them(image, mode, channels):
    picture = Image.fromarray(image).convert(mode)
    model = channel_model(channels=channels)
    model.set_weights([np.eye(channels, 3), np.array([0.0, 100.0, 200.0])])
    shown = picture.convert("RGB" if channels == 3 else "L")
    np.testing.assert_array_equal(predict(model, picture), predict(model, np.asarray(shown)))
    with pytest.raises(ValueError, match="Received"):
        predict(model, Image.fromarray(image[..., 0].astype(np.uint16) * 256))


# Red, green and blue in places that show how an image is turned.
BLOCKS = np.kron(np.array([[0, 1, 2, 0], [1, 1, 0, 2]]), np.ones((16, 16), int))
COLORED = (255 * np.eye(3)[BLOCKS]).astype(np.uint8)
KINDS = {
    "JPEG": {"quality": 100, "subsampling": 0},
    "PNG": {},
    "WebP": {"lossless": True},
    "TIFF": {},
}


def with_orientation(folder, kind, orientation, **options):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = folder / f"photo.{kind.lower()}"
    Image.fromarray(COLORED).save(path, kind, exif=exif, **KINDS[kind])
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_pillow_image_is_turned_as_its_file_is(tmp_path, kind, orientation):
    path = with_orientation(tmp_path, kind, orientation)
    labels = predict(channel_model(), path)
    shown = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    np.testing.assert_array_equal(labels, np.asarray(shown).argmax(-1))
    assert labels.shape == ((32, 64) if orientation < 5 else (64, 32))
    assert np.array_equal(labels, BLOCKS) == (orientation == 1)
    for given in (Image.open(path), Image.open(path).convert("RGB"), shown):
        np.testing.assert_array_equal(predict(channel_model(), given), labels)
        np.testing.assert_array_equal(predict(channel_model(), given), labels)  # not turned again
    loaded = Image.open(path)
    loaded.load()
    np.testing.assert_array_equal(predict(channel_model(), loaded), labels)
    with Image.open(path) as given:
        picture = overlay(given, labels, colors=255 * np.eye(3, dtype=int), alpha=0.5)
    np.testing.assert_array_equal(picture.argmax(-1), labels)
    assert picture.max(-1).min() > 250  # each pixel under its own colour


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0no TIFF", b"Exif\0\0II*\0\xff\xff\xff\xff", b""]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_pillow_image_of_damaged_exif_is_upright_as_its_file_is(tmp_path, kind, exif):
    path = tmp_path / f"photo.{kind.lower()}"
    Image.fromarray(COLORED).save(path, kind, exif=exif, **KINDS[kind])
    for given in (path, Image.open(path), Image.open(path).convert("RGB")):
        np.testing.assert_array_equal(predict(channel_model(), given), BLOCKS)


def test_a_png_is_turned_by_exif_alone(tmp_path):
    """Pillow takes an orientation from XMP too, for which it would have to decode the file."""
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    Image.fromarray(COLORED).save(tmp_path / "photo.png", pnginfo=text)
    opened = Image.open(tmp_path / "photo.png")
    for given in (tmp_path / "photo.png", opened):
        np.testing.assert_array_equal(predict(channel_model(), given), BLOCKS)
    assert opened.getexif()[ExifTags.Base.Orientation] == 6


def test_predict_one_channel(image, tmp_path):
    gray = image[..., 0]
    brightness = channel_model(2, bias_initializer=lambda s, dtype: tf.constant([0.0, 0.5], dtype))
    for given in (gray, gray[..., None]):
        np.testing.assert_array_equal(predict(brightness, given), np.ones((9, 7)))
    np.testing.assert_array_equal(predict(brightness, gray[None, ..., None]), np.ones((1, 9, 7)))
    threshold = keras.Sequential(
        [keras.Input((None, None, 1)), keras.layers.Dense(2, bias_initializer="zeros")]
    )
    threshold.set_weights([np.array([[1.0, 0.0]]), np.array([-128.0, 0.0])])
    expected = gray < 128
    np.testing.assert_array_equal(predict(threshold, gray), expected)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(predict(threshold, tmp_path / "gray.png"), expected)


def test_predict_many_classes_needs_int32(image):
    model = channel_model(300)
    labels = predict(model, image)
    assert labels.dtype == np.int32
    model.set_weights([np.zeros((3, 300)), np.eye(300)[299]])
    np.testing.assert_array_equal(predict(model, image), np.full((9, 7), 299))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x: x[..., :2], r"shape \(9, 7, 2\)"),
        (lambda x: x[0, 0], r"Received: image of shape \(3,\)"),
        (lambda x: x[:0], "not be empty"),
        (lambda x: x / 127.5 - 1, r"0\.\.255. Received: image of values -1"),
        (lambda x: x.astype(int) * 2, r"0\.\.255"),
        (lambda x: np.where(x > 9, np.nan, x), r"0\.\.255. Received: image of values nan"),
        (lambda x: x > 9, "dtype bool"),
    ],
)
def test_predict_refuses(image, change, message):
    image[0, 0] = 0
    with pytest.raises(ValueError, match=message):
        predict(channel_model(), change(image))


def refused(value, tmp_path):
    """What is given to `predict` under a name that says it."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "nothing.png")
    pixels = np.zeros((4, 5, 3), np.uint8)
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(
        whole, "JPEG"
    )
    given = {
        "None": None,
        "bytes": b"\x89PNG",
        "bytearray": bytearray(99),
        "int": 3,
        "float": 0.5,
        "bool": True,
        "list": pixels.tolist(),
        "list of arrays": [pixels, pixels],
        "list of sizes": [pixels, pixels[1:]],
        "list of paths": ["a.png", "b.png"],
        "tuple": (pixels,),
        "dict": {"image": pixels},
        "generator": (pixels for _ in range(2)),
        "open file": whole,
        "ragged": tf.RaggedTensor.from_tensor(pixels),
        "symbolic": keras.Input((4, 5, 3)),
        "missing": "no/such/file.png",
        "empty path": "",
        "folder": tmp_path,
        "URL": "https://example.org/street.jpg",
        "data URL": "data:image/png;base64," + "A" * 9999,
        "null": "a\0b.png",
        "long": "a" * 9999,
        "pipe": tmp_path / "pipe.png",
        "device": "/dev/zero",
        "dead link": tmp_path / "link.png",
        "array scalar": np.uint8(3),
        "array of rank 0": np.array(3),
        "vector": np.zeros(3, np.uint8),
        "rank 5": pixels[None, None],
        "empty batch": pixels[None][:0],
        "no height": pixels[:0],
        "2 channels": pixels[..., :2],
        "4 channels": np.zeros((4, 5, 4), np.uint8),
        "channels first": np.zeros((3, 4, 5), np.uint8),
        "bools": pixels > 0,
        "complex": pixels.astype(complex),
        "objects": pixels.astype(object),
        "array of arrays": np.array([pixels, pixels[1:], None], object)[:2],
        "texts": pixels.astype(str),
        "dates": pixels.astype("M8[s]"),
        "infinity": np.full((4, 5, 3), np.inf),
        "negative": pixels - 1.0,
        "16 bits": pixels.astype(np.uint16) + 256,
        "cut picture": Image.open(io.BytesIO(whole.getvalue()[:700])),
    }
    return given[value]


TYPES = {
    *("None", "bytes", "bytearray", "int", "float", "bool", "list", "list of arrays", "tuple"),
    *("list of sizes", "list of paths", "dict", "generator", "open file", "ragged", "symbolic"),
}
VALUES = {
    *("missing", "empty path", "folder", "URL", "data URL", "null", "long", "pipe", "device"),
    *("dead link", "array scalar", "array of rank 0", "vector", "rank 5", "empty batch"),
    *("no height", "2 channels", "4 channels", "channels first", "bools", "complex", "objects"),
    *("array of arrays", "texts", "dates", "infinity", "negative", "16 bits", "cut picture"),
}


@pytest.mark.parametrize("value", sorted(TYPES | VALUES))
def test_predict_refuses_in_one_line(tmp_path, value):
    with pytest.raises(TypeError if value in TYPES else ValueError) as caught:
        predict(channel_model(), refused(value, tmp_path))
    message = str(caught.value)
    assert message.startswith("`image` must ")
    assert "Received: image" in message
    assert "\n" not in message
    assert len(message) < 500


def test_predict_says_what_to_do():
    with pytest.raises(TypeError, match=r"PIL\.Image\.open\(io\.BytesIO"):
        predict(channel_model(), b"\x89PNG")
    with pytest.raises(ValueError, match="Download the file first"):
        predict(channel_model(), "https://example.org/street.jpg")


def test_predict_refuses_a_file_that_cannot_be_read(tmp_path, image, monkeypatch):
    Image.fromarray(image).save(tmp_path / "secret.png")

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", denied)
    with pytest.raises(ValueError, match=r"`image` must .*secret\.png.*Permission denied"):
        predict(channel_model(), tmp_path / "secret.png")


def test_predict_refuses_files_for_other_channels(tmp_path, image):
    Image.fromarray(image).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="a model of 2 channels"):
        predict(channel_model(channels=2), tmp_path / "a.png")


def test_predict_of_a_fixed_size(tmp_path, image):
    model = channel_model(size=(9, 7))
    np.testing.assert_array_equal(predict(model, image), image.argmax(-1))
    Image.fromarray(image[1:]).save(tmp_path / "small.png")
    for other in (image[1:], tmp_path / "small.png"):
        with pytest.raises(ValueError, match=r"shape \(9, 7, 1 or 3\).* shape \(8, 7, 3\)"):
            predict(model, other)


def counting_model():
    """A model and the list of the shapes that it was traced with."""
    traces = []

    class Counter(keras.layers.Layer):
        def call(self, x):
            traces.append(tuple(x.shape))
            return x

    inputs = keras.Input((None, None, 3))
    outputs = keras.layers.Dense(3, kernel_initializer="identity")(Counter()(inputs))
    model = keras.Model(inputs, outputs)
    traces.clear()
    return model, traces


def test_predict_compiles_once_for_all_sizes(image, tmp_path):
    model, traces = counting_model()
    Image.fromarray(image).save(tmp_path / "a.png")
    batch = np.stack([image, image[::-1]])
    wide = np.repeat(image, 9, 1)
    values = [image, batch, wide, image[:1, :1], image.astype(float), image.astype("i8")]
    for given in values:
        np.testing.assert_array_equal(predict(model, given), np.argmax(given, -1))
    for given in (tmp_path / "a.png", Image.fromarray(image), tf.constant(image)):
        np.testing.assert_array_equal(predict(model, given), image.argmax(-1))
    evaluate(model, dataset_of(list(pairs(SIZES))), verbose=0)
    assert traces == [(None, None, None, 3)]


def test_predict_follows_changes_of_the_model(image):
    model, traces = counting_model()
    predict(model, image)
    kernel = np.eye(3)[[1, 2, 0]]
    model.set_weights([kernel, np.zeros(3)])
    np.testing.assert_array_equal(predict(model, image), (image @ kernel).argmax(-1))
    model.trainable = False
    model.compile("sgd", "mse")
    predict(model, image)
    assert len(traces) == 1
    model.set_weights([np.eye(3), np.zeros(3)])
    close = np.broadcast_to([200.1, 200.3, 200.2], (2, 2, 3))  # one number in bfloat16
    assert np.unique(predict(model, close)) == 1
    for layer in model.layers[1:]:
        layer.dtype_policy = keras.DTypePolicy("mixed_bfloat16")
    assert np.unique(predict(model, close)) == 0
    model.layers[-1].enable_lora(1)
    model.layers[-1].lora_kernel_a.assign(np.ones((3, 1)))
    model.layers[-1].lora_kernel_b.assign([[0.0, 0.0, 9.0]])
    assert np.unique(predict(model, close)) == 2


def test_predict_of_several_views_follows_the_weights(image):
    network = channel_model()
    model = keras_deeplab.MultiScale(network, (0.5, 1.0), fusion="mean", flip=True)
    before = predict(model, image)
    np.testing.assert_array_equal(before, np.argmax(model(image[None].astype("f4")), -1)[0])
    network.set_weights([np.eye(3)[[1, 2, 0]], np.zeros(3)])
    after = predict(model, image)
    np.testing.assert_array_equal(after, np.argmax(model(image[None].astype("f4")), -1)[0])
    assert (before != after).any()


def test_predict_leaves_the_model_as_it_was(image, tmp_path):
    """Nothing is put on the model, and it is not kept."""
    model = channel_model()
    attributes = set(vars(model))
    labels = predict(model, image)
    assert set(vars(model)) == attributes
    model.save(tmp_path / "m.keras")
    tf.saved_model.save(model, str(tmp_path / "m"))
    loaded = keras.models.load_model(tmp_path / "m.keras")
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), loaded):
        other.set_weights([np.eye(3)[[1, 2, 0]], np.zeros(3)])
        assert (predict(other, image) != labels).any()
        np.testing.assert_array_equal(predict(model, image), labels)
    known, seen = len(_LABEL_FUNCTIONS), weakref.ref(model)
    del model
    gc.collect()
    assert seen() is None
    assert len(_LABEL_FUNCTIONS) < known


def test_predict_without_enough_memory(image):
    inputs = keras.Input((None, None, 3))

    class Greedy(keras.layers.Layer):
        """Needs more bytes than addresses exist."""

        def call(self, x):
            rows = tf.shape(x, tf.int64)[1] * 2**25
            return x + tf.reduce_sum(tf.fill(tf.stack([rows, 2**25]), x[0, 0, 0, 0]))

    outputs = Greedy()(inputs)
    with pytest.raises(MemoryError, match=r"^`image` must .* shape \(9, 7, 3\).*predict parts"):
        predict(keras.Model(inputs, outputs), image)


def test_predict_warns_of_divided_pixels_only(image):
    with pytest.warns(UserWarning, match="Do not divide by 255"):
        predict(channel_model(), image / 255.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        predict(channel_model(), image.astype(np.float32))
        predict(channel_model(), np.zeros((4, 4, 3), np.float32))


def test_predict_names_a_bad_file_and_a_bad_model(tmp_path, image):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"text\.png"):
        predict(channel_model(), tmp_path / "text.png")
    inputs = keras.Input((None, None, 3))
    for outputs in (
        [inputs, inputs],
        keras.layers.GlobalAveragePooling2D()(inputs),
        inputs[..., :1],
    ):
        with pytest.raises(ValueError, match="`model` must"):
            predict(keras.Model(inputs, outputs), image)

    class Subclassed(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="functional"):
        predict(Subclassed(), image)


def pairs(sizes, seed=0):
    rng = np.random.default_rng(seed)
    for height, width in sizes:
        pixels = rng.integers(0, 256, (height, width, 3)).astype(np.float32)
        labels = np.where(rng.random((height, width)) < 0.6, pixels.argmax(-1), 1)
        labels[rng.random((height, width)) < 0.1] = 255
        yield pixels, labels.astype(np.int32)


def dataset_of(items):
    signature = (tf.TensorSpec((None, None, 3)), tf.TensorSpec((None, None), tf.int32))
    return tf.data.Dataset.from_generator(lambda: iter(items), output_signature=signature)


SIZES = [(9, 7), (4, 12), (1, 1), (20, 3), (9, 7)]


def test_evaluate_over_differing_sizes_equals_numpy_and_traces_once():
    model, traces = counting_model()
    items = list(pairs(SIZES))
    report = evaluate(model, dataset_of(items).batch(1), ["red", "green", "blue"], verbose=0)
    assert traces == [(None, None, None, 3)]
    truth = np.concatenate([labels.ravel() for _, labels in items])
    predicted = np.concatenate([pixels.argmax(-1).ravel() for pixels, _ in items])
    confusion = np.zeros((3, 3), int)
    np.add.at(confusion, (truth[truth != 255], predicted[truth != 255]), 1)
    expected = scores(confusion, ["red", "green", "blue"])
    shares = {
        name: pytest.approx((truth[truth != 255] == label).mean())
        for label, name in enumerate(["red", "green", "blue"])
    }
    counts = {"images": len(SIZES), "pixels": int((truth != 255).sum()), "true_share": shares}
    assert report == {**expected, **counts}
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert 0 < report["mean_iou"] < 1


def test_evaluate_batches_and_single_images_and_trailing_axis():
    items = list(pairs([(6, 5)] * 5))
    single = evaluate(channel_model(), dataset_of(items), verbose=0)
    assert single["images"] == 5
    batched = dataset_of(items).batch(2)
    assert evaluate(channel_model(), batched, verbose=0) == single
    trailing = batched.map(lambda x, y: (tf.cast(x, tf.uint8), y[..., None]))
    assert evaluate(channel_model(), trailing, verbose=0) == single
    fixed = channel_model(size=(6, 5))
    assert evaluate(fixed, batched, verbose=0) == single


def test_evaluate_ignores_another_label():
    items = [(pixels, np.where(labels == 255, 9, labels)) for pixels, labels in pairs(SIZES)]
    expected = evaluate(channel_model(), dataset_of(list(pairs(SIZES))), verbose=0)
    assert evaluate(channel_model(), dataset_of(items), ignore_label=9, verbose=0) == expected
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"labels must be in 0\.\.2"):
        evaluate(channel_model(), dataset_of(items), verbose=0)


def test_evaluate_of_ignored_pixels_alone():
    items = [(pixels, np.full_like(labels, 255)) for pixels, labels in pairs(SIZES)]
    report = evaluate(channel_model(), dataset_of(items), verbose=0)
    assert report["pixels"] == 0
    assert report["true_share"] == report["per_class"] == {"0": None, "1": None, "2": None}


def test_evaluate_refuses():
    dataset = dataset_of(list(pairs(SIZES)))
    model = channel_model()
    with pytest.raises(ValueError, match="empty"):
        evaluate(model, dataset.take(0), verbose=0)
    with pytest.raises(ValueError, match="finite"):
        evaluate(model, dataset.repeat(), verbose=0)
    with pytest.raises(ValueError, match="images, labels"):
        evaluate(model, dataset.map(lambda x, y: x), verbose=0)
    with pytest.raises(ValueError, match="3 different names"):
        evaluate(model, dataset, ["a", "b"], verbose=0)


@pytest.mark.parametrize("verbose", [0, 1, 2])
def test_evaluate_progress(verbose, capsys):
    evaluate(channel_model(), dataset_of(list(pairs(SIZES))), verbose=verbose)
    out = capsys.readouterr().out
    assert ("mean_iou" in out) == (verbose > 0)
    assert ("5/5" in out) == (verbose > 0)
