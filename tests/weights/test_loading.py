"""Files of this package, reports, and what does not fit."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from calibration import image
from models.networks import tiny
from sources import scattered, unchanged

import keras_deeplab
from keras_deeplab import weights
from keras_deeplab.weights import WeightsError

SMALL = {"aspp_filters": 8, "backbone_options": {"depth_multiplier": 0.25}}
PIXELS = image(65, 97)


def v3(num_classes: int = 3, **arguments) -> keras_deeplab.DeepLabV3:
    arguments = {"head_filters": None, **SMALL, **arguments}
    return keras_deeplab.DeepLabV3(num_classes, "mobilenet_v2", **arguments)


@pytest.fixture(scope="module")
def trained() -> keras_deeplab.DeepLabV3:
    return scattered(v3())


@pytest.fixture(scope="module")
def files(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    trained.save(folder / "model.keras")
    trained.save_weights(folder / "model.weights.h5")
    return folder


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])
def test_own_files_come_back(trained, files, name):
    model = v3()
    report = weights.load(model, files / name)
    assert report.missing_keys == report.unexpected_keys == report.notes == ()
    np.testing.assert_array_equal(model(PIXELS), trained(PIXELS))


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])
def test_another_number_of_classes_keeps_its_own_predictor(trained, files, name):
    model = v3(5)
    before = [np.array(w) for w in model.get_layer("logits").weights]
    report = weights.load(model, files / name)
    assert report.missing_keys == ("logits",)
    assert report.notes == ("logits predicts 5 classes, the checkpoint's 3: it was not loaded",)
    assert report.unexpected_keys == ("logits/kernel", "logits/bias")
    for old, new in zip(before, model.get_layer("logits").weights, strict=True):
        np.testing.assert_array_equal(old, new)
    inner = [keras.Model(m.inputs, m.get_layer("aspp").output) for m in (model, trained)]
    np.testing.assert_array_equal(inner[0](PIXELS), inner[1](PIXELS))


def test_the_constructor_takes_what_the_weights_need(trained, files, logs):
    model = keras_deeplab.DeepLabV3(weights=files / "model.keras")
    assert model.get_config() == trained.get_config()
    assert "missing keys: none" in logs.text
    np.testing.assert_array_equal(model(PIXELS), trained(PIXELS))
    other = keras_deeplab.DeepLabV3(7, weights=files / "model.keras", output_stride=8)
    assert (other.num_classes, other.output_stride) == (7, 8)
    assert other.get_config()["aspp_rates"] == (12, 24, 36)
    assert other.get_config()["backbone_options"] == trained.get_config()["backbone_options"]
    plus = keras_deeplab.DeepLabV3Plus(
        4, weights=files / "model.keras", aspp_filters=8, separable=False
    )
    assert plus.get_config()["backbone"] == "mobilenet_v2"
    assert "aspp" not in " ".join(plus.transfer_report.missing_keys)
    assert "logits" in plus.transfer_report.missing_keys


def test_weights_are_no_part_of_the_configuration(files):
    model = keras_deeplab.DeepLabV3(weights=files / "model.keras")
    assert "weights" not in model.get_config()
    assert keras_deeplab.DeepLabV3.from_config(model.get_config()).num_classes == 3


def test_from_pretrained_builds_the_model(trained, files):
    model = weights.from_pretrained(files / "model.keras")
    assert type(model) is keras_deeplab.DeepLabV3
    np.testing.assert_array_equal(model(PIXELS), trained(PIXELS))
    assert keras_deeplab.from_pretrained(files / "model.keras", 5).num_classes == 5
    with pytest.raises(WeightsError, match=r"model\.weights\.h5: .*which model"):
        weights.from_pretrained(files / "model.weights.h5")


def test_a_network_of_the_users_own(tmp_path):
    model = scattered(keras_deeplab.DeepLabV3(3, tiny(), aspp_filters=8, head_filters=None))
    model.save(tmp_path / "own.keras")
    again = weights.from_pretrained(tmp_path / "own.keras")
    np.testing.assert_array_equal(again(PIXELS), model(PIXELS))
    fresh = keras_deeplab.DeepLabV3(3, tiny(), aspp_filters=8, head_filters=None)
    network = scattered(tiny())
    report = weights.load(fresh, network)
    assert all(path.startswith("backbone/") for path in report.loaded)
    stem = fresh.backbone.get_layer("stem").kernel
    np.testing.assert_array_equal(stem, network.get_layer("stem").kernel)
    with pytest.raises(WeightsError, match="published weights need a `backbone` that has a name"):
        weights.load(fresh, "imagenet")


def test_a_model_is_a_source_and_so_is_a_wrapper(trained):
    several = keras_deeplab.MultiScale(trained, scales=(0.5, 1.0))
    model = v3()
    assert weights.load(model, several).missing_keys == ()
    np.testing.assert_array_equal(model(PIXELS), trained(PIXELS))


def test_a_backbone_alone_takes_weights(trained, files):
    backbone = keras_deeplab.backbones.build(
        "mobilenet_v2", (None, None, 3), **SMALL["backbone_options"]
    )
    report = weights.load(backbone, files / "model.keras")
    assert report.missing_keys == ()
    assert "logits/kernel" in report.unexpected_keys
    mine = [w for w in backbone.weights if w.path.endswith("block5_expand_conv/kernel")]
    its = [w for w in trained.weights if w.path.endswith("block5_expand_conv/kernel")]
    np.testing.assert_array_equal(mine[0], its[0])


def test_settings_that_differ_are_said(files):
    model = v3(backbone_options={"depth_multiplier": 0.25, "padding": "same"}, epsilon=1e-3)
    notes = weights.load(model, files / "model.keras").notes
    assert set(notes) == {
        "`padding` is 'same'; the weights were trained with 'symmetric'",
        "`epsilon` is 0.001; the weights were trained with 1e-05",
    }


@pytest.mark.parametrize(
    "model, message",
    [
        (
            lambda: v3(aspp_filters=16),
            r"shapes do not fit: aspp/.* the checkpoint's \(1, 1, 80, 8\)",
        ),
        (
            lambda: keras_deeplab.DeepLabV3(3, "xception41", aspp_filters=8),
            "backbone 'mobilenet_v2', which does not have .* layers of the model's backbone",
        ),
        (
            lambda: keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]),
            "does not have 1 layers",
        ),
    ],
)
def test_another_network_is_refused_and_nothing_changed(files, model, message):
    model = model()
    with unchanged(model), pytest.raises(WeightsError, match=message):
        weights.load(model, files / "model.keras")


def test_a_structured_file_of_another_network_is_refused(files):
    with pytest.raises(WeightsError, match=r"another network than 'deeplab_v3'.* differences"):
        weights.load(v3(aspp_filters=16), files / "model.weights.h5")


def test_a_file_of_a_run_that_went_wrong_is_refused(tmp_path):
    wrong, model = scattered(v3()), v3()
    wrong.get_layer("logits").bias.assign([np.nan, 0, np.inf])
    wrong.save(tmp_path / "model.keras")
    wrong.save_weights(tmp_path / "model.weights.h5")
    message = "logits/bias must (hold|be) finite"
    for source in (tmp_path / "model.keras", tmp_path / "model.weights.h5", wrong):
        with unchanged(model), pytest.raises(WeightsError, match=message):
            weights.load(model, source)


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])
@pytest.mark.parametrize("share", [0.001, 0.5, 0.99])
def test_a_truncated_file_is_refused(files, tmp_path, name, share):
    content = (files / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(content[: int(share * len(content))])
    model = v3()
    before = np.array(model.weights[0])
    with pytest.raises(WeightsError, match=name.replace(".", r"\.")):
        weights.load(model, path)
    np.testing.assert_array_equal(before, model.weights[0])


@pytest.mark.parametrize("how", ["named", "positional", "arguments"])
def test_a_subclass_sets_arguments_beside_weights(trained, how):
    """Whatever its own constructor looks like, an explicit argument is kept."""

    class Named(keras_deeplab.DeepLabV3):
        def __init__(self, pretrained):
            super().__init__(num_classes=5, preprocessing=None, weights=pretrained)

    class Positional(keras_deeplab.DeepLabV3):
        def __init__(self, pretrained):
            super().__init__(5, preprocessing=None, weights=pretrained)

    class Arguments(keras_deeplab.DeepLabV3):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)

    model = {
        "named": lambda: Named(trained),
        "positional": lambda: Positional(trained),
        "arguments": lambda: Arguments(5, preprocessing=None, weights=trained),
    }[how]()
    config = model.get_config()
    assert (config["num_classes"], config["preprocessing"]) == (5, None)
    assert config["backbone"] == "mobilenet_v2"  # of the weights
