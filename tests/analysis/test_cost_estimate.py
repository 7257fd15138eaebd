"""Costs against counting by hand, Keras' own counts and TensorFlow's tensors."""

from __future__ import annotations

import json

import keras
import pytest
from keras import layers as kl
from models import networks

import keras_deeplab as kd
from keras_deeplab.analysis import cost
from keras_deeplab.trainer import MODELS


def small():
    """Maps of 16x16 with 4, 4, 4 and 2 channels: 4096, 4096, 4096 and 2048 bytes."""
    inputs = keras.Input((None, None, 4))
    x = kl.Conv2D(4, 3, padding="same", use_bias=False, name="block1_conv")(inputs)
    x = kl.BatchNormalization(name="block1_norm")(x)
    x = kl.ReLU(name="block1_act")(x)
    return keras.Model(inputs, kl.Conv2D(2, 1, name="head")(x))


def test_by_hand():
    found = cost(small(), 16, 16, batch_size=3)
    first, head = found.stages
    assert (first.name, first.parameters, first.multiply_adds) == ("block1", 144 + 16, 144 * 256)
    assert (head.name, head.parameters, head.multiply_adds) == ("head", 10, 8 * 256)
    assert (found.parameters, found.multiply_adds) == (170, 152 * 256)
    # Inference: the input and the output of one layer. Weights: 170 values.
    maps = int(0.9 * 3 * 2 * 4096)
    assert found.inference_bytes == 172_000_000 + 4 * 140_000 + 170 * 4 + maps
    # Training: gradients and one slot of all but the moving statistics; maps and a working set.
    values = 170 + 2.8 * (170 - 8)
    maps = 0.98 * (3 * 4096 + 2048) + 2.1 * 2 * 4096
    assert found.training_bytes == 243_000_000 + int(4 * values + 3 * maps)
    adam = cost(small(), 16, 16, batch_size=3, slots=2)
    assert adam.training_bytes - found.training_bytes == 162 * 4


def test_parameters_are_those_of_keras():
    model = kd.DeepLabV3(4, networks.tiny(), auxiliary_layer=None)
    found = cost(model, 188, 188)
    assert found.parameters == model.count_params()
    assert found.multiply_adds == sum(kd.graph.multiply_adds(model, 188, 188).values())
    assert sum(stage.parameters for stage in found.stages) == found.parameters
    assert sum(stage.multiply_adds for stage in found.stages) == found.multiply_adds


# By network the growth of a new process, from before the model is built to the peak over three
# training steps (SGD with momentum) or three traced predictions, float32 on two cores without
# oneDNN: what, side of the image, batch and bytes.
TRAINING, INFERENCE = "training_bytes", "inference_bytes"
MEASURED = {
    ("deeplab_v3_plus", "mobilenet_v2"): [(TRAINING, 257, 4, 1157e6), (INFERENCE, 257, 4, 257e6)],
    ("deeplab_v3_plus", "xception65"): [(TRAINING, 193, 2, 1741e6), (INFERENCE, 385, 1, 491e6)],
    ("deeplab_v3", "resnet50"): [(TRAINING, 257, 2, 1300e6), (INFERENCE, 385, 2, 420e6)],
    ("deeplab_v1", "vgg16"): [(TRAINING, 257, 2, 1018e6), (INFERENCE, 385, 1, 297e6)],
    ("unet", None): [(TRAINING, 188, 2, 1421e6), (INFERENCE, 188, 2, 353e6)],
    (None, "EfficientNetB0"): [(TRAINING, 257, 4, 988e6), (INFERENCE, 513, 4, 451e6)],
    (None, "MobileNetV3Small"): [(TRAINING, 257, 8, 564e6), (INFERENCE, 513, 4, 262e6)],
    (None, "DenseNet121"): [(INFERENCE, 385, 2, 276e6)],
}


@pytest.mark.slow
@pytest.mark.parametrize("name, backbone", MEASURED)
def test_memory_is_within_15_percent_of_measured_peaks(name, backbone):
    with networks.zero_kernels():
        if name is not None:
            model = MODELS[name](21, backbone)
        else:
            network = getattr(keras.applications, backbone)(include_top=False, weights=None)
            model = keras.Model(network.input, kl.Conv2D(21, 1)(network.output))
    for kind, size, batch, peak in MEASURED[name, backbone]:
        found = cost(model, size, size, batch)
        assert found.parameters == model.count_params()
        assert getattr(found, kind) == pytest.approx(peak, rel=0.15)


def test_a_layer_that_is_used_twice_has_its_parameters_once():
    inputs = keras.Input((8, 8, 3))
    shared = kl.Conv2D(3, 1, name="shared")
    found = cost(keras.Model(inputs, shared(shared(inputs))), 8, 8)
    assert (found.parameters, found.multiply_adds) == (12, 2 * 9 * 64)


