"""Receptive fields of stages against the published figures, and on small networks by hand."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers as kl
from models.networks import zero_kernels

import keras_deeplab as kd
from keras_deeplab.analysis import receptive_field


def stages(model, **size):
    return {stage.name: stage for stage in receptive_field(model, **size).stages}


# Networks, stages, receptive fields.
PUBLISHED = [
    ("VGG16", "block5", 212),
    ("ResNet50", "conv5", 483),
    pytest.param("ResNet101", "conv5", 1027, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("network, name, field", PUBLISHED)
def test_published_backbones(network, name, field):
    with zero_kernels():
        model = getattr(keras.applications, network)(include_top=False, weights=None)
    found = stages(model)[name]
    assert found.receptive_field == (field, field)
    assert found.stride == (32, 32)
    assert not found.whole_image


@pytest.mark.slow
def test_published_aspp():
    with zero_kernels():
        model = kd.DeepLabV3(21, "resnet50", multi_grid=(1, 1, 1), output_stride=16)
    found = stages(model)
    # With the rates of the last block that the removed stride leaves: 619, 811 and 1003.
    assert [found[f"aspp/atrous_{k}"].receptive_field[0] for k in range(3)] == [619, 811, 1003]
    assert [found[f"aspp/atrous_{k}"].rate for k in range(3)] == [6, 12, 18]
    assert found["aspp/project"].whole_image
    assert receptive_field(model).stages[-1].stride == (1, 1)


def test_by_hand():
    inputs = keras.Input((None, None, 3))
    x = kl.Conv2D(4, 3, strides=2, padding="same", name="stem_conv")(inputs)
    x = kl.ReLU(name="stem_act")(x)
    x = kl.Conv2D(4, 3, dilation_rate=5, padding="same", name="block1_a")(x)
    x = kl.Conv2D(4, (1, 3), padding="same", name="block1_b")(x)
    x = kl.ReLU(name="block1_c")(x)
    outputs = kl.Conv2D(2, 1, name="head")(x)
    report = receptive_field(keras.Model(inputs, outputs), 64, 64)
    stem, block = report.stages
    assert (stem.name, stem.receptive_field, stem.stride, stem.rate) == ("stem", (3, 3), (2, 2), 1)
    assert (block.name, block.receptive_field, block.rate) == ("block1", (23, 27), 5)
    assert stem.offset == (1.0, 1.0)  # "same" pads an even size at the end only
    lines = str(report).splitlines()
    assert lines[0].split() == ["stage", "stride", "receptive", "field", "centre", "rate"]
    assert lines[2].split() == ["block1", "2", "23x27", "1", "5"]
    assert report.to_dict()["stages"][1]["rate"] == 5


def pixels_that_change(model, row, column):
    """Rows and columns of a 33x41 image on which one place of the output depends."""
    single_pixels = np.eye(33 * 41, dtype="float32").reshape(-1, 33, 41, 1)
    changed = model(single_pixels).numpy()[:, row, column].any(-1)
    return np.nonzero(changed.reshape(33, 41))


def test_the_field_is_where_an_image_changes_the_output():
    """The rectangle of field and centre is that of the pixels with an influence."""
    model = keras.Sequential(
        [
            keras.Input((33, 41, 1)),
            kl.Conv2D(2, 3, strides=2, padding="valid", kernel_initializer="ones"),
            kl.Conv2D(
                2, 3, dilation_rate=2, padding="valid", kernel_initializer="ones", name="last"
            ),
        ]
    )
    stage = receptive_field(model).stages[-1]
    rows, columns = pixels_that_change(model, 2, 3)
    height, width = stage.receptive_field
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (height, width)
    centre = [o + k * s for o, k, s in zip(stage.offset, (2, 3), stage.stride, strict=True)]
    assert [(rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2] == centre


def test_layers_with_default_names_are_stages_of_their_own():
    keras.backend.clear_session()
    model = keras.Sequential(
        [
            keras.Input((64, 64, 3)),
            *(kl.Conv2D(4, 3, padding="same"), kl.ReLU(), kl.MaxPooling2D()),
            *(kl.Conv2D(4, 3, padding="same"), kl.ReLU(), kl.MaxPooling2D()),
        ]
    )
    found = [(stage.name, stage.receptive_field[0]) for stage in receptive_field(model).stages]
    assert found == [("conv2d", 3), ("max_pooling2d", 4), ("conv2d_1", 8), ("max_pooling2d_1", 10)]


@pytest.mark.parametrize("name", ["_conv", "__", "_1", "a__b", "conv_"])
def test_layers_may_have_any_names(name):
    model = keras.Sequential([keras.Input((None, None, 3)), kl.Conv2D(2, 5, name=name)])
    (stage,) = receptive_field(model).stages
    assert stage.receptive_field == (5, 5)
    assert name.startswith(stage.name)


def test_activations_between_the_layers_of_a_block_are_no_stages():
    """Named as in MobileNetV3 of keras.applications."""
    inputs = x = keras.Input((None, None, 3))
    for block in ("expanded_conv_1", "expanded_conv_10"):
        x = shortcut = kl.Conv2D(4, 3, padding="same", name=f"{block}_expand")(x)
        x = kl.Conv2D(4, 3, padding="same", name=f"{block}_project")(kl.ReLU()(x))
        x = kl.Activation("tanh")(kl.Add()([x, shortcut]))
    assert list(stages(keras.Model(inputs, x))) == ["expanded_conv_1", "expanded_conv_10"]


@pytest.mark.parametrize("moving", [kl.Cropping2D(((5, 1), (2, 4))), kl.ZeroPadding2D(3)])
def test_the_last_stage_is_the_output(moving):
    inputs = keras.Input((33, 41, 1))
    x = kl.Conv2D(1, 3, kernel_initializer="ones", name="block1_conv")(inputs)
    model = keras.Model(inputs, moving(x))
    rows, columns = pixels_that_change(model, 12, 9)
    box = receptive_field(model).stages[-1].box((12, 9), (33, 41))
    assert box == (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)


def test_the_box_of_an_unknown_place_is_an_error():
    inputs = keras.Input((None, None, 3))
    x = kl.Conv2D(4, 3, strides=2, padding="same")(inputs)
    whole = keras.Model(inputs, kl.GlobalAveragePooling2D(keepdims=True)(x))
    for model in (keras.Model(inputs, x), whole):
        with pytest.raises(ValueError, match="must be a map with a known offset.*`height`"):
            receptive_field(model).stages[-1].box((0, 0), (64, 64))
    assert receptive_field(keras.Model(inputs, x), 64, 64).stages[-1].box((0, 0), (64, 64))


def test_a_network_of_1x1_kernels_and_a_classifier_have_a_last_stage():
    inputs = keras.Input((8, 8, 3))
    pixelwise = receptive_field(keras.Model(inputs, kl.Conv2D(2, 1)(inputs))).stages
    assert [stage.receptive_field for stage in pixelwise] == [(1, 1)]
    x = kl.GlobalAveragePooling2D()(kl.Conv2D(4, 3, name="block1_conv")(inputs))
    report = receptive_field(keras.Model(inputs, kl.Dense(5, name="predictions")(x)))
    assert report.stages[-1].whole_image
    assert str(report).splitlines()[-1].split()[:3] == ["predictions", "-", "image"]
