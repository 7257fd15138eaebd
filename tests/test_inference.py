from __future__ import annotations

import json
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_deeplab.inference import evaluate, predict
from keras_deeplab.metrics import scores


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
    with pytest.raises(ValueError, match="received"):
        predict(model, Image.fromarray(image[..., 0].astype(np.uint16) * 256))


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
        (lambda x: x[..., :2], r"received shape \(9, 7, 2\)"),
        (lambda x: x[0, 0], r"received shape \(3,\)"),
        (lambda x: x[:0], "not empty"),
        (lambda x: x / 127.5 - 1, r"0\.\.255; received -1"),
        (lambda x: x.astype(int) * 2, r"0\.\.255"),
        (lambda x: np.where(x > 9, np.nan, x), r"0\.\.255; received nan"),
        (lambda x: x > 9, "dtype bool"),
    ],
)
def test_predict_refuses(image, change, message):
    image[0, 0] = 0
    with pytest.raises(ValueError, match=message):
        predict(channel_model(), change(image))


def test_predict_warns_of_divided_pixels_only(image):
    with pytest.warns(UserWarning, match="do not divide by 255"):
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
        with pytest.raises(ValueError, match="model must"):
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
    traces = []

    class Counter(keras.layers.Layer):
        def call(self, x):
            traces.append(tuple(x.shape))
            return x

    inputs = keras.Input((None, None, 3))
    logits = keras.layers.Dense(3, kernel_initializer="identity")(Counter()(inputs))
    model = keras.Model(inputs, logits)
    traces.clear()
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
