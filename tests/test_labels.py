from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_deeplab import labels as labels_module
from keras_deeplab.boundary import BoundaryScores
from keras_deeplab.labels import check_labels, read_labels, warn_of_single_class
from keras_deeplab.losses import CrossEntropy, class_weights, parse
from keras_deeplab.metrics import SegmentationMetrics

INTEGERS = ["bool", "uint8", "int8", "uint16", "int16", "int32", "uint32", "int64", "uint64"]
# What int32 turns into 0 or into the ignored label.
NO_LABELS = {
    "divided": np.array([0, 1 / 255], np.float32),
    "halves": np.array([0, 254.5], np.float16),
    "nan": np.array([0, np.nan]),
    "infinite": np.array([0, np.inf]),
    "wide": np.array([0, 2**32]),
    "wider": np.array([0, 2**32 + 255], np.uint64),
}


@pytest.mark.parametrize("dtype", [*INTEGERS, "float16", "float32", "float64"])
def test_labels_of_any_dtype_are_read(dtype):
    given = np.array([0, 1, 1]).astype(dtype)
    read = tf.function(lambda x: read_labels(x, 2, 255), autograph=False)
    for classes, weights in (read(given), read_labels(given, 2, 255)):
        assert (classes.numpy().tolist(), weights.numpy().tolist()) == ([0, 1, 1], [1, 1, 1])
    classes, ignored = check_labels(given, 2, 255)
    assert (classes.tolist(), ignored.any()) == ([0, 1, 1], False)


@pytest.mark.parametrize("labels", NO_LABELS.values(), ids=NO_LABELS)
def test_what_is_no_label_is_never_cut_down_to_one(labels):
    value = str(labels[1])[:5]
    rule = r"(?s)labels must be (whole numbers )?in 0\.\.1 or the ignored label 255.*"
    with pytest.raises(tf.errors.InvalidArgumentError, match=rule + value):
        read_labels(labels, 2, 255)
    with pytest.raises(ValueError, match=rule + value):
        check_labels(labels, 2, 255)
    read = tf.function(lambda x: read_labels(x, 2, 255), jit_compile=True, autograph=False)
    np.testing.assert_array_equal(read(labels)[1], [1, np.nan])


def by_metric(labels, logits):
    SegmentationMetrics(2).update_state(labels, logits)


def by_boundary(labels, logits):
    BoundaryScores(2, widths=[1]).update(labels[0], logits[0].argmax(-1))


READERS = {
    "loss": lambda y, x: CrossEntropy()(y, x),
    "sum": lambda y, x: parse("cross_entropy + dice")(y, x),
    "metric": by_metric,
    "boundary": by_boundary,
    "class_weights": lambda y, x: class_weights(y, 2),
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_a_mask_divided_by_255_is_refused(reader):
    mask = np.float32([[[0, 1, 1], [0, 1, 0]]])
    logits = np.zeros((1, 2, 3, 2), np.float32)
    reader(mask, logits)
    with pytest.raises(
        (ValueError, tf.errors.InvalidArgumentError), match=r"(?s)whole numbers .*0\.0039"
    ):
        reader(mask / 255, logits)


MAKERS = {
    "loss": CrossEntropy,
    "metric": lambda ignore_label: SegmentationMetrics(2, ignore_label=ignore_label),
    "boundary": lambda ignore_label: BoundaryScores(2, ignore_label=ignore_label),
    "class_weights": lambda ignore_label: class_weights(
        [np.array([[0, 1]])], 2, ignore_label=ignore_label
    ),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_ignored_label_is_one_integer_or_none(make):
    for wrong in ([254, 255], (255,), "255", 255.0, True):
        with pytest.raises(
            ValueError, match=r"`ignore_label` must be an integer or None\. Received"
        ):
            make(ignore_label=wrong)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_an_ignored_label_is_kept_as_an_int(make):
    for right in (None, 255, np.uint8(255)):
        made = make(ignore_label=right)
        if hasattr(made, "ignore_label"):
            assert made.ignore_label == right
            assert type(made.ignore_label) in (int, type(None))


@pytest.fixture
def unwarned(monkeypatch):
    monkeypatch.setattr(labels_module, "_warned", False)


def masks(foreground, count=8, share=0.1):
    """Label maps of one class whose first rows are the foreground."""
    maps = np.zeros((count, 20, 10), np.uint8)
    maps[:, : round(20 * share)] = foreground
    return maps


def measured(labels):
    metric = SegmentationMetrics(2)
    for label in labels:
        metric.update_state(label[None], np.zeros((1, *label.shape, 2), np.float32))
    metric.result()


def fitted(labels):
    """Trained with XLA, where a metric cannot warn, as Keras does on a GPU."""
    model = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(2, 1)])
    model.compile("sgd", CrossEntropy(), metrics=[SegmentationMetrics(2)], jit_compile=True)
    images = np.zeros((*labels.shape, 3), np.float32)
    model.fit(images, labels, batch_size=4, shuffle=False, epochs=2, verbose=0)


@pytest.mark.parametrize("use", [measured, fitted])
def test_masks_of_0_and_255_are_one_warning(use, unwarned):
    message = r"8 label maps contain no class but 0; 10 % .* ignored label 255.*np\.where"
    with pytest.warns(UserWarning, match=message):
        use(masks(255))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        measured(masks(255))


@pytest.mark.parametrize(
    "labels",
    [
        masks(1),  # two classes
        np.concatenate([masks(255), masks(1)]),  # void borders, and two classes in some maps
        masks(255, count=2),  # too few to tell
        masks(0),  # nothing is ignored
    ],
    ids=["classes", "borders", "few", "background"],
)
def test_label_maps_as_they_should_be_are_no_warning(labels, unwarned):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        measured(labels)


def test_thin_borders_of_a_few_crops_are_no_warning(unwarned):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_single_class(np.array([960, 0]), 40, 4, 255)
        warn_of_single_class(np.array([960, 0]), 40, 10, None)
        warn_of_single_class(np.array([88, 0]), 24, 2, 255)
    with pytest.warns(UserWarning, match="no class but 0; 4 %"):
        warn_of_single_class(np.array([960, 0]), 40, 13, 255)
    labels_module._warned = False
    with pytest.warns(UserWarning, match="2 label maps contain no class but 0; 30 %"):
        warn_of_single_class(np.array([70, 0]), 30, 2, 255)
