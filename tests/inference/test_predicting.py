from __future__ import annotations

import copy
import gc
import io
import os
import pickle
import re
import warnings
import weakref
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from calibration import image as structured_image
from models.networks import calibrated, tiny
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

import keras_deeplab
from keras_deeplab.inference import functions, predict, predicting
from keras_deeplab.inference.functions import _FUNCTIONS
from keras_deeplab.inference.upsampled_labels import upsampled_labels
from keras_deeplab.pictures import overlay


def channel_model(classes=3, channels=3, size=(None, None), **dense):
    """Logits are the pixels themselves: the class is the brightest channel."""
    inputs = keras.Input((*size, channels))
    outputs = keras.layers.Dense(classes, kernel_initializer="identity", **dense)(inputs)
    return keras.Model(inputs, outputs)


@pytest.fixture(scope="module")
def brightest():
    return channel_model()


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32", "float64", "bfloat16"])
def test_arrays_and_tensors(brightest, image, dtype):
    tensor = tf.cast(image, dtype)
    expected = tensor.numpy().astype(np.float32).argmax(-1)
    for given in (tensor, tensor.numpy()):
        labels = predict(brightest, given)
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, expected)
        np.testing.assert_array_equal(predict(brightest, given[None]), expected[None])


@pytest.mark.parametrize("mode, name", [("RGB", "b.bmp"), ("RGBA", "c.png"), ("P", "d.png")])
def test_paths_of_files(brightest, image, tmp_path, mode, name):
    shown = Image.fromarray(image).convert(mode)
    shown.save(tmp_path / name)
    for path in (tmp_path / name, str(tmp_path / name)):
        labels = predict(brightest, path)
        np.testing.assert_array_equal(labels, np.asarray(shown.convert("RGB")).argmax(-1))


@pytest.mark.parametrize("channels", [1, 3])
def test_pillow_modes_as_viewers_display_them(image, channels):
    model = channel_model(channels=channels)
    model.set_weights([np.eye(channels, 3), np.array([0.0, 100.0, 200.0])])
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "HSV", "LAB"):
        picture = Image.fromarray(image).convert(mode)
        shown = picture.convert("RGB") if mode == "LAB" else picture  # Pillow has no LAB to L
        shown = np.asarray(shown.convert("RGB" if channels == 3 else "L"))
        np.testing.assert_array_equal(predict(model, picture), predict(model, shown))
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


@pytest.mark.parametrize("kind", KINDS)
def test_a_pillow_image_is_turned_as_its_file_is(brightest, tmp_path, kind):
    path, exif = tmp_path / "photo", Image.Exif()
    for orientation in range(1, 9):
        exif[ExifTags.Base.Orientation] = orientation
        Image.fromarray(COLORED).save(path, kind, exif=exif, **KINDS[kind])
        labels = predict(brightest, path)
        shown = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        np.testing.assert_array_equal(labels, np.asarray(shown).argmax(-1))
        assert np.array_equal(labels, BLOCKS) == (orientation == 1)
        loaded = Image.open(path)
        loaded.load()
        for given in (Image.open(path), Image.open(path).convert("RGB"), shown, loaded):
            np.testing.assert_array_equal(predict(brightest, given), labels)
        np.testing.assert_array_equal(predict(brightest, loaded), labels)  # not turned again
        with Image.open(path) as given:
            picture = overlay(given, labels, colors=255 * np.eye(3, dtype=int), alpha=0.5)
        np.testing.assert_array_equal(picture.argmax(-1), labels)
        assert picture.max(-1).min() > 250  # each pixel under its own colour


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0no TIFF", b"Exif\0\0II*\0\xff\xff\xff\xff", b""]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_of_damaged_exif_is_upright(brightest, tmp_path, kind, exif):
    path = tmp_path / f"photo.{kind.lower()}"
    Image.fromarray(COLORED).save(path, kind, exif=exif, **KINDS[kind])
    for given in (path, Image.open(path), Image.open(path).convert("RGB")):
        np.testing.assert_array_equal(predict(brightest, given), BLOCKS)


