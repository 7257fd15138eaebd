"""Opening a data set by its name."""

from __future__ import annotations

import os
from pathlib import Path

from keras_deeplab import validation
from keras_deeplab.data.folder import Folder
from keras_deeplab.data.shapes import Shapes
from keras_deeplab.data.source import Source


def open_source(name: str | os.PathLike) -> Source:
    """Opens a data set by name or by its folder.

    Args:
        name: `"shapes"` for the embedded data set, or the path of a folder as in `data.Folder`.

    Raises:
        ValueError: If it is neither.
        DatasetError: If the folder has no split.

    Example:

    >>> keras_deeplab.data.open_source("shapes").info.num_classes
    6
    """
    if str(name) == "shapes":
        return Shapes()
    if not Path(name).is_dir():
        rule = "'shapes' or an existing folder root/{train,val}/{images,labels}"
        raise validation.error("name", rule, str(name))
    return Folder(name)
