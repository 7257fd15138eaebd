from __future__ import annotations

import warnings

import numpy as np
import pytest
import tensorflow as tf

from keras_deeplab import labels as labels_module
from keras_deeplab.boundary import BoundaryScores
from keras_deeplab.labels import check_labels, read_labels, warn_of_single_class
from keras_deeplab.losses import LOSSES, CrossEntropy, class_weights, parse
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


@pytest.mark.parametrize("last", [(), (1,)])
@pytest.mark.parametrize("loss", [*LOSSES, "metrics"])
def test_labels_and_weights_of_unknown_rank(loss, last):
    """As `tf.py_function` returns them, and TensorFlow after calls with several ranks."""
    random = np.random.default_rng(0)
    truth, weights = random.integers(0, 3, (2, 5, 6)), random.uniform(size=(2, 5, 6))
    logits = tf.constant(random.normal(size=(2, 5, 6, 3)), tf.float32)
    metric = SegmentationMetrics(3)

    def compute(truth, weights):
        if loss != "metrics":
            return parse(loss)(truth, logits, sample_weight=weights)
        metric.reset_state()
        metric.update_state(truth, logits, weights)
        return tf.identity(metric.confusion)

    unknown = tf.TensorSpec(None, tf.int64), tf.TensorSpec(None, tf.float64)
    with_unknown = tf.function(compute, input_signature=unknown, autograph=False)
    for given in (weights, weights[..., None], weights[:, 0, 0], weights[:, :1, 0]):
        expected = compute(truth, given)
        found = with_unknown(truth.reshape(*truth.shape, *last), given)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    with pytest.raises(tf.errors.InvalidArgumentError):
        with_unknown(truth[:, :4], weights)
    for wrong in (weights[:, :, 0], weights[..., None, None], np.float64(1)):
        with pytest.raises(ValueError, match="`sample_weight` must be one weight per image"):
            compute(truth, wrong)
        with pytest.raises(tf.errors.InvalidArgumentError, match="must be one weight per image"):
            with_unknown(truth, wrong)


@pytest.mark.parametrize("loss", [*LOSSES, "metrics"])
def test_sizes_that_are_known_only_in_the_graph_are_checked(loss):
    random = np.random.default_rng(0)
    truth, weights = random.integers(0, 3, (4, 5, 6)), random.uniform(size=(4, 5, 6))
    logits = random.normal(size=(4, 5, 6, 3)).astype("float32")

    metric = SegmentationMetrics(3)

    def compute(truth, logits, weights):
        if loss != "metrics":
            return parse(loss)(truth, logits, sample_weight=weights)
        metric.reset_state()
        metric.update_state(truth, logits, weights)
        return tf.identity(metric.confusion)

    def in_graph(*given):
        specs = [tf.TensorSpec([None] * np.ndim(each), each.dtype) for each in given[::2]]
        specs.insert(1, tf.TensorSpec((None, None, None, 3), tf.float32))
        return tf.function(compute, input_signature=specs, autograph=False)(*given)

    for given in (weights, weights[:, 0, 0], weights[:, :1]):
        expected = compute(truth, logits, given)
        np.testing.assert_allclose(in_graph(truth, logits, given), expected, rtol=1e-5)
    for wrong in (truth.transpose(0, 2, 1), truth[:1], truth[:, :, :1]):
        for call, fault in ((in_graph, tf.errors.InvalidArgumentError), (compute, ValueError)):
            with pytest.raises(fault, match="`y_true` must be a label map"):
                call(wrong, logits, weights)
    with pytest.raises(ValueError, match=r"`y_true` must be a label map.*argmax.*one-hot"):
        compute(np.eye(3, dtype=int)[truth], logits, weights)
    for wrong in (weights[:1, 0, 0], weights[:1], weights[:, :2], weights[:, :, :2]):
        for call, fault in ((in_graph, tf.errors.InvalidArgumentError), (compute, ValueError)):
            with pytest.raises(fault, match="`sample_weight` must be one weight per image"):
                call(truth, logits, wrong)