def test_a_png_is_turned_by_exif_alone(brightest, tmp_path):
    """Pillow takes an orientation from XMP too, for which it would have to decode the file."""
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    Image.fromarray(COLORED).save(tmp_path / "photo.png", pnginfo=text)
    opened = Image.open(tmp_path / "photo.png")
    for given in (tmp_path / "photo.png", opened):
        np.testing.assert_array_equal(predict(brightest, given), BLOCKS)
    assert opened.getexif()[ExifTags.Base.Orientation] == 6


def test_one_channel(image, tmp_path):
    gray = image[..., 0]
    colored = np.stack([gray] * 3, -1)
    model = channel_model()
    model.set_weights([np.eye(3), np.array([0.0, 1.0, 0.0])])
    for given in (gray, gray[..., None]):
        np.testing.assert_array_equal(predict(model, given), predict(model, colored))
    assert predict(model, gray[None, ..., None]).shape == (1, 9, 7)
    threshold = channel_model(2, channels=1)
    threshold.set_weights([np.array([[1.0, 0.0]]), np.array([-128.0, 0.0])])
    Image.fromarray(gray).save(tmp_path / "gray.png")
    for given in (gray, tmp_path / "gray.png"):
        np.testing.assert_array_equal(predict(threshold, given), gray < 128)
    with pytest.raises(ValueError, match="1 channels .expected: 2 channels"):
        predict(channel_model(channels=2), tmp_path / "gray.png")


def test_many_classes_need_int32(image):
    model = channel_model(300)
    model.set_weights([np.zeros((3, 300)), np.eye(300)[299]])
    labels = predict(model, image)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, np.full((9, 7), 299))


PIXELS = np.zeros((4, 5, 3), np.uint8)
JPEG = tf.io.encode_jpeg(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).numpy()
TYPES = {
    "None": None,
    "bytes": b"\x89PNG",
    "list of arrays": [PIXELS, PIXELS],
    "dict": {"image": PIXELS},
    "open file": io.BytesIO(),
    "ragged": tf.RaggedTensor.from_tensor(PIXELS),
    "symbolic": keras.Input((4, 5, 3)),
}
VALUES = {
    "missing": ("no/such/file.png", "No such file"),
    "empty path": ("", "a folder"),
    "URL": ("https://example.org/street.jpg", "No such file"),
    "data URL": ("data:image/png;base64," + "A" * 9999, "name too long"),
    "null": ("a\0b.png", "embedded null"),  # "byte", or "character" since Python 3.13
    "pipe": ("pipe.png", "a named pipe"),
    "device": ("/dev/zero", "a device"),
    "dead link": ("link.png", "a link to nothing"),
    "text": ("text.png", "text.png"),
    "array scalar": (np.uint8(3), r"image of shape \(\)"),
    "vector": (np.zeros(3, np.uint8), r"image of shape \(3,\)"),
    "rank 5": (PIXELS[None, None], r"image of shape \(1, 1, 4, 5, 3\)"),
    "empty batch": (PIXELS[None][:0], "not be empty"),
    "no height": (PIXELS[:0], "not be empty"),
    "2 channels": (PIXELS[..., :2], r"shape \(4, 5, 2\)"),
    "channels first": (np.zeros((3, 4, 5), np.uint8), r"shape \(3, 4, 5\)"),
    "bools": (PIXELS > 0, "dtype bool"),
    "complex": (PIXELS.astype(complex), "dtype complex128"),
    "objects": (PIXELS.astype(object), "dtype object"),
    "texts": (PIXELS.astype(str), "dtype <U3"),
    "dates": (PIXELS.astype("M8[s]"), "dtype datetime64"),
    "durations": (PIXELS.astype("m8[s]"), "dtype timedelta64"),
    "infinity": (np.full((4, 5, 3), np.inf), r"0\.\.255\. Received: image of values inf"),
    "NaN": (np.full((4, 5, 3), np.nan), r"0\.\.255\. Received: image of values nan"),
    "negative": (PIXELS - 1.0, r"0\.\.255\. Received: image of values -1"),
    "16 bits": (PIXELS.astype(np.uint16) + 256, r"0\.\.255"),
    "cut picture": (Image.open(io.BytesIO(JPEG[:700])), "that can be decoded"),
}


