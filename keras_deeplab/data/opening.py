"""Opening a data set by its name."""

from __future__ import annotations

import os
from pathlib import Path

from keras_deeplab import validation
from keras_deeplab.data.folder import Folder
from keras_deeplab.data.shapes import Shapes
from keras_deeplab.data.source import Source
from keras_deeplab.data.tfds_source import open_tfds


def open_source(name: str | os.PathLike) -> Source:
    """Opens a data set by name or by its folder.

    Args:
        name: `"shapes"` for the embedded data set, the path of a folder as in `data.Folder`, or
            `"tfds:NAME[:CONFIG][/SPLIT]"` or `"tfds:FOLDER"` for one of TensorFlow Datasets, with
            the arguments of `data.TFDS` as in `"tfds:oxford_iiit_pet?val=test"`.

    Raises:
        ValueError: If it is none of these.
        DatasetError: If the folder has no split.

    Example:

    >>> keras_deeplab.data.open_source("shapes").info.num_classes
    6
    """
    if str(name) == "shapes":
        return Shapes()
    if str(name).startswith("tfds:"):
        return open_tfds(str(name).removeprefix("tfds:"))
    if not Path(name).is_dir():
        rule = "'shapes' or an existing folder root/{train,val}/{images,labels}"
        raise validation.error("name", rule, str(name))
    return Folder(name)
