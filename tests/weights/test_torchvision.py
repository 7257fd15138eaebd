"""torchvision's networks beyond the parity cases: depths, heads that are absent, other heads."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy
from calibration import image
from models.networks import zero_kernels
from parity import shapes
from sources import as_torchvision_writes_it, scattered

import keras_deeplab
from keras_deeplab import weights
from keras_deeplab.weights import Checkpoint, WeightsError
from keras_deeplab.weights.names import tables, torchvision


def recognized(shapes: dict[str, tuple[int, ...]]) -> Checkpoint | None:
    zero = np.zeros((), np.float32)
    arrays = {name: np.broadcast_to(zero, shape) for name, shape in shapes.items()}
    return torchvision.recognize(Checkpoint("a.pth", arrays, torch=True))


RESNET50 = {
    f"{name}.weight": (64, 64, 1, 1)
    for name in (*tables.resnet(torchvision.RESNET, 50).values(), "fc")
}


@pytest.mark.slow
def test_a_resnet101_classifier(tmp_path):
    arguments = {"levels": (1,), "pooling": "average", "dense": ()}
    with zero_kernels():
        model = scattered(keras_deeplab.SPPNet(9, "resnet101", **arguments))
    layers = {**tables.resnet(torchvision.RESNET, 101), "logits": "fc"}
    path = tmp_path / "model-00001-of-00001.safetensors"
    safetensors.numpy.save_file(as_torchvision_writes_it(model, layers), path)
    with zero_kernels():
        found = weights.from_pretrained(path)
    assert found.transfer_report.missing_keys == found.transfer_report.unexpected_keys == ()
    assert found.get_config()["backbone_options"] == model.get_config()["backbone_options"]
    x = image(65, 97)
    np.testing.assert_array_equal(found(x, training=False), model(x, training=False))


def test_the_auxiliary_head_comes_along(shared):
    names = shapes(shared, "torchvision_deeplabv3_resnet50")
    found = recognized(names)
    heads = [name for name in found.arrays if name.startswith("auxiliary/logits/")]
    assert heads == ["auxiliary/logits/kernel", "auxiliary/logits/bias"]
    assert (found.model, found.model_arguments["auxiliary_layer"]) == ("DeepLabV3", "auto")
    without = recognized({n: s for n, s in names.items() if not n.startswith("aux_classifier.")})
    assert "auxiliary_layer" not in without.model_arguments
    assert not [name for name in without.arrays if name.startswith("auxiliary/")]


def test_another_head_on_a_known_network_gives_its_backbone(shared):
    names = shapes(shared, "torchvision_deeplabv3_resnet50")
    fcn = {name: shape for name, shape in names.items() if name.startswith("backbone.")}
    found = recognized({**fcn, "classifier.0.weight": (512, 2048, 3, 3)})
    assert (found.model, found.backbone) == (None, "resnet50")
    assert all(name.startswith("backbone/") for name in found.arrays)
    assert found.unexpected == ("classifier.0.weight",)


def test_a_sigmoids_logit_becomes_that_of_the_second_class(shared):
    names = shapes(shared, "torchvision_deeplabv3_resnet50")
    whole = {name: np.broadcast_to(np.float32(2), shape) for name, shape in names.items()}
    for head in ("classifier.4", "aux_classifier.4"):
        for name in (f"{head}.weight", f"{head}.bias"):
            whole[name] = whole[name][:1]
    found = torchvision.recognize(Checkpoint("a.pth", whole, torch=True))
    assert found.model_arguments["num_classes"] == 2
    for head in ("logits", "auxiliary/logits"):
        kernel, bias = found.arrays[f"{head}/kernel"], found.arrays[f"{head}/bias"]
        assert kernel.shape[-1] == 2
        np.testing.assert_array_equal(bias, [0, 2])
        np.testing.assert_array_equal(kernel.max((0, 1, 2)), [0, 2])
        np.testing.assert_array_equal(kernel.min((0, 1, 2)), [0, 2])


def test_counters_of_a_profiler_are_left_out():
    counters = {"layer1.0.total_ops": (1,), "layer1.0.relu.total_params": (1,)}
    found = recognized({**RESNET50, "fc.weight": (9, 64), **counters})
    assert (found.backbone, found.unexpected) == ("resnet50", ())


def test_the_number_of_channels_comes_along(shared):
    names = shapes(shared, "torchvision_deeplabv3_resnet50")
    found = recognized({**names, "backbone.conv1.weight": (64, 4, 7, 7)})
    wanted = found.arguments("DeepLabV3Plus", {"input_shape": None})
    assert wanted["input_shape"] == (None, None, 4)
    assert "input_shape" not in recognized(names).arguments("DeepLabV3", {"input_shape": None})


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_a_resnet_is_known_by_its_units(depth):
    names = tables.resnet(torchvision.RESNET, depth).values()
    kernels = {f"{name}.weight": (64, 64, 1, 1) for name in (*names, "fc")}
    found = recognized({**kernels, "fc.weight": (9, 64)})
    assert (found.backbone, found.model) == (f"resnet{depth}", "SPPNet")
    assert found.model_arguments["num_classes"] == 9


@pytest.mark.parametrize(
    "names, message",
    [
        ({"layer4.0.conv3.weight": (4, 4, 1, 1), "fc.weight": (5, 4)}, "not a ResNet-50"),
        ({"conv1.weight": (64, 3, 7, 7), "fc.weight": (1000, 512)}, "not a ResNet-50"),
        (
            {**RESNET50, "layer1.0.se.fc1.weight": (16, 256, 1, 1)},
            "it has layers that a ResNet does not have: layer1.0.se.fc1",
        ),
    ],
)
def test_other_networks_are_refused(names, message):
    assert recognized({"something.weight": (3, 3)}) is None
    with pytest.raises(WeightsError, match=message):
        recognized(names)
