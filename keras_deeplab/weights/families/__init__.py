"""The networks of other packages whose weights are known: a table of names for each."""

from __future__ import annotations

from keras_deeplab.weights.checkpoint import Checkpoint
from keras_deeplab.weights.errors import WeightsError
from keras_deeplab.weights.families import (
    applications,
    deeplab_pytorch,
    tf1_deeplab,
    torchvision,
)
from keras_deeplab.weights.layouts import KERAS
from keras_deeplab.weights.source import Source

FAMILIES = (torchvision, deeplab_pytorch, tf1_deeplab, applications)


def find(checkpoint: Checkpoint) -> Source | None:
    """The weights in this package's names, None if no network that is known has such names.

    Raises:
        WeightsError: If the names are those of a known network, and something is wrong with it.
    """
    for family in FAMILIES:
        source = family.recognised(checkpoint)
        if source is not None:
            return source
    return None


def recognised(checkpoint: Checkpoint) -> Source:
    """The weights in this package's names.

    Raises:
        WeightsError: If the file holds none of the networks that are known; it lists some names.
    """
    source = find(checkpoint)
    if source is not None:
        return source
    if checkpoint.layout is KERAS:  # a network of the user's own, or one of this package's
        return Source(
            checkpoint.path,
            "a Keras network's weights by the names of its layers",
            checkpoint.arrays,
            left_over=checkpoint.left_over,
        )
    shown = ", ".join(sorted(checkpoint.arrays)[:5])
    raise WeightsError(
        checkpoint.path,
        f"it holds {len(checkpoint.arrays)} arrays of no network that is known here, among them "
        f"{shown}",
    )
