"""TensorFlow checkpoints of both kinds, and the authors' networks in them."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from calibration import image
from parity import write_tf1
from sources import ASPP, HEAD, as_the_authors_write_it, scattered, tar_gz

import keras_deeplab
from keras_deeplab import weights
from keras_deeplab.weights import WeightsError
from keras_deeplab.weights.families import tf1_deeplab
from keras_deeplab.weights.transfer import weighted_layers

PIXELS = image(65, 97)
AVERAGE = "/ExponentialMovingAverage"


AUTHORS = {"align_corners": True, "separable": True}
HALF = {"depth_multiplier": 0.5, "padding": "same"}
# The model, and how its backbone's scope begins in a checkpoint.
NETWORKS = {
    "half": (
        lambda: keras_deeplab.DeepLabV3(
            21,
            "mobilenet_v2",
            aspp_rates=(),
            head_filters=None,
            align_corners=True,
            backbone_options=HALF,
        ),
        dict(tf1_deeplab._blocks()),
    ),
    "mobilenet_with_all": (
        lambda: keras_deeplab.DeepLabV3Plus(
            5, "mobilenet_v2", backbone_options={"padding": "same"}, **AUTHORS
        ),
        dict(tf1_deeplab._blocks()),
    ),
    "xception41": (
        lambda: keras_deeplab.DeepLabV3Plus(19, "xception41", **AUTHORS),
        dict(tf1_deeplab._xception(41, "xception_41/")),
    ),
    "xception71": (
        lambda: keras_deeplab.DeepLabV3Plus(19, "xception71", output_stride=8, **AUTHORS),
        dict(tf1_deeplab._xception(71, "xception_71/")),
    ),
    "resnet50_beta": (
        lambda: keras_deeplab.DeepLabV3Plus(21, "resnet50_beta", **AUTHORS),
        dict(tf1_deeplab._beta_layers(50, "resnet_v1_50/")),
    ),
}
LARGE = ("xception41", "xception71", "resnet50_beta")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in LARGE else ()) for n in NETWORKS]
)
def test_the_authors_networks_come_back_whole(tmp_path, name):
    build, layers = NETWORKS[name]
    model = scattered(build())
    branches = sum(
        "atrous_" in path and path.endswith("depthwise") for path in weighted_layers(model)
    )
    layers = {**layers, **HEAD, **{k: v for k, v in ASPP.items() if branches}}
    prefix = write_tf1(tmp_path / "model.ckpt-7", as_the_authors_write_it(model, layers))
    stride = {"output_stride": model.output_stride}
    found = weights.convert(prefix, **stride)
    assert found.transfer_report.fresh == found.transfer_report.left_over == ()
    assert found.get_config() == model.get_config()
    np.testing.assert_array_equal(found(PIXELS), model(PIXELS))


@pytest.fixture(scope="module")
def half() -> tuple[keras.Model, dict[str, np.ndarray]]:
    build, layers = NETWORKS["half"]
    model = scattered(build())
    return model, as_the_authors_write_it(model, {**layers, **HEAD})


def test_slots_and_averages_are_told_apart(half, tmp_path):
    model, arrays = half
    kernel = "MobilenetV2/Conv/weights"
    extra = {
        "global_step": np.int64(7),
        f"{kernel}/Momentum": np.ones_like(arrays[kernel]),
        f"{kernel}/RMSProp_1": np.ones_like(arrays[kernel]),
        **{f"{name}{AVERAGE}": array + 1 for name, array in arrays.items()},
    }
    prefix = write_tf1(tmp_path / "model.ckpt", {**arrays, **extra})
    plain = weights.convert(prefix)
    np.testing.assert_array_equal(plain(PIXELS), model(PIXELS))
    left_over = plain.transfer_report.left_over
    assert set(left_over) == {*extra} - {"global_step"}
    averaged = weights.convert(prefix, moving_averages=True)
    stem = averaged.backbone.get_layer("stem_conv").kernel
    np.testing.assert_allclose(stem, arrays[kernel] + 1)
    with pytest.raises(WeightsError, match="`moving_averages` were asked for"):
        weights.convert(write_tf1(tmp_path / "bare", arrays), moving_averages=True)


def test_every_way_to_name_a_checkpoint(half, tmp_path):
    model, arrays = half
    folder = tmp_path / "deeplabv3_mnv2_pascal"
    folder.mkdir()
    prefix = write_tf1(folder / "model.ckpt-30000", arrays)
    archive = tmp_path / "deeplabv3_mnv2_pascal.tar.gz"
    archive.write_bytes(tar_gz(folder))
    data = next(folder.glob("*.data-*"))
    for path in (prefix, Path(f"{prefix}.index"), data, folder, archive):
        found = weights.convert(path)
        np.testing.assert_array_equal(found(PIXELS), model(PIXELS))
    write_tf1(folder / "another.ckpt", arrays)
    with pytest.raises(WeightsError, match="several checkpoints"):
        weights.convert(folder)


def test_a_checkpoint_by_objects(half, tmp_path):
    model, _ = half
    prefix = str(tmp_path / "objects")
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build(model.trainable_variables)
    tf.train.Checkpoint(model=model, optimizer=optimizer).write(prefix)
    build, _ = NETWORKS["half"]
    found = build()
    report = weights.load(found, prefix)
    assert report.fresh == ()
    assert report.left_over
    assert all(
        "momentum" in n or "optimizer" in n or "learning_rate" in n or "iteration" in n
        for n in report.left_over
    )
    np.testing.assert_array_equal(found(PIXELS), model(PIXELS))


@pytest.mark.parametrize("suffix", ["index", "data-00000-of-00001"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_checkpoint_is_refused(half, tmp_path, suffix, share):
    prefix = write_tf1(tmp_path / "cut", half[1])
    file = Path(f"{prefix}.{suffix}")
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(WeightsError, match="cut: it is damaged or incomplete"):
        weights.convert(prefix)


def test_other_networks_are_refused(half, tmp_path):
    _, arrays = half
    some = {name: a for name, a in arrays.items() if not name.startswith("aspp0/")}
    with pytest.raises(WeightsError, match=r"lacks the layer aspp0"):
        weights.convert(write_tf1(tmp_path / "no_aspp", some))
    some = {name: a for name, a in arrays.items() if "expanded_conv_5/" not in name}
    with pytest.raises(WeightsError, match=r"lacks \d of its layers: MobilenetV2/expanded_conv_5"):
        weights.convert(write_tf1(tmp_path / "holes", some))
    plain = {"resnet_v1_50/conv1/weights": np.zeros((7, 7, 3, 64), np.float32)}
    with pytest.raises(WeightsError, match='only the "beta" form'):
        weights.convert(write_tf1(tmp_path / "plain", plain))
    with pytest.raises(WeightsError, match="arrays of no network that is known here"):
        weights.convert(write_tf1(tmp_path / "else", {"InceptionV3/w": np.zeros(3, np.float32)}))
