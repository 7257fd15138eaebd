from __future__ import annotations

import keras
import numpy as np
import pytest
from atrous_property import TOLERANCE, compare, rates
from calibration import calibrate, image
from keras import layers as kl

import keras_deeplab
from keras_deeplab.graph import find_feature_tap, geometry, rewrite, with_output_stride

FAMILIES = (
    "VGG16 ResNet50 ResNet50V2 MobileNet MobileNetV2 MobileNetV3Small EfficientNetB0 "
    "EfficientNetV2B0 Xception DenseNet121 ConvNeXtTiny"
).split()
# Networks that scale 0..255 themselves.
SCALING = {"MobileNetV3Small", "EfficientNetB0", "EfficientNetV2B0", "ConvNeXtTiny"}


def pixels(family: str, height: int, width: int, batch: int = 1) -> np.ndarray:
    x = image(height, width, batch)
    return x if family in SCALING else (x - 128) / 64


@pytest.fixture(scope="module")
def family(request) -> tuple[str, keras.Model]:
    name = request.param
    model = getattr(keras.applications, name)(
        include_top=False, weights=None, input_shape=(None, None, 3)
    )
    return name, calibrate(model, pixels(name, 160, 160, batch=2))


@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_the_dense_map_holds_the_coarse_one(family, output_stride):
    name, coarse = family
    weights = [np.asarray(w) for w in coarse.weights]
    dense = with_output_stride(coarse, output_stride)
    assert dense.output_shape == coarse.output_shape
    # Sizes whose maps every removed stride divides, though the image itself is even or odd.
    sizes = ((129, 193), (127, 191))
    divided = (n for n in sizes if geometry(coarse, *n).output.size == (4, 6))
    odd = next(divided, (97, 161))
    for height, width in ((128, 192), odd):
        difference = compare(coarse, dense, pixels(name, height, width))
        assert difference <= TOLERANCE, f"{name} at {output_stride}, {height}x{width}"
    for before, after in zip(weights, coarse.weights, strict=True):
        np.testing.assert_array_equal(before, np.asarray(after))
    # Other sizes: the output has the size of the map at the cap.
    at_cap = geometry(coarse, 168, 200)[find_feature_tap(coarse, output_stride)]
    output = np.asarray(dense(pixels(name, 168, 200), training=False))
    assert output.shape[1:3] == at_cap.size
    assert np.isfinite(output).all()
    assert output.std() > 1e-2


