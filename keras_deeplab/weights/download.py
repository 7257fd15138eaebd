"""Published files, downloaded once."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from pathlib import Path

import keras

from keras_deeplab.weights.errors import WeightsError, shortened

logger = logging.getLogger(__name__)


def fetch(url: str, file_hash: str | None, name: str) -> Path:
    """Returns a file from the cache, after downloading it where it is not there yet.

    `keras.utils.get_file` downloads into a temporary folder, and a complete file with the right
    hash is moved into the cache, so that an interruption leaves nothing. It has no time limit: a
    download from a silent server can be interrupted and repeated.

    Args:
        url: Address of the file.
        file_hash: `"md5:"` or `"sha256:"` and the first digits of the file's hash (torchvision has
            eight in its file names), None where the publisher gives none. A file in the cache that
            does not have it is downloaded again.
        name: Of the file in the cache, the folder `keras_deeplab` in `$KERAS_HOME` or `~/.keras`.

    Raises:
        WeightsError: If the file cannot be downloaded or stored, with what to do.
    """
    folder = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "keras_deeplab"
    target = folder / name
    try:
        if target.is_file():
            if target.stat().st_size and _matches(target, file_hash):
                return target
            logger.warning("%s does not match its hash; downloading it again from %s", target, url)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as temporary:
            file = Path(keras.utils.get_file(name, url, cache_dir=temporary, cache_subdir=""))
            if file.stat().st_size == 0 or not _matches(file, file_hash):
                raise ValueError(f"its hash is not {file_hash}" if file_hash else "it is empty")
            os.replace(file, target)
    except Exception as error:  # get_file raises a plain Exception for errors of the connection
        raise WeightsError(
            url,
            f"{target} cannot be downloaded: {shortened(error)}. Try again later, set KERAS_HOME "
            "to a folder with more space, or download the file from this address and pass its path",
        ) from error
    return target


def _matches(file: Path, file_hash: str | None) -> bool:
    if file_hash is None:
        return True
    algorithm, _, digits = file_hash.partition(":")
    with file.open("rb") as opened:
        # Pythons that forbid MD5 for secrets allow it to detect damage.
        digest = hashlib.file_digest(opened, lambda: hashlib.new(algorithm, usedforsecurity=False))
    return digest.hexdigest().startswith(digits)
