"""What the files of PyTorch users have in common, whichever format holds the tensors."""

from __future__ import annotations

import numpy as np

_PREFIX = "module."


def without_parallel_prefix(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Strips the `module.` that `DataParallel` puts before the name of every tensor.

    A model may have a part called `module` of its own, so the prefix goes only where all names
    have it.
    """
    if not all(name.startswith(_PREFIX) for name in arrays):
        return arrays
    return {name.removeprefix(_PREFIX): array for name, array in arrays.items()}