def test_a_map_that_a_layer_reads_twice_is_freed_once():
    inputs = keras.Input((8, 8, 4))  # 1024 bytes, as all maps but the last, which has 65536
    x = kl.Multiply(name="square")([inputs, inputs])
    x = kl.Conv2D(256, 1, name="wide")(kl.ReLU(name="act")(x))
    found = cost(keras.Model(inputs, x), 8, 8, batch_size=100)
    rest = found.inference_bytes - 172_000_000 - 3 * 140_000 - (4 + 1) * 256 * 4
    assert rest == int(0.9 * 100 * (1024 + 65536))


def test_memory_grows_with_the_batch_and_bounds_it():
    model = kd.DeepLabV3(4, networks.tiny(), aspp_filters=8)
    found = cost(model, 65, 97, memory=400_000_000)
    for name, batch in (
        ("training_bytes", found.largest_training_batch),
        ("inference_bytes", found.largest_inference_batch),
    ):
        assert getattr(cost(model, 65, 97, batch), name) <= 400_000_000
        assert getattr(cost(model, 65, 97, batch + 1), name) > 400_000_000
    assert 1 < found.largest_training_batch < found.largest_inference_batch
    none = cost(model, 65, 97, memory=1000)
    assert (none.largest_training_batch, none.largest_inference_batch) == (0, 0)
    assert f"training {found.largest_training_batch}, inference" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["size"] == [65, 97]


def test_a_batch_that_fills_the_memory_exactly_fits():
    peak = cost(small(), 64, 64, batch_size=5)
    for name in ("training", "inference"):
        memory = getattr(peak, f"{name}_bytes")
        assert getattr(cost(small(), 64, 64, memory=memory), f"largest_{name}_batch") == 5


def test_training_takes_the_maps_of_the_auxiliary_head_too():
    peaks = []
    for auxiliary in (None, "stage16_out"):
        model = kd.DeepLabV3(4, networks.tiny(), aspp_filters=8, auxiliary_layer=auxiliary)
        one, two = (cost(model, 65, 65, batch) for batch in (1, 2))
        peaks += [two.training_bytes - one.training_bytes]
        peaks += [two.inference_bytes - one.inference_bytes]
    assert peaks[2] > peaks[0]
    assert peaks[3] == peaks[1]


def test_the_image_is_one_of_the_maps():
    inputs = keras.Input((16, 16, 4))
    assert cost(keras.Model(inputs, inputs), 16, 16).parameters == 0
    found = cost(keras.Model(inputs, kl.Conv2D(1, 1, use_bias=False)(inputs)), 16, 16, batch_size=9)
    rest = found.inference_bytes - 172_000_000 - 140_000 - 4 * 4
    assert rest == int(0.9 * 9 * (4096 + 1024))


def test_weights_of_half_precision_take_two_bytes():
    inputs = keras.Input((1, 1, 10), dtype="bfloat16")
    found = {}
    for dtype in ("float32", "bfloat16"):
        layer = kl.Conv2D(1000, 1, use_bias=False, dtype=dtype)
        found[dtype] = cost(keras.Model(inputs, layer(inputs)), 1, 1).inference_bytes
    assert found["float32"] - found["bfloat16"] == 2 * 10_000 + int(0.9 * 1000 * 2)


def test_half_precision_halves_the_maps_of_the_backbone():
    peaks = []
    for dtype in ("float32", "mixed_bfloat16"):
        with networks.zero_kernels():
            model = kd.DeepLabV1(4, "vgg16", head_filters=8, dtype=dtype)
        one, two = (cost(model, 257, 257, batch).training_bytes for batch in (1, 2))
        peaks.append(two - one)
    assert 0.5 < peaks[1] / peaks[0] < 0.6  # the logits stay float32


def test_bad_arguments():
    for arguments in ({"batch_size": 0}, {"slots": -1}, {"memory": 0}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            cost(small(), 16, 16, **arguments)


def test_maps_that_are_made_from_a_vector():
    inputs = keras.Input((16, 16, 3))
    x = kl.Dense(128)(kl.Flatten()(inputs))
    x = kl.Conv2D(16, 3, padding="same", name="conv")(kl.Reshape((4, 4, 8))(x))
    x = kl.Conv2D(2, 3, strides=2, name="last")(x)
    found = kd.graph.multiply_adds(keras.Model(inputs, x), 16, 16)
    assert (found["conv"], found["last"]) == (9 * 8 * 16 * 16, 9 * 16 * 2 * 1)