@pytest.mark.parametrize("name", [*TYPES, *VALUES])
def test_what_is_no_image_is_refused_in_one_line(brightest, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.png")
    Path("link.png").symlink_to("nothing.png")
    Path("text.png").write_text("no picture")
    given, message = VALUES.get(name, (TYPES.get(name), "image"))
    with pytest.raises(TypeError if name in TYPES else ValueError, match=message) as caught:
        predict(brightest, given)
    text = str(caught.value)
    assert re.match("`image` must .*Received: image", text)
    assert "\n" not in text
    assert len(text) < 500


def test_a_file_that_cannot_be_read(brightest, tmp_path, image, monkeypatch):
    Image.fromarray(image).save(tmp_path / "secret.png")

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", denied)
    with pytest.raises(ValueError, match=r"`image` must .*secret\.png.*Permission denied"):
        predict(brightest, tmp_path / "secret.png")


def test_of_a_fixed_size(tmp_path, image):
    model = channel_model(size=(9, 7))
    np.testing.assert_array_equal(predict(model, image), image.argmax(-1))
    Image.fromarray(image[1:]).save(tmp_path / "small.png")
    for other in (image[1:], tmp_path / "small.png"):
        with pytest.raises(ValueError, match=r"at least of the model.s input size \(9, 7\)"):
            predict(model, other)
    larger = np.random.default_rng(0).integers(0, 256, (21, 16, 3), np.uint8)
    for sides in ((9, 7), (None, 7), (9, None)):  # in windows
        found = predict(channel_model(size=sides), larger)
        np.testing.assert_array_equal(found, larger.argmax(-1))
    with pytest.raises(ValueError, match="at least of the model.s input size"):
        predict(channel_model(size=(None, 17)), larger)


def test_of_a_fixed_number_of_images(image):
    inputs = keras.Input(batch_shape=(2, 9, 7, 3))
    x = keras.layers.Reshape((63, 3))(inputs)  # which contains the number
    x = keras.layers.Dense(3, kernel_initializer="identity")(x)
    model = keras.Model(inputs, keras.layers.Reshape((9, 7, 3))(x))
    np.testing.assert_array_equal(predict(model, image), image.argmax(-1))


def test_every_window_has_the_size_that_a_model_needs():
    pixels = np.random.default_rng(0).integers(0, 256, (200, 150, 3), np.uint8)
    model = channel_model(size=(128, 128))
    model = keras.Model(model.inputs, keras.layers.Reshape((128, 128, 3))(model.outputs[0]))
    np.testing.assert_array_equal(predict(model, pixels), pixels.argmax(-1))


def test_a_batch_that_does_not_fit_is_predicted_image_by_image(brightest, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 250, 240, 3), np.uint8)
    seen, labels = [], functions.ModelFunctions.labels

    def counted(self, part):
        seen.append(part.shape[0])
        return labels(self, part)

    monkeypatch.setattr(functions.ModelFunctions, "labels", counted)
    for memory, expected in ((2**31, [3]), (300 * 300 * 48, [1, 1, 1])):
        monkeypatch.setattr("keras_deeplab.inference.windows.MEMORY", memory)
        np.testing.assert_array_equal(predict(brightest, pixels), pixels.argmax(-1))
        assert seen == expected
        seen.clear()


def counting_model():
    """A model whose class is the brightest channel, and the shapes that it was traced with."""
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


