"""Which model and backbone a builder takes from the weights, and which arguments."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from models.networks import tiny
from trainer import tiny_run

import keras_deeplab
from keras_deeplab import backbones, data, recipes
from keras_deeplab.trainer import ModelBuilder
from keras_deeplab.weights import WeightsError, published

CLASSES = data.Shapes().info.num_classes
FINETUNE = recipes.get("finetune")


@pytest.fixture(scope="module", autouse=True)
def small():
    """The network of `mobilenet_v2` is small."""
    with pytest.MonkeyPatch.context() as patch:
        tiny_run.small(patch)
        separable = dataclasses.replace(backbones.BACKBONES["mobilenet_v2"], separable=True)
        patch.setitem(backbones.BACKBONES, "mobilenet_v2", separable)
        yield


def built(*arguments, recipe=FINETUNE, **options):
    builder = ModelBuilder(*arguments, **options)
    return builder, builder.build(CLASSES, recipe)


@pytest.fixture(scope="module")
def v3(small, tmp_path_factory):
    model = keras_deeplab.DeepLabV3(3, "mobilenet_v2", head_filters=None, aspp_filters=8)
    path = tmp_path_factory.mktemp("v3") / "v3.keras"
    model.save(path)
    return model, str(path)


@pytest.mark.slow
def test_without_weights():
    builder, model = built(mixed_precision="bfloat16")
    assert (builder.name, builder.backbone) == ("deeplab_v3_plus", "mobilenet_v2")
    assert model.get_config()["separable"] is True
    assert model.get_config()["decoder_filters"] == 128
    assert model.dtype_policy.name == "mixed_bfloat16"


def test_models_have_their_own_backbones():
    unet = ModelBuilder("unet")
    assert (unet.backbone, unet.network, unet.has_output_stride) == (None, "unet", False)
    assert ModelBuilder("deeplab_v1").network == "vgg16"


@pytest.mark.slow
def test_model_and_backbone_are_the_files(v3):
    original, file = v3
    recipe = FINETUNE.replace(output_stride=8)
    builder, model = built(weights=file, recipe=recipe)
    assert (builder.name, builder.backbone) == ("deeplab_v3", "mobilenet_v2")
    changed = {"num_classes": CLASSES, "output_stride": 8, "aspp_rates": (12, 24, 36)}
    assert model.get_config() == {**original.get_config(), **changed}
    assert model.transfer_report.missing_keys == ("logits",)


@pytest.mark.slow
def test_another_model_takes_what_fits(v3):
    builder, model = built("deeplab_v3_plus", weights=v3[1])
    assert builder.backbone == "mobilenet_v2"
    assert type(model) is keras_deeplab.DeepLabV3Plus
    assert not [path for path in model.transfer_report.missing_keys if path.startswith("backbone/")]
    found = model.backbone.get_layer("conv4").kernel
    np.testing.assert_array_equal(found, v3[0].backbone.get_layer("conv4").kernel)
    assert ModelBuilder("unet", weights=v3[1]).backbone == "mobilenet_v2"


def test_another_backbone_is_refused(v3):
    with pytest.raises(WeightsError, match="must be 'mobilenet_v2': .* Received: xception41"):
        built(weights=v3[1], backbone="xception41")
    with pytest.raises(
        WeightsError, match="must be 'mobilenet_v2': .* a network of your own, tiny"
    ):
        keras_deeplab.DeepLabV3(3, tiny(), weights=v3[1])


@pytest.mark.slow
def test_a_network_of_the_users_own_comes_with_its_file(tmp_path):
    original = keras_deeplab.UNet(3, tiny())
    original.save(tmp_path / "own.keras")
    builder, model = built(weights=tmp_path / "own.keras")
    assert builder.backbone is None
    assert type(model) is keras_deeplab.UNet
    assert model.transfer_report.missing_keys == ("logits",)
    for old, new in zip(original.backbone.weights, model.backbone.weights, strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    "arguments, file",
    [
        ({"weights": "pascal_voc"}, "deeplabv3_mnv2_pascal_train_aug"),
        ({"weights": "ade20k"}, "deeplabv3_mnv2_ade20k_train"),
        ({"weights": "pascal_voc", "backbone": "xception65"}, "deeplabv3_pascal_train_aug"),
        (
            {"weights": "pascal_voc", "name": "deeplab_v3_plus", "backbone": "xception65"},
            "deeplabv3_pas",
        ),
        ({"weights": "imagenet"}, "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top"),
        (
            {"weights": "imagenet", "name": "deeplab_v1"},
            "vgg16_weights_tf_dim_ordering_tf_kernels_notop",
        ),
    ],
)
def test_a_published_name_fits_model_and_backbone(monkeypatch, arguments, file):
    names = []

    def fetch(url, file_hash, file_name):
        names.append(file_name)
        raise InterruptedError

    monkeypatch.setattr(published, "fetch", fetch)
    with pytest.raises(InterruptedError):
        ModelBuilder(**arguments)
    assert names[0].startswith(file)


@pytest.mark.slow
def test_weights_of_keras_are_loaded_into_the_named_model(tmp_path):
    _, model = built("deeplab_v3_plus")
    assert model.get_config()["detail_layer"] is not None
    file = str(tmp_path / "own.weights.h5")
    model.save_weights(file)
    _, again = built("deeplab_v3_plus", weights=file)
    for old, new in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    # A recipe's arguments are left out where a model lacks them, its output stride is not.
    coarse = built("deeplab_v3", recipe=FINETUNE.replace(output_stride=32))[1].get_config()
    assert coarse["output_stride"] == 32
    assert "detail_layer" not in coarse


@pytest.mark.parametrize("name", ["u_net", "unet"])
def test_other_names_and_precisions_are_refused(name):
    with pytest.raises(ValueError, match="`(name|mixed_precision)` must be one of"):
        ModelBuilder(name, mixed_precision="float64")
