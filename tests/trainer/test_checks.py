"""What is refused or warned of before a training."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from models.networks import tiny
from trainer.test_fitting import FAST, RECIPE, SOURCE, plain, small

import keras_deeplab
from keras_deeplab import DeepLabV3, UNet, data, recipes
from keras_deeplab.trainer import checks


def warned_of_padding(model, crop_size, caplog):
    caplog.clear()
    checks.warn_of_padding(model, crop_size)
    return [record.message for record in caplog.records]


@pytest.mark.parametrize(
    "size, crop, scale, hint",
    [
        ((3000, 4000), (513, 513), 1.0, "image_scale=0.25"),
        ((1800, 2400), (513, 513), 1.0, "image_scale=0.5"),
        ((3000, 4000), (129, 129), 0.5, "image_scale=0.12"),
        ((3000, 4000), (513, 513), 25.0, "image_scale=25 enlarges the images"),
        ((750, 1000), (129, 129), 1.0, None),  # of a good size
        ((1024, 2048), (513, 513), 1.0, None),  # Cityscapes
    ],
)
def test_small_crops_of_large_images_are_a_warning(size, crop, scale, hint, logs):
    part = data.SplitReport(1, size, size, (1.0,), 0.0, (1.0,))
    recipe = RECIPE.replace(crop_size=crop, image_scale=scale)
    checks.warn_of_small_crops(part, recipe)
    assert [hint in each for each in logs.messages] == ([True] if hint else [])


@pytest.mark.slow
def test_a_crop_too_small_for_the_rates_is_one_warning(caplog, eager):
    """On a map of 33 samples the positions with one live tap are the majority from rate 29 on."""
    keras.utils.set_random_seed(7)
    model = DeepLabV3(6, tiny(), aspp_rates=(6, 28, 29, 40), aspp_filters=8, head_filters=None)
    (message,) = warned_of_padding(model, (513, 513), caplog)
    assert "Crops of 513x513 become feature maps of 33x33" in message
    assert "the atrous rates 29, 40 act mostly as 1x1" in message
    (message,) = warned_of_padding(model, (513, 785), caplog)  # height and width
    assert "Crops of 785x513 become feature maps of 50x33" in message
    assert warned_of_padding(model, (801, 1025), caplog) == []
    # The rate 4 of the backbone, on maps of 4x4, is not one of the head.
    small = DeepLabV3(6, tiny(), aspp_rates=(1,), aspp_filters=8, head_filters=None)
    assert warned_of_padding(small.with_output_stride(8), (32, 32), caplog) == []
    assert warned_of_padding(keras.Sequential([keras.layers.Dense(3)]), (64, 64), caplog) == []
    # The papers' crops and rates, and the whole images of the embedded data set.
    paper = DeepLabV3(6, tiny(), aspp_filters=8, head_filters=None)
    assert warned_of_padding(paper, (513, 513), caplog) == []
    assert warned_of_padding(paper.with_output_stride(8), (513, 513), caplog) == []
    caplog.clear()
    two_stages = RECIPE.replace(epochs=1)
    keras_deeplab.fit(paper, SOURCE, two_stages, steps_per_epoch=1, verbose=0)
    assert sum("act mostly as 1x1" in record.message for record in caplog.records) == 1


class TwoReplicas:
    num_replicas_in_sync = 2


SMALL = small()
TWO = {"strategy": TwoReplicas()}
FIXED = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Conv2D(6, 1)])
FROZEN = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(6, 1)])
FROZEN.trainable = False
PIXELS = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(6, 1)])


@pytest.mark.parametrize(
    "model, more, message",
    [
        (SMALL.with_num_classes(3), {}, "`model` must be a model of 6 classes"),
        (FROZEN, {}, "`model` must be a model with weights that are not frozen"),
        ("deeplab_v9", {}, "`name` must be one of .*'deeplab_v3_plus'"),
        ("unet", {"recipe": "v9"}, "`name` must be one of 'v1', 'v2', 'v3'"),
        (keras_deeplab.trainer.ModelBuilder(mixed_precision="float16"), TWO, "float16 does not"),
        (SMALL, {**TWO, "recipe": FAST.replace(batch_size=3)}, "`batch_size` must be divisible"),
        (SMALL, TWO, "`model` must be built under the strategy"),
        (SMALL, {"tensorboard": True}, "`run_dir` must be given for `tensorboard`"),
        (SMALL, {"steps_per_epoch": 0}, "`steps_per_epoch` must be a positive integer"),
        (PIXELS, {"recipe": RECIPE}, "`model` must be a model with `with_output_stride`"),
        ("unet", {"recipe": FAST.replace(model={"depht": 3})}, "`model` must be one of .*'depth'"),
        (SMALL, {"test_scales": [1, 1.0]}, "`test_scales` must be a list of distinct"),
        (SMALL, {"recipe": FAST.replace(batch_norm="freeze")}, "The recipe shapes has batch_norm "),
        (UNet(6, tiny()), {"recipe": RECIPE}, "`output_stride` must be left as it is: a UNet"),
        (SMALL, {"recipe": RECIPE.replace(stage2_output_stride=12)}, "`output_stride`"),
        (FIXED, {}, r"its \(32, 32\).*'crop_size': \(48, 64\)"),
        (FIXED, {"recipe": FAST.replace(crop_size=(32, 32))}, r"its \(32, 32\).*'smallest of val'"),
        (FIXED, {"test_scales": [1, 2]}, "images of any size"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_training(model, more, message, logs):
    with pytest.raises(ValueError, match=message):
        keras_deeplab.fit(model, SOURCE, **{"recipe": FAST, **more})
    assert not any(text.startswith("Epoch 1") for text in logs.messages)


@pytest.mark.parametrize(
    "classes, message",
    [
        (("thing",), "`source` must be a data set of two classes or more"),
        (("traffic light", "traffic_light"), "`class_names` must be 2 different names"),
    ],
)
def test_classes_that_cannot_be_trained_are_refused_before_the_audit(
    tmp_path, monkeypatch, classes, message
):
    monkeypatch.setattr(data, "audit", None)
    source = type("Own", (data.Shapes,), {"info": data.DatasetInfo(classes)})(2, 1)
    with pytest.raises(ValueError, match=message):
        keras_deeplab.fit("unet", source, FAST, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_softmax_at_the_end_is_a_warning_before_the_training():
    def stop():
        raise KeyboardInterrupt

    network = plain()
    model = keras.Model(network.inputs, keras.layers.Softmax()(network.outputs[0]))
    began = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: stop())
    with (
        pytest.warns(UserWarning, match="The model ends in a softmax"),
        pytest.raises(KeyboardInterrupt),
    ):
        keras_deeplab.fit(model, SOURCE, FAST, steps_per_epoch=1, verbose=0, callbacks=[began])


@pytest.mark.parametrize(
    "callback, rule",
    [
        (keras.callbacks.LearningRateScheduler(lambda epoch: 0.1), "recipe has `learning_rate`"),
        (keras.callbacks.ReduceLROnPlateau(), "recipe has `learning_rate`"),
        (keras.callbacks.BackupAndRestore("backup"), "resumes a run in `run_dir`"),
        (keras.callbacks.TerminateOnNaN, "a list of Keras callbacks"),
    ],
)
def test_callbacks_that_do_what_fit_does_are_refused_before_the_training(callback, rule, tmp_path):
    with pytest.raises(ValueError, match=rule):
        keras_deeplab.fit(plain(), SOURCE, FAST, run_dir=tmp_path / "run", callbacks=[callback])
    assert not (tmp_path / "run").exists()


def of_size(end, outputs=lambda logits: logits):
    """A network of coarse logits."""
    inputs = keras.Input((None, None, 3))
    logits = keras.layers.Conv2D(6, 3, 16, padding="same")(inputs)
    return keras.Model(inputs, outputs(end(logits, inputs)))


def enlarged(logits, _):
    return keras.layers.UpSampling2D(16)(logits)


def like(logits, inputs):
    return keras_deeplab.layers.ResizeLike()(logits, inputs)


@pytest.mark.parametrize(
    "end, found",
    [
        (lambda logits, _: logits, r"\(48, 64\) of crop_size.*\(3, 4\)"),
        (enlarged, "smallest of val"),
    ],
)
def test_logits_of_another_size_than_the_image_are_refused_before_the_training(end, found, logs):
    with pytest.raises(ValueError, match=f"`model` must be one whose logits .*{found}"):
        keras_deeplab.fit(of_size(end), SOURCE, FAST)
    assert not any(text.startswith("Epoch 1") for text in logs.messages)


@pytest.mark.parametrize("outputs", [lambda x: x, lambda x: [x], lambda x: {"out": x}])
def test_logits_of_the_size_of_the_image_in_any_structure(outputs):
    network = of_size(like, outputs)
    report = data.audit(SOURCE)
    checks.check_model(network, FAST, SOURCE.info, tf.distribute.get_strategy())
    checks.check_input_size(network, FAST, report)


def test_a_network_for_large_images_alone():
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(6, 70)(inputs)  # fails on smaller images
    network = keras.Model(inputs, like(x, inputs))
    checks.check_model(network, FAST, SOURCE.info, tf.distribute.get_strategy())
    report = data.audit(SOURCE)
    assert min(report.splits["val"].smallest) > 70
    checks.check_input_size(network, FAST.replace(crop_size=(80, 80)), report)


def test_frozen_batch_norms_need_statistics_and_no_norms_need_none():
    inputs, frozen = keras.Input((8, 8, 3)), recipes.get("v2")
    model = keras.Sequential([inputs, keras.layers.Conv2D(6, 1)])
    checks.check_frozen_norms(model, frozen)
    norm = keras.layers.BatchNormalization()
    model.add(norm)
    checks.check_frozen_norms(model, recipes.get("v3"))
    with pytest.raises(ValueError, match="v2 has batch_norm 'freeze', which needs trained stat"):
        checks.check_frozen_norms(model, frozen)
    norm.moving_mean.assign(np.eye(6)[0])
    checks.check_frozen_norms(model, frozen)