def test_compiles_once_for_all_sizes_and_follows_the_weights(image):
    model, traces = counting_model()
    batch = np.stack([image, image[::-1]])
    wide = np.repeat(image, 9, 1)
    for given in (image, batch, wide, image[:1, :1], image.astype(float), image.astype("i8")):
        np.testing.assert_array_equal(predict(model, given), np.argmax(given, -1))
    kernel = np.eye(3)[[1, 2, 0]]
    model.set_weights([kernel, np.zeros(3)])
    np.testing.assert_array_equal(predict(model, image), (image @ kernel).argmax(-1))
    model.trainable = False
    model.compile("sgd", "mse")
    predict(model, image)
    assert traces == [(None, None, None, 3)] * 2  # once for each value of the weights
    dense = model.layers[-1]
    dense.enable_lora(1)
    dense.lora_kernel_a.assign(np.ones((3, 1)))
    dense.lora_kernel_b.assign([[0.0, 0.0, 9.0]])
    assert np.unique(predict(model, image)) == 2


def test_follows_the_precision_of_layers(image):
    model = channel_model()
    model.set_weights([0.03 * np.eye(3), np.zeros(3)])
    whole = predict(model, image, probabilities=True)
    model.layers[-1].dtype_policy = keras.DTypePolicy("mixed_bfloat16")
    half = tf.nn.softmax(tf.cast(model(image[None].astype("f4")), tf.float32))[0]
    assert np.abs(whole - half).max() > 1e-3
    np.testing.assert_allclose(predict(model, image, probabilities=True), half, atol=1e-5)


def test_logits_that_are_resized_in_half_precision(image):
    inputs = keras.Input((None, None, 3))
    x = keras.layers.AveragePooling2D(4, padding="same")(keras.layers.Rescaling(1 / 32)(inputs))
    models = [
        keras.Model(inputs, keras_deeplab.layers.ResizeLike(dtype=dtype)(x, inputs))
        for dtype in ("float32", "bfloat16")
    ]
    whole, half = (tf.nn.softmax(tf.cast(model(image[None]), tf.float32))[0] for model in models)
    assert np.abs(whole - half).max() > 1e-3
    for model, expected in zip(models, (whole, half), strict=True):
        np.testing.assert_allclose(predict(model, image, probabilities=True), expected, atol=1e-5)


