from __future__ import annotations

import keras
import numpy as np
import pytest
from sources import HEAD, as_the_authors_write_it, scattered, small

import keras_deeplab
from keras_deeplab.weights.names import tf1_deeplab


@pytest.fixture(scope="module")
def model() -> keras_deeplab.DeepLabV3:
    return scattered(small())


@pytest.fixture(scope="session")
def authors_model() -> keras.Model:
    """A network as the authors have it, without atrous branches and decoder."""
    options = {"depth_multiplier": 0.5, "padding": "same"}
    arguments = {"aspp_rates": (), "head_filters": None, "align_corners": True}
    model = keras_deeplab.DeepLabV3(21, "mobilenet_v2", backbone_options=options, **arguments)
    return scattered(model)


@pytest.fixture(scope="session")
def authors_arrays(authors_model) -> dict[str, np.ndarray]:
    """Its weights by the authors' names."""
    return as_the_authors_write_it(authors_model, {**tf1_deeplab.mobilenet_v2(), **HEAD})