@pytest.mark.parametrize("last", [(), (1,)])
def test_strides_leave_out_weights_of_unknown_rank_too(last):
    random = np.random.default_rng(0)
    truth, weights = random.integers(0, 3, (2, 5, 6)), random.uniform(size=(2, 5, 6, *last))
    logits, loss = random.normal(size=(2, 5, 6, 3)), CrossEntropy(stride=2)

    @tf.function(input_signature=[tf.TensorSpec(None, tf.float64)], autograph=False)
    def found(weights):
        return loss(truth, logits, weights)

    expected = CrossEntropy()(truth[:, ::2, ::2], logits[:, ::2, ::2], weights[:, ::2, ::2])
    np.testing.assert_allclose(found(weights), expected, rtol=1e-5)
    np.testing.assert_allclose(loss(truth, logits, weights), expected, rtol=1e-5)


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
    for wrong in ([254, 255], "255", 255.0, True):
        with pytest.raises(ValueError, match="`ignore_label` must be an integer or None. Received"):
            make(ignore_label=wrong)
    for right in (None, 255, np.uint8(255)):
        kept = getattr(make(ignore_label=right), "ignore_label", right)
        assert kept == right
        assert type(kept) in (int, type(None), type(right))


@pytest.fixture
def unwarned(monkeypatch):
    monkeypatch.setattr(labels_module, "_warned", False)


def masks(foreground, count=8, share=0.1):
    """Label maps of one class whose first rows are the foreground."""
    maps = np.zeros((count, 20, 10), np.uint8)
    maps[:, : round(20 * share)] = foreground
    return maps


def measured(labels, jit_compile=False):
    metric = SegmentationMetrics(2)

    def update(label):
        metric.update_state(label[None], tf.zeros((1, *label.shape, 2)))
        return metric.result() if jit_compile else None

    if jit_compile:  # where a metric cannot warn; Keras does so on a GPU
        update = tf.function(update, jit_compile=True, autograph=False)
    for label in labels:
        update(label)
    metric.result()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_masks_of_0_and_255_are_one_warning(jit_compile, unwarned):
    message = r"8 label maps contain no class but 0; 10 % .* ignored label 255.*np\.where"
    with pytest.warns(UserWarning, match=message):
        measured(masks(255), jit_compile)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        measured(masks(255))


def test_each_mask_of_a_batch_counts(unwarned):
    metric, labels = SegmentationMetrics(2), masks(255)
    metric.update_state(labels, tf.zeros((*labels.shape, 2)))
    with pytest.warns(UserWarning, match="8 label maps contain no class but 0; 10 %"):
        metric.result()


@pytest.mark.parametrize(
    "labels",
    [
        masks(1),  # two classes
        np.concatenate([masks(255), masks(1)]),  # void borders, and two classes in some maps
        masks(0),  # nothing is ignored
    ],
    ids=["classes", "borders", "background"],
)
def test_label_maps_as_they_should_be_are_no_warning(labels, unwarned):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        measured(labels)


@pytest.mark.parametrize(
    "pixels, ignored, maps, ignore_label, share",
    [
        (960, 40, 4, 255, None),  # thin borders of a few crops
        (960, 40, 10, None, None),
        (88, 24, 2, 255, None),
        (960, 40, 13, 255, "13 label maps contain no class but 0; 4 %"),
        (70, 30, 2, 255, "2 label maps contain no class but 0; 30 %"),
    ],
)
def test_ignored_pixels_that_are_worth_a_warning(
    pixels, ignored, maps, ignore_label, share, unwarned
):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_single_class(np.array([pixels, 0]), ignored, maps, ignore_label)
    assert len(caught) == (share is not None)
    assert share is None or str(caught[0].message).startswith(share)