def test_of_several_views_follows_the_weights(image):
    network = channel_model()
    model = keras_deeplab.MultiScale(network, (0.5, 1.0), fusion="mean", flip=True)
    before = predict(model, image)
    np.testing.assert_array_equal(before, np.argmax(model(image[None].astype("f4")), -1)[0])
    network.set_weights([np.eye(3)[[1, 2, 0]], np.zeros(3)])
    after = predict(model, image)
    np.testing.assert_array_equal(after, np.argmax(model(image[None].astype("f4")), -1)[0])
    assert (before != after).any()


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (33, 70), (128, 31), (300, 129)])
def test_labels_by_strips_are_those_of_the_resized_logits(align_corners, size):
    logits = tf.random.stateless_normal((2, 7, 9, 5), (0, 1))
    resize = keras_deeplab.layers.ResizeLike(align_corners=align_corners)
    whole = resize(logits, tf.zeros((2, *size, 1)))
    labels = upsampled_labels(logits, tf.constant(size), align_corners, tf.uint8)
    np.testing.assert_array_equal(labels, tf.argmax(whole, -1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v3_plus", "unet", "v2"])
def test_models_give_the_labels_and_probabilities_of_their_logits(name):
    """Some end in an enlargement, some after a crop, and some in a convolution."""
    model = calibrated(name)
    for size in ((70, 45), (3, 5)):
        pixels = structured_image(*size)
        logits = model(pixels, training=False)
        labels = predict(model, pixels)
        top = np.sort(logits, -1)
        clear = top[..., -1] - top[..., -2] > 1e-4
        np.testing.assert_array_equal(labels[clear], np.argmax(logits, -1)[clear])
        assert clear.mean() > 0.9
        found = predict(model, pixels, probabilities=True)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, tf.nn.softmax(logits), atol=1e-4)


def test_a_model_with_its_own_call_is_not_taken_apart(image):
    class Negative(keras_deeplab.DeepLabV3):
        def call(self, *args, **kwargs):
            return -super().call(*args, **kwargs)

    model = Negative(3, tiny(), aspp_filters=8, aspp_rates=(), head_filters=None)
    found = predict(model, image, probabilities=True)
    expected = tf.nn.softmax(model(image[None], training=False))[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("fixed", [False, True])
def test_windows_of_a_network_that_sees_one_pixel(brightest, fixed, capsys):
    model = channel_model(size=(32, 40)) if fixed else brightest
    pixels = np.random.default_rng(0).integers(0, 256, (2, 97, 81, 3), np.uint8)
    options = {"window": (32, 40), "overlap": 7}
    labels = predict(model, pixels, **options)
    np.testing.assert_array_equal(labels, pixels.argmax(-1))
    assert "window" in capsys.readouterr().out
    found = predict(model, pixels[0], probabilities=True, verbose=0, **options)
    assert capsys.readouterr().out == ""
    expected = predict(brightest, pixels[0], probabilities=True)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_window_is_chosen_for_what_does_not_fit(brightest, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 290, 3), np.uint8)
    seen, probabilities = [], functions.ModelFunctions.probabilities

    def counted(self, part):
        seen.append(part.shape)
        return probabilities(self, part)

    monkeypatch.setattr(functions.ModelFunctions, "probabilities", counted)
    np.testing.assert_array_equal(predict(brightest, pixels), pixels.argmax(-1))
    assert seen == []
    monkeypatch.setattr("keras_deeplab.inference.windows.MEMORY", 1000)
    np.testing.assert_array_equal(predict(brightest, pixels), pixels.argmax(-1))
    assert seen == [(1, 192, 192, 3), (1, 192, 162, 3), (1, 172, 192, 3), (1, 172, 162, 3)]
    seen.clear()
    predict(brightest, pixels, overlap=0)
    assert seen == [(1, 160, 160, 3), (1, 160, 130, 3), (1, 140, 160, 3), (1, 140, 130, 3)]


def test_a_prediction_that_does_not_fit(brightest, image, monkeypatch):
    monkeypatch.setattr(predicting, "available_memory", lambda: 50)
    with pytest.raises(MemoryError, match=r"^`image` must be so small .* shape \(9, 7, 3\)"):
        predict(brightest, image, window=(4, 4))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"window": (256,)}, "`window` must be a positive integer, or "),
        ({"window": (0, 5)}, "`window` must be a positive integer, or "),
        ({"window": (8, 8), "overlap": 8}, "`overlap` must be below the window's sides, 8"),
        ({"overlap": -1}, "`overlap` must be a non-negative integer"),
        ({"probabilities": "yes"}, "`probabilities` must be True or False"),
    ],
)
def test_wrong_windows(brightest, image, options, message):
    with pytest.raises(ValueError, match=message):
        predict(brightest, image, **options)


@pytest.mark.parametrize(
    "size, sides", [((64, 64), 64), ((64, None), 64), ((300, None), 256), ((None, None), 256)]
)
@pytest.mark.parametrize("more", [0, 36])
def test_an_overlap_is_below_the_sides_that_the_model_fixes(size, sides, more):
    pixels = np.zeros((400, 300, 3), np.uint8)
    with pytest.raises(ValueError, match=f"`overlap` must be below the window's sides, {sides}"):
        predict(channel_model(size=size), pixels, overlap=sides + more)


def test_windows_of_another_size_than_the_models(image):
    model = channel_model(size=(9, 7))
    with pytest.raises(ValueError, match=r"`window` must be the model's input size \(9, 7\)"):
        predict(model, image, window=(8, 7))
    with pytest.raises(ValueError, match=r"at least of the model's input size \(9, 7\)"):
        predict(model, image[1:], window=(9, 7))


def test_memory_is_estimated_from_the_largest_map():
    model = calibrated("v3_plus")
    once = functions.bytes_per_pixel(model)
    assert 4 * 4 * 3 <= once < 1000
    several = keras_deeplab.MultiScale(model, (1.0, 2.0), flip=True)
    assert functions.bytes_per_pixel(several) == once * 5
    enlarged = keras_deeplab.MultiScale(model, scales=(2.0,))
    assert functions.bytes_per_pixel(enlarged) == once * 4
    reduced = keras_deeplab.MultiScale(model, scales=(0.1,))
    assert functions.bytes_per_pixel(reduced) == 4 * 4 * 3  # the logits


