"""The networks of other packages whose weights are known: a map of names for each."""

from __future__ import annotations

from keras_deeplab.weights.checkpoint import Checkpoint
from keras_deeplab.weights.names import (
    deeplab_pytorch,
    keras_applications,
    tf1_deeplab,
    torchvision,
)


def recognize(checkpoint: Checkpoint) -> Checkpoint | None:
    """The weights by this package's names, None for an unknown network."""
    for package in (torchvision, deeplab_pytorch, tf1_deeplab, keras_applications):
        found = package.recognize(checkpoint)
        if found is not None:
            return found
    return None
