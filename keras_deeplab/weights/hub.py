"""Model files in repositories of the Hugging Face Hub, by addresses hf://USER/NAME[@REVISION]."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

from keras_deeplab._version import __version__
from keras_deeplab.extras import require
from keras_deeplab.validation import error
from keras_deeplab.weights.errors import WeightsError, shortened

logger = logging.getLogger(__name__)

# The only files that are downloaded; nothing that a repository says selects others.
MODEL, DATASET = "model.keras", "dataset.json"

_PREFIX = "hf://"
_NAME = r"\w[\w.-]*"  # no "..", as a revision becomes a path in the cache
_REPO = re.compile(f"{_NAME}/{_NAME}", re.ASCII)
_ADDRESS = re.compile(rf"{_PREFIX}({_REPO.pattern})(?:@({_NAME}(?:/{_NAME})*))?", re.ASCII)
_MAX_DATASET_BYTES = 8 << 20


def is_address(path: Any) -> bool:
    """Whether a model is given by its address on the Hub, rather than by the path of a file."""
    return isinstance(path, str) and path.startswith(_PREFIX)


def checked_repo(repo: str) -> str:
    """Returns the name of a repository, or raises a ValueError."""
    if not isinstance(repo, str) or not _REPO.fullmatch(repo):
        raise error("repo", "'USER/NAME'", repo)
    return repo


def local_path(path: str | os.PathLike) -> Path:
    """Returns the path of a file; a model on the Hub is downloaded into the Hub's cache first.

    Of a repository only `model.keras` and, where there is one, the `dataset.json` of the same
    commit are downloaded. A file that is in the cache and has not changed is not downloaded again,
    and it is used where the Hub cannot be reached.
    """
    if not is_address(path):
        return Path(os.path.expanduser(path))
    found = _ADDRESS.fullmatch(path)
    if found is None:
        raise WeightsError(path, "it must be hf://USER/NAME or hf://USER/NAME@REVISION")
    require("a model on the Hugging Face Hub", "hub", "huggingface_hub")
    try:
        model = _download(found[1], MODEL, found[2])
        commit = model.parent.name
        _download_dataset(path, found[1], commit)
    except (WeightsError, MemoryError):
        raise
    except Exception as failed:  # the HTTP library has its own, which is not a dependency here
        raise WeightsError(path, _reason(failed)) from failed
    logger.info("%s is at revision %s: %s", path, commit, model)
    return model


def _download(repo: str, name: str, revision: str | None) -> Path:
    import huggingface_hub

    library = {"library_name": "keras_deeplab", "library_version": __version__}
    return Path(huggingface_hub.hf_hub_download(repo, name, revision=revision, **library))


def _download_dataset(address: str, repo: str, commit: str) -> None:
    from huggingface_hub.errors import EntryNotFoundError

    try:
        path = _download(repo, DATASET, commit)
    except EntryNotFoundError:
        logger.info("%s has no %s: its classes are numbers.", address, DATASET)
        return
    if path.stat().st_size > _MAX_DATASET_BYTES:
        raise WeightsError(address, f"{DATASET} has more than {_MAX_DATASET_BYTES} bytes")


def _reason(failed: Exception) -> str:
    """Why a download failed, in words."""
    from huggingface_hub import errors

    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    reasons = {
        errors.GatedRepoError: f"access to it must be granted on its page; then {log_in}",
        errors.RepositoryNotFoundError: f"there is no such repository. If it is private, {log_in}",
        errors.RevisionNotFoundError: "it has no such revision",
        errors.RemoteEntryNotFoundError: f"it has no {MODEL}",
        errors.LocalEntryNotFoundError: "the Hub cannot be reached, and the cache does not have it",
    }
    found = next((text for kind, text in reasons.items() if isinstance(failed, kind)), None)
    return found or f"it cannot be downloaded: {shortened(failed)}"