def test_a_loss_that_cannot_be_saved_does_not_matter(image):
    model = channel_model()
    several = keras_deeplab.MultiScale(model, (1.0,), flip=True)
    model.compile("sgd", partial(keras.losses.mean_squared_error))
    np.testing.assert_array_equal(predict(several, image), image.argmax(-1))


def test_leaves_the_model_as_it_was(image, tmp_path):
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
    known, seen = len(_FUNCTIONS), weakref.ref(model)
    del model
    gc.collect()
    assert seen() is None
    assert len(_FUNCTIONS) < known


def test_without_enough_memory(brightest, image, monkeypatch):
    def exhausted(self, pixels):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM")

    monkeypatch.setattr(functions.ModelFunctions, "labels", exhausted)
    with pytest.raises(MemoryError, match=r"^`image` must .* shape \(9, 7, 3\).*smaller `window`"):
        predict(brightest, image)


def test_warns_of_divided_pixels_only(brightest, image):
    with pytest.warns(UserWarning, match="Do not divide by 255"):
        predict(brightest, image / 255.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        predict(brightest, image.astype(np.float32))
        predict(brightest, np.zeros((4, 4, 3), np.float32))


SOFTMAXES = {
    "layer": lambda x: keras.layers.Softmax()(x),
    "activation": lambda x: keras.layers.Activation("softmax")(x),
    "function": keras.ops.softmax,
    "argument": lambda x: keras.layers.Conv2D(3, 1, activation="softmax")(x),
    "sigmoid": lambda x: keras.layers.Conv2D(3, 1, activation="sigmoid")(x),
    "sigmoid function": keras.ops.sigmoid,
}
ENDS = {
    "nothing": lambda model: model,
    "views": lambda model: keras_deeplab.MultiScale(model, (0.5, 1.0)),
    "nested": lambda model: keras.Model(model.inputs, model(model.inputs[0])),
    "float32": lambda model: keras.Model(
        model.inputs, keras.layers.Activation("linear", dtype="float32")(model.outputs[0])
    ),
    "resized": lambda model: keras.Model(
        model.inputs, keras_deeplab.layers.ResizeLike()(model.outputs[0], model.inputs[0])
    ),
    "upsampled": lambda model: keras.Model(
        model.inputs, keras.layers.UpSampling2D(2)(model.outputs[0])
    ),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("softmax", SOFTMAXES)
def test_warns_of_a_softmax_at_the_end(image, softmax, end, recwarn):
    inputs = keras.Input((None, None, 3))
    attention = SOFTMAXES[softmax](keras.layers.Conv2D(3, 1)(inputs))
    keras_deeplab.predict(ENDS[end](keras.Model(inputs, attention * inputs)), image)
    assert not [one for one in recwarn if "The model ends" in str(one.message)]
    name = "sigmoid" if "sigmoid" in softmax else "softmax"
    with pytest.warns(UserWarning, match=f"The model ends in a {name}"):
        keras_deeplab.predict(ENDS[end](keras.Model(inputs, attention)), image)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_warns_of_weights_that_are_not_finite(image, value):
    inputs = keras.Input((None, None, 3))
    layer = keras.layers.Conv2D(3, 1, name="layer")
    model = keras.Model(inputs, layer(inputs))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        predict(model, image)
    layer.bias.assign([0, value, 0])
    with pytest.warns(UserWarning, match=r"NaN or infinite values \(1, such as layer/bias\)"):
        predict(model, image)


def test_wrong_models(image):
    inputs = keras.Input((None, None, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(inputs)
    for outputs in ([inputs, inputs], pooled, inputs[..., :1]):
        with pytest.raises(ValueError, match="`model` must"):
            predict(keras.Model(inputs, outputs), image)

    class Subclassed(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="functional"):
        predict(Subclassed(), image)
