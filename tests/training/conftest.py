"""Small runs of the commands, in the process of the test."""

from __future__ import annotations

import pytest
from tiny_run import TinyShapes, tiny_network

from keras_deeplab import backbones, data


@pytest.fixture(scope="module")
def small():
    """Makes the images of `shapes` few and the network of `mobilenet_v2` small."""
    original = data.open_source

    def open_source(name):
        return TinyShapes() if name == "shapes" else original(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "open_source", open_source)
        patch.setitem(backbones.BACKBONES, "mobilenet_v2", backbones.Backbone(tiny_network, "tf"))
        yield
