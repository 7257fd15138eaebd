"""Which of the state dicts in a PyTorch user's file is read, whichever format holds the tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from keras_deeplab.weights import names
from keras_deeplab.weights.checkpoint import TORCH, Checkpoint
from keras_deeplab.weights.errors import WeightsError, printable
from keras_deeplab.weights.readers import safetensors, torch
from keras_deeplab.weights.readers.torch import Keys, Shapes

# Of what training keeps beside the model: timm's `state_dict_ema`, `ema_model.`, `swa_state`.
_AVERAGES = re.compile(r"(^|[._])(ema|swa|averaged?|moving_average)([._\d]|$)", re.IGNORECASE)
# `module.model._orig_mod.` has three: DataParallel, a wrapper of the user's, torch.compile.
_MAX_WRAPPERS = 6


class Choice(NamedTuple):
    """The keys that lead to a state dict, and what is removed from its names, such as `module.`."""

    keys: Keys
    prefix: str

    def __str__(self) -> str:
        found = f"`{printable('.'.join(self.keys))}`" if self.keys else "the file"
        return f"{found}, names after `{printable(self.prefix)}`" if self.prefix else found

    @property
    def is_average(self) -> bool:
        """Whether it holds moving averages of the model's weights, by its name."""
        return bool(_AVERAGES.search(f"{'.'.join(self.keys)}.{self.prefix}"))


def read_torch(path: Path, moving_averages: bool = False) -> Checkpoint:
    """The network in a file of `torch.save`."""
    choices = []

    def choose(state_dicts: Mapping[Keys, Shapes]) -> Keys:
        choices.append(chosen(path, state_dicts, moving_averages))
        return choices[0][0].keys

    arrays = torch.read(path, choose)
    return _checkpoint(path, arrays, *choices[0])


def read_safetensors(path: Path, moving_averages: bool = False) -> Checkpoint:
    """The network in a safetensors file."""
    arrays = safetensors.read(path)
    shapes = {name: array.shape for name, array in arrays.items()}
    return _checkpoint(path, arrays, *chosen(path, {(): shapes}, moving_averages))


def _checkpoint(
    path: Path, arrays: Mapping[str, np.ndarray], choice: Choice, notes: tuple[str, ...]
) -> Checkpoint:
    others = tuple(sorted(name for name in arrays if not name.startswith(choice.prefix)))
    inner = {n.removeprefix(choice.prefix): a for n, a in arrays.items() if n not in others}
    return Checkpoint(str(path), inner, TORCH, unexpected_keys=others, notes=notes)


def chosen(
    path: Path, state_dicts: Mapping[Keys, Shapes], moving_averages: bool
) -> tuple[Choice, tuple[str, ...]]:
    """The one state dict that holds a known network, by names and shapes alone, and notes on it.

    A prefix such as `module.` or `_orig_mod.` before all or some of the names is found by removing
    one part after the other until a network fits.
    """
    choices, errors = [], []
    for keys, shapes in state_dicts.items():
        for prefix, error in _networks(path, shapes):
            if error is None:
                choices.append(Choice(keys, prefix))
            else:
                errors.append(error)
    if not choices:
        # The error of a known network with a fault says more.
        raise errors[0] if errors else _no_network(path, state_dicts)
    averages = [choice for choice in choices if choice.is_average]
    models = [choice for choice in choices if not choice.is_average]
    if moving_averages and not averages:
        raise WeightsError(path, "`moving_averages` must be False: it holds none")
    wanted = averages if moving_averages or not models else models
    if len(wanted) > 1:
        listed = "; ".join(map(str, wanted))
        raise WeightsError(
            path,
            f"it must hold one network, and holds {len(wanted)}: {listed}. Save one of them alone",
        )
    (choice,) = wanted
    if choices == [Choice((), "")]:
        return choice, ()
    note = f"weights read from {choice}"
    if others := "; ".join(str(other) for other in choices if other != choice):
        note += f"; not read: {others}"
    return choice, (note,)


def _networks(path: Path, shapes: Shapes) -> Iterator[tuple[str, WeightsError | None]]:
    """The prefixes after which a network is found, each with the error of one with a fault."""
    todo = [("", shapes)]
    zero = np.zeros((), np.float32)
    for prefix, inner in todo:
        # Arrays without memory of their own, as no number is read.
        arrays = {name: np.broadcast_to(zero, shape) for name, shape in inner.items()}
        try:
            if names.recognize(Checkpoint(str(path), arrays, TORCH)) is not None:
                yield prefix, None
                continue
        except WeightsError as error:
            yield prefix, error
            continue
        groups: dict[str, dict[str, tuple[int, ...]]] = {}
        for name, shape in inner.items():
            part, dot, rest = name.partition(".")
            if dot and rest:
                groups.setdefault(f"{prefix}{part}.", {})[rest] = shape
        if prefix.count(".") < _MAX_WRAPPERS:
            todo += groups.items()


def _no_network(path: Path, state_dicts: Mapping[Keys, Shapes]) -> WeightsError:
    keys, shapes = max(state_dicts.items(), key=lambda item: len(item[1]))
    place = f"in {Choice(keys, '')} " if keys else ""
    shown = ", ".join(map(printable, sorted(shapes)[:5]))
    return WeightsError(
        path, f"it holds {len(shapes)} arrays {place}of no known network, among them {shown}"
    )