@pytest.mark.parametrize("family", ["ResNet50", "MobileNetV2"], indirect=True)
def test_dilating_the_conv_that_lost_its_stride_is_caught(family, monkeypatch):
    """The mistake of a public package: an operation already works at the rate it causes."""
    name, coarse = family
    original = rewrite.dilation

    def mistaken(shape, source):
        rates = original(shape, source)
        kernels = zip(rates, shape.strides, shape.kernel, strict=True)
        return tuple(rate * (stride if kernel > 1 else 1) for rate, stride, kernel in kernels)

    def padded_as_same(shape, axis, source, is_lost, centred):
        if not is_lost:
            return original_padding(shape, axis, source, is_lost, centred)
        margin = mistaken(shape, source)[axis] * (shape.kernel[axis] - 1)
        return (margin // 2, margin - margin // 2), rewrite._Phase()

    original_padding = rewrite._dense_padding
    monkeypatch.setattr(rewrite, "dilation", mistaken)
    monkeypatch.setattr(rewrite, "_dense_padding", padded_as_same)
    if name == "ResNet50":  # its strides sit on 1x1 kernels: move one onto a 3x3
        inputs = keras.Input((None, None, 3))
        x = kl.Conv2D(8, 3, 2, padding="same", activation="relu")(inputs)
        x = kl.Conv2D(8, 3, 2, padding="same", activation="relu")(x)
        coarse = calibrate(
            keras.Model(inputs, kl.Conv2D(8, 3, padding="same")(x)), pixels(name, 64, 64)
        )
        output_stride = 2
    else:
        output_stride = 16
    fine = with_output_stride(coarse, output_stride)
    with pytest.raises(AssertionError):
        assert compare(coarse, fine, pixels(name, 128, 192)) <= 1.0


def test_rates_of_resnets_equal_the_published_lists():
    def last_stages(stride_on: str, output_stride: int, multi_grid=(1, 2, 4)) -> list[list[int]]:
        network = keras_deeplab.backbones.resnet(50, stride_on=stride_on, multi_grid=multi_grid)
        found = rates(with_output_stride(network, output_stride, reuse_layers=True))
        assert all(name.endswith("_2_conv") for name in found)
        return [
            [found.get(f"stage{stage}_unit{unit}_2_conv", 1) for unit in range(1, units + 1)]
            for stage, units in ((3, 6), (4, 3))
        ]

    # V3, section 3.2.1: Multi_Grid (1, 2, 4) at output stride 16 has rates 2, 4, 8, the first
    # where the stride precedes the 3x3 convolution.
    assert last_stages("1x1", 16) == [[1] * 6, [2, 4, 8]]
    assert last_stages("1x1", 8) == [[2] * 6, [4, 8, 16]]
    # torchvision's deeplabv3_resnet50 (replace_stride_with_dilation), stride on the 3x3.
    assert last_stages("3x3", 8, (1, 1, 1)) == [[1, 2, 2, 2, 2, 2], [2, 4, 4]]
    assert last_stages("3x3", 16) == [[1] * 6, [1, 4, 8]]


def test_rates_of_mobilenet_v2_equal_the_published_list():
    network = keras_deeplab.backbones.mobilenet_v2()
    # The authors' graph: expanded_conv_13 keeps rate 1, 14 to 16 have 2 at output stride 16.
    assert rates(with_output_stride(network, 16)) == {
        f"block{block}_depthwise_conv": 2 for block in (14, 15, 16)
    }
    at_8 = rates(with_output_stride(network, 8))
    assert at_8 == {
        **{f"block{block}_depthwise_conv": 2 for block in (7, 8, 9, 10, 11, 12, 13)},
        **{f"block{block}_depthwise_conv": 4 for block in (14, 15, 16)},
    }


def test_rates_of_xception_follow_its_exit_flow():
    network = keras.applications.Xception(include_top=False, weights=None)
    found = rates(with_output_stride(network, 16))
    # Exit flow: the unit whose pooling lost its stride at rate 1, the last two convolutions at 2.
    assert found == {"block14_sepconv1": 2, "block14_sepconv2": 2}
    at_8 = rates(with_output_stride(network, 8))
    middle = {f"block{block}_sepconv{index}": 2 for block in range(5, 14) for index in (1, 2, 3)}
    middle.pop("block13_sepconv3")
    assert at_8 == {**middle, "block13_pool": 2, "block14_sepconv1": 4, "block14_sepconv2": 4}


def test_impossible_strides_list_the_possible_ones():
    network = keras.applications.MobileNetV2(include_top=False, weights=None)
    for stride in (3, 12, 64, 0, -8, 16.5, True, "16"):
        with pytest.raises(ValueError, match=r"\[1, 2, 4, 8, 16, 32\]"):
            with_output_stride(network, stride)
    convnext = keras.applications.ConvNeXtTiny(include_top=False, weights=None)
    with pytest.raises(ValueError, match=r"\[1, 4, 8, 16, 32\]"):
        with_output_stride(convnext, 2)


def test_a_layer_shared_at_two_strides_is_an_error():
    inputs = keras.Input((64, 64, 4))
    shared = kl.Conv2D(4, 3, padding="same", name="twice")
    x = kl.MaxPooling2D()(shared(inputs))
    model = keras.Model(inputs, kl.MaxPooling2D()(shared(x)))
    with pytest.raises(ValueError, match="'twice' is used at two strides"):
        with_output_stride(model, 1)


def test_a_nested_model_shared_at_two_strides_is_an_error_or_exact():
    inputs = keras.Input((None, None, 3))
    inner = keras.Sequential([keras.Input((None, None, 3)), kl.Conv2D(3, 1, name="twice")])
    x = inner(kl.MaxPooling2D()(inner(inputs)))
    x = kl.Conv2D(4, 3, 2, padding="same", activation="tanh")(x)
    coarse = calibrate(keras.Model(inputs, kl.Conv2D(4, 3, padding="same")(x)), pixels("", 32, 32))
    dense = with_output_stride(coarse, 2)
    assert compare(coarse, dense, pixels("", 32, 48)) <= TOLERANCE
    with pytest.raises(ValueError, match="'sequential.*/twice' is used at two strides"):
        with_output_stride(coarse, 1)


def test_a_layer_shared_at_one_stride_stays_shared():
    inputs = keras.Input((None, None, 3))
    x = kl.Conv2D(4, 3, 2, padding="same", activation="tanh")(inputs)
    shared = kl.Conv2D(4, 3, padding="same", name="twice")
    coarse = calibrate(keras.Model(inputs, shared(shared(x))), pixels("", 32, 32))
    fine = with_output_stride(coarse, 1)
    assert compare(coarse, fine, pixels("", 32, 48)) <= TOLERANCE
    assert len(fine.weights) == len(coarse.weights)


@pytest.mark.parametrize("size", [(32, 48), (33, 47)])
@pytest.mark.parametrize("output_stride", [1, 2])
@pytest.mark.parametrize("grouped", [False, True])
def test_branches_of_different_phase_meet(size, output_stride, grouped):
    """A 'same' 3x3 and a 1x1 shortcut sample even sizes at different pixels."""
    inputs = keras.Input((None, None, 4))
    x = kl.Conv2D(8, 3, padding="same", activation="tanh")(inputs)
    for _ in range(2):
        main = kl.Conv2D(8, 3, 2, padding="same", groups=2 if grouped else 1)(x)
        pooled = kl.AveragePooling2D(3, 2, padding="same")(x)
        short = kl.Conv2D(8, 1, 2, padding="same")(x)
        x = kl.Activation("tanh")(kl.Add()([main, short, pooled]))
    x = kl.AveragePooling2D(3, 1, padding="same")(x)
    random = image(48, 48, channels=4) / 64 - 2
    coarse = calibrate(keras.Model(inputs, x), random)
    fine = with_output_stride(coarse, output_stride)
    x = image(*size, channels=4) / 64 - 2
    assert compare(coarse, fine, x) <= TOLERANCE


def test_even_kernels_and_explicit_padding_keep_their_pixels():
    inputs = keras.Input((None, None, 3))
    x = kl.Conv2D(4, 4, 2, padding="same", activation="tanh")(inputs)
    x = kl.ZeroPadding2D(((2, 0), (1, 3)))(x)
    x = kl.Conv2D(4, 4, padding="valid", activation="tanh")(x)
    x = kl.Conv2D(4, 2, padding="same", activation="tanh")(x)
    x = kl.DepthwiseConv2D(5, padding="same")(x)
    coarse = calibrate(keras.Model(inputs, x), pixels("", 32, 32))
    assert compare(coarse, with_output_stride(coarse, 1), pixels("", 32, 40)) <= TOLERANCE


def test_valid_strides_and_crops():
    inputs = keras.Input((None, None, 3))
    x = kl.Conv2D(8, 3, 2, activation="tanh")(inputs)
    x = kl.Cropping2D(((1, 0), (0, 1)))(x)
    x = kl.Conv2D(8, 5, 2, activation="tanh")(x)
    x = kl.Conv2D(8, 3)(x)
    coarse = calibrate(keras.Model(inputs, x), pixels("", 64, 64))
    for stride in (2, 1):
        fine = with_output_stride(coarse, stride)
        assert compare(coarse, fine, pixels("", 66, 74)) <= TOLERANCE


def test_one_rewrite_after_another_is_the_same_as_one():
    inputs = keras.Input((None, None, 3))
    x = inputs
    for _ in range(3):
        x = kl.Conv2D(6, 3, padding="same", activation="tanh")(x)
        x = kl.MaxPooling2D(2)(x)
    coarse = calibrate(keras.Model(inputs, kl.Conv2D(6, 3, padding="same")(x)), pixels("", 64, 64))
    twice = with_output_stride(with_output_stride(coarse, 4), 2)
    assert compare(coarse, twice, pixels("", 64, 80)) <= TOLERANCE


def test_composite_layers_are_dilated():
    inputs = keras.Input((None, None, 3))
    conv = keras_deeplab.layers.AtrousConv2D(8, 3, strides=2, activation="tanh", name="down")
    x = keras_deeplab.layers.AtrousSeparableConv2D(8, strides=2, name="again")(conv(inputs))
    x = keras_deeplab.layers.ASPP(8, (1, 2), image_pooling=False, name="aspp")(x)
    coarse = calibrate(keras.Model(inputs, x), pixels("", 64, 64, 2))
    fine = with_output_stride(coarse, 1)
    assert fine.get_layer("aspp").rates == ((4, 4), (8, 8))
    assert compare(coarse, fine, pixels("", 64, 49)) <= TOLERANCE


def test_what_cannot_be_finer_is_refused_by_name():
    inputs = keras.Input((32, 32, 3))
    x = kl.Conv2D(4, 3, 2, padding="same")(inputs)
    for layer in (kl.Flatten(name="top"), kl.UpSampling2D(name="top"), kl.Conv2DTranspose(4, 4, 2)):
        with pytest.raises(ValueError, match=f"'{layer.name}' .* becomes denser"):
            with_output_stride(keras.Model(inputs, layer(x)), 1)


def test_reused_layers_are_those_of_the_network_and_belong_to_the_new_graph():
    network = calibrate(keras_deeplab.backbones.resnet(50), pixels("", 96, 96, 2))
    same, changed = (
        network.get_layer("stage4_unit3_3_norm"),
        network.get_layer("stage4_unit3_2_conv"),
    )
    x = pixels("", 97, 129)
    copy = with_output_stride(network, 16)
    dense = with_output_stride(network, 16, reuse_layers=True)
    assert [layer.name for layer in dense.layers] == [layer.name for layer in copy.layers]
    assert dense.get_layer("stage4_unit3_3_norm") is same
    assert dense.get_layer("stage4_unit3_2_conv") is not changed
    np.testing.assert_array_equal(dense(x), copy(x))
    inner = keras.Model(dense.inputs[0], dense.get_layer("stage4_unit3_3_norm").output)
    assert inner(x).shape[1:3] == (7, 9)


def test_clones_keep_their_initializers():
    network = keras.Sequential([keras.Input((None, None, 3)), kl.Conv2D(4, 3, 2, name="conv")])
    clone = with_output_stride(network, 1).get_layer("conv")
    assert isinstance(clone.kernel_initializer, keras.initializers.GlorotUniform)
    np.testing.assert_array_equal(clone.kernel, network.get_layer("conv").kernel)


def test_the_copy_is_independent_and_serialises(tmp_path):
    network = calibrate(
        keras.applications.Xception(include_top=False, weights=None, input_shape=(None, None, 3)),
        pixels("", 96, 96, 2),
    )
    fine = with_output_stride(network, 16)
    x = pixels("", 96, 97)
    expected = np.asarray(fine(x))
    for weight in network.weights:
        weight.assign(np.zeros(weight.shape))
    np.testing.assert_array_equal(np.asarray(fine(x)), expected)
    fine.save(tmp_path / "fine.keras")
    loaded = keras.models.load_model(tmp_path / "fine.keras")
    np.testing.assert_allclose(np.asarray(loaded(x)), expected, atol=1e-5)
    assert geometry(loaded, 96, 97).output == geometry(fine, 96, 97).output
