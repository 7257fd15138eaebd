from __future__ import annotations

import pytest
import tensorflow as tf
from export.small import small_model

from keras_deeplab import export


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A model with an optimizer, its SavedModel and this loaded."""
    model = small_model()
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    path = tmp_path_factory.mktemp("export") / "saved_model"
    assert export.saved_model(model, path, max_pixels=1_000_000) == path
    return model, path, tf.saved_model.load(str(path)).signatures
