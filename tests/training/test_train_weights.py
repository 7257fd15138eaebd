"""Which model and which backbone training takes from the weights that it starts from."""

from __future__ import annotations

import numpy as np
import pytest
from models.networks import tiny

import keras_deeplab
from keras_deeplab import data
from keras_deeplab.weights import WeightsError, opening, published
from training import building, train

SHAPES = data.Shapes(train=2, val=1)
INFO, REPORT = SHAPES.info, data.audit(SHAPES)
OPTIONS = {"aspp_filters": 8, "backbone_options": {"depth_multiplier": 0.25}}


def started(*arguments: str):
    """The options and the model that a command line comes to."""
    options = train.parser().parse_args(list(arguments))
    source = building.start(options)
    recipe = train.chosen_recipe(options, REPORT)
    return options, building.build(options, recipe, INFO, source)


@pytest.fixture(scope="module")
def v3(tmp_path_factory):
    model = keras_deeplab.DeepLabV3(3, "mobilenet_v2", head_filters=None, **OPTIONS)
    path = tmp_path_factory.mktemp("v3") / "v3.keras"
    model.save(path)
    return model, str(path)


def test_without_weights():
    options, model = started("--mixed-precision", "bfloat16")
    assert (options.model, options.backbone) == ("deeplab_v3_plus", "mobilenet_v2")
    assert model.get_config()["separable"] is True
    assert model.dtype_policy.name == "mixed_bfloat16"


def test_model_and_backbone_are_the_files(v3):
    original, file = v3
    options, model = started("--weights", file, "--output-stride", "8")
    assert (options.model, options.backbone) == ("deeplab_v3", "mobilenet_v2")
    changed = {"num_classes": INFO.num_classes, "output_stride": 8, "aspp_rates": (12, 24, 36)}
    assert model.get_config() == {**original.get_config(), **changed}
    assert model.transfer_report.missing_keys == ("logits",)


def test_another_model_takes_what_fits(v3):
    options, model = started("--weights", v3[1], "--model", "deeplab_v3_plus")
    assert options.backbone == "mobilenet_v2"
    assert type(model) is keras_deeplab.DeepLabV3Plus
    assert not [path for path in model.transfer_report.missing_keys if path.startswith("backbone/")]
    found = model.backbone.get_layer("block5_expand_conv").kernel
    np.testing.assert_array_equal(found, v3[0].backbone.get_layer("block5_expand_conv").kernel)
    options, model = started("--weights", v3[1], "--model", "unet")
    assert options.backbone == "mobilenet_v2"
    assert type(model) is keras_deeplab.UNet


def test_another_backbone_is_refused(v3):
    with pytest.raises(WeightsError, match="'mobilenet_v2', but `backbone` is 'xception41'"):
        started("--weights", v3[1], "--backbone", "xception41")


@pytest.mark.parametrize("build", [keras_deeplab.DeepLabV3Plus, keras_deeplab.UNet])
def test_a_network_of_the_users_own_comes_with_its_file(tmp_path, build):
    original = build(3, tiny())
    original.save(tmp_path / "own.keras")
    options, model = started("--weights", str(tmp_path / "own.keras"))
    assert options.backbone is None
    assert type(model) is build
    assert model.transfer_report.missing_keys == ("logits",)
    for old, new in zip(original.backbone.weights, model.backbone.weights, strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    "arguments, file",
    [
        (["pascal_voc"], "deeplabv3_mnv2_pascal_train_aug"),
        (["ade20k"], "deeplabv3_mnv2_ade20k_train"),
        (["pascal_voc", "--backbone", "xception65"], "deeplabv3_pascal_train_aug"),
        (["pascal_voc", "--model", "deeplab_v3_plus", "--backbone", "xception65"], "deeplabv3_pas"),
        (["imagenet"], "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top"),
        (["imagenet", "--model", "deeplab_v1"], "vgg16_weights_tf_dim_ordering_tf_kernels_notop"),
    ],
)
def test_a_published_name_fits_model_and_backbone(v3, monkeypatch, arguments, file):
    entries = []

    def opened(entry, moving_averages):
        entries.append(entry)
        return keras_deeplab.weights.open_source(v3[0])

    monkeypatch.setattr(opening, "_published", opened)
    building.start(train.parser().parse_args(["--weights", *arguments]))
    assert entries[0].file_name.startswith(file)


def test_a_name_and_a_network_mean_one_file():
    networks = [(entry.name, entry.network) for entry in published.PUBLISHED]
    assert len(set(networks)) == len(networks)


def test_a_file_that_names_no_model_is_loaded_into_the_one_asked_for(tmp_path):
    original = started("--model", "deeplab_v3")[1]
    original.save_weights(tmp_path / "own.weights.h5")
    _, model = started("--model", "deeplab_v3", "--weights", str(tmp_path / "own.weights.h5"))
    for old, new in zip(original.weights, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)
