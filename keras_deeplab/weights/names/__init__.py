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
    packages = (torchvision, deeplab_pytorch, tf1_deeplab, keras_applications)
    return next(filter(None, (package.recognize(checkpoint) for package in packages)), None)
