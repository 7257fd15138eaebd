"""State dicts of PyTorch users: which of those in a file is read; `.safetensors` files."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from keras_deeplab.extras import require
from keras_deeplab.names import printable
from keras_deeplab.weights import names
from keras_deeplab.weights.checkpoint import Checkpoint
from keras_deeplab.weights.errors import NO_AVERAGES, UnreadableError, WeightsError
from keras_deeplab.weights.readers.torch import Keys

logger = logging.getLogger(__name__)
_Arrays = Mapping[str, np.ndarray]
# Of what training keeps beside the model: timm's `state_dict_ema`, `ema_model.`, `swa_state`.
_AVERAGES = re.compile(r"(^|[._])(ema|swa|averaged?|moving_average)([._\d]|$)", re.IGNORECASE)
# `module.model._orig_mod.` has three: DataParallel, a wrapper of the user's, torch.compile.
_MAX_WRAPPERS = 6


def chosen(path: Path, state_dicts: Mapping[Keys, _Arrays], moving_averages: bool) -> Checkpoint:
    """The one known network in state dicts, which are given by the keys that lead to them.

    A prefix such as `module.` or `_orig_mod.` before all or some of the names is found by removing
    one part after the other until a network fits. Moving averages beside the model are
    recognised by their keys or prefix.
    """
    found: dict[str, Checkpoint] = {}
    errors = []
    for keys, arrays in state_dicts.items():
        networks = list(_networks(path, arrays))
        errors += [each for _, each in networks if not isinstance(each, Checkpoint)]
        inside = {prefix: each for prefix, each in networks if isinstance(each, Checkpoint)}
        rest = tuple(name for name in arrays if not name.startswith(tuple(inside)))
        for prefix, network in inside.items():
            name = ".".join((*keys, f"{prefix}*"))
            if name in found:
                raise UnreadableError(f"it holds two networks of the name {name}")
            found[name] = replace(network, unexpected=(*network.unexpected, *rest))
    averages = {name: network for name, network in found.items() if _AVERAGES.search(name)}
    models = {name: network for name, network in found.items() if name not in averages}
    if moving_averages and not averages:
        raise UnreadableError(NO_AVERAGES)
    wanted = averages if moving_averages or not models else models
    if not wanted and errors:  # of a known network with a fault
        raise errors[0]
    if not wanted:
        largest = max(state_dicts.values(), key=len, default={})
        raise UnreadableError(f"it holds {Checkpoint('', largest)}")
    if len(wanted) > 1:
        raise UnreadableError(
            f"it must hold one network, and holds {len(wanted)}: {', '.join(wanted)}. Save one of "
            "them alone"
        )
    ((name, network),) = wanted.items()
    if name != "*":
        others = ", ".join(other for other in found if other != name) or "none"
        text = printable(f"weights read from {name}; other networks in it: {others}")
        logger.info("%s: %s", path, text)
    return network


def _networks(path: Path, arrays: _Arrays) -> Iterator[tuple[str, Checkpoint | WeightsError]]:
    """The prefixes after which a network is found, or the error of one with a fault."""
    todo = [("", arrays)]
    for prefix, inner in todo:
        try:
            network = names.recognize(Checkpoint(str(path), inner, torch=True))
        except WeightsError as error:
            yield prefix, error
            continue
        if network is not None:
            yield prefix, network
            continue
        groups: dict[str, dict[str, np.ndarray]] = {}
        for name, array in inner.items():
            part, dot, rest = name.partition(".")
            if dot and rest:
                groups.setdefault(f"{prefix}{part}.", {})[rest] = array
        if prefix.count(".") < _MAX_WRAPPERS:
            todo += groups.items()


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Reads all tensors of a file, bfloat16 as the `ml_dtypes` type of TensorFlow.

    The package safetensors itself checks that the declared shapes and offsets are those of the
    file, without gaps or overlaps.
    """
    require(f"{path}: reading a safetensors file", "safetensors", "safetensors")
    from safetensors.numpy import load_file

    return load_file(path)
