"""Uploads the model of a run to the Hugging Face Hub."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from keras_deeplab._version import __version__
from keras_deeplab.extras import require
from keras_deeplab.trainer.run_folder import RunFolder
from keras_deeplab.validation import boolean, error
from keras_deeplab.weights import load_model
from keras_deeplab.weights.errors import shortened
from keras_deeplab.weights.hub import checked_repo

logger = logging.getLogger(__name__)

CARD = "README.md"


def push_to_hub(
    run: str | os.PathLike, repo: str, *, private: bool = True, token: str | None = None
) -> str:
    """Uploads the model of a run and its card to a repository of the Hugging Face Hub.

    One commit has `model.keras` and `README.md` (see `keras_deeplab.card`), and `dataset.json`,
    `metrics.json` and `predictions.png` where they are there; no other file of the folder is
    uploaded. `metrics.json` has names of image files, and `predictions.png` shows images of the
    data: delete them first if they must not be seen. The repository is created if there is none;
    its other files stay. Needs the extra `hub`.

    Args:
        run: Folder of the run.
        repo: `"USER/NAME"`.
        private: Whether only you see the repository. False to publish; a public repository is not
            written to otherwise.
        token: Access token; by default that of `hf auth login` or `HF_TOKEN`.

    Returns:
        The address of this version of the model, for `keras_deeplab.load_model`.

    Raises:
        ValueError: If the model or the card is missing or damaged, `repo` is malformed or public,
            or the upload fails.
        ImportError: If huggingface_hub is missing.

    Example:

    >>> address = keras_deeplab.push_to_hub("runs/mine", "user/mine")  # doctest: +SKIP
    >>> model = keras_deeplab.load_model(address)  # doctest: +SKIP
    """
    boolean("private", private)
    checked_repo(repo)
    folder = RunFolder(Path(run))
    load_model(folder.best_model, compile=False)  # what is uploaded can be loaded
    files = [folder.best_model, folder.path / CARD, folder.dataset, folder.metrics, folder.picture]
    if not files[1].is_file():
        raise ValueError(f"{files[1]} is missing. Write the model card first: keras_deeplab.card.")
    files = [path for path in files if path.is_file()]
    require("push_to_hub", "hub", "huggingface_hub")
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token, library_name="keras_deeplab", library_version=__version__)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        is_public = private and not api.model_info(repo).private
        if not is_public:
            sizes = (f"{path.name} ({path.stat().st_size / 1e6:.1f} MB)" for path in files)
            logger.info("Uploading %s to %s", ", ".join(sizes), repo)
            commit = api.create_commit(
                repo,
                [CommitOperationAdd(path.name, path) for path in files],
                commit_message="Upload a model of keras_deeplab",
            )
    except Exception as failed:  # of the HTTP library too, which is not a dependency here
        raise ValueError(f"{repo}: the upload failed: {shortened(failed)}") from failed
    if is_public:
        raise error("private", f"False, as {repo} is public", private)
    return f"hf://{repo}@{commit.oid}"
