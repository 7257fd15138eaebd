"""Builders of TensorFlow Datasets, for a folder or by name."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

from keras_deeplab import validation
from keras_deeplab.data.faults import DatasetError, FileFault
from keras_deeplab.data.layout import contents
from keras_deeplab.data.paths import RemotePath, check_local, is_remote
from keras_deeplab.names import suggestion

# Builders of this package, which are registered with TensorFlow Datasets when they are imported.
BUILDERS = ("camvid", "voc2012_segmentation")


def is_folder(name: str | os.PathLike) -> bool:
    """Whether a name is that of a folder, as a string absolute or with a first dot or ~."""
    is_path = not isinstance(name, str) or Path(name).is_absolute() or is_remote(name)
    return is_path or name.startswith((".", "~"))


def folder_builder(root: Path | RemotePath) -> Any:
    """The builder of a folder with a dataset_info.json, which is in it or further down."""
    import tensorflow_datasets as tfds

    check_local(root, f"records in {root}")
    depths = ("", "*/", "*/*/", "*/*/*/")
    found = next(filter(None, (sorted(root.glob(f"{d}dataset_info.json")) for d in depths)), [])
    if len(found) != 1:
        held = f"{root} holds {contents(root)}" if root.is_dir() else f"{root} is not a folder"
        more = f"; choose one of {', '.join(str(path.parent) for path in found)}" if found else ""
        text = "a dataset_info.json of TensorFlow Datasets"
        raise DatasetError(str(root), [FileFault("missing folder", held + more, text)])
    try:
        text = (found[0].parent / "features.json").read_text("utf-8")
        json.loads(text, object_hook=_check_classes)
        return tfds.builder_from_directory(found[0].parent)
    except Exception as error:  # of any kind, as TensorFlow Datasets does not check its files
        text = f"dataset_info.json or features.json: {error}"
        fault = FileFault("unreadable file", text, "files that TensorFlow Datasets wrote")
        raise DatasetError(str(found[0].parent), [fault]) from error


def _check_classes(content: dict[str, Any]) -> None:
    """Checks that an object of a features.json names no class of other packages to be imported."""
    for key in ("pythonClassName", "type"):
        value = content.get(key)
        if isinstance(value, str) and not value.startswith("tensorflow_datasets.core.features."):
            raise ValueError(f"{value} is not a feature of TensorFlow Datasets")


def named_builder(name: str, data_dir: str | os.PathLike | None, download: bool) -> Any:
    """The builder of a data set by its name, downloaded if wanted."""
    import tensorflow_datasets as tfds

    base = name.partition("/")[0]
    if base in BUILDERS:
        importlib.import_module(f"keras_deeplab.data.builders.{base}")
    known = tfds.list_builders()
    if base not in known:
        rule = "a data set of TensorFlow Datasets, or the folder of one"
        near = f"For the folder write ./{name}" if Path(name).is_dir() else suggestion(base, known)
        raise validation.error("name", rule, name, near)
    config = name.partition("/")[2] or None
    configs = tfds.builder_cls(base).builder_configs
    if config is not None:
        validation.one_of("config", config, configs)
    builder = tfds.builder(base, config=config, data_dir=data_dir)
    if builder.is_prepared():
        return builder
    if not download:
        rule = f"a data set in {Path(builder.data_dir)}"
        where = "" if data_dir is None else f"&data_dir={data_dir}"
        address = f'"tfds:{name.replace("/", ":", 1)}?download=true{where}"'
        advice = f"Run `keras-deeplab audit {address}` to download it"
        raise validation.error("name", rule, name, advice)
    try:
        builder.download_and_prepare()
    except Exception as error:  # of any kind; an AssertionError without the files to get by hand
        raise ValueError(f"{name} could not be downloaded and prepared: {error}") from error
    return builder
