"""The report on weights that were loaded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TransferReport:
    """Which weights were loaded into a model.

    Attributes:
        loaded: Names of the layers whose weights were loaded.
        missing_keys: Names of the layers that the checkpoint lacks or that do not fit, which keep
            their own weights.
        unexpected_keys: Names of the checkpoint's variables that are not in the model.
        notes: Further facts: a class predictor that was not loaded, settings in which the model
            differs from the network that the weights were trained in.
        source: The network that the checkpoint holds, and the file.
    """

    loaded: tuple[str, ...]
    missing_keys: tuple[str, ...]
    unexpected_keys: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    source: str | None = None

    def __str__(self) -> str:
        head = "" if self.source is None else f"{self.source}: "
        missing = ", ".join(self._missing_layers()) or "none"
        lines = [f"{head}loaded {len(self.loaded)} layers; missing keys: {missing}"]
        if keys := self.unexpected_keys:
            shown = ", ".join(keys[:6]) + (", ..." if len(keys) > 6 else "")
            lines.append(f"unexpected keys: {len(keys)}: {shown}")
        return "\n".join([*lines, *self.notes])

    def _missing_layers(self) -> dict[str, None]:
        """The missing keys, with one name for a composite layer that is missing as a whole."""
        partly = {path.partition("/")[0] for path in self.loaded}
        roots = {path: path.partition("/")[0] for path in self.missing_keys}
        return dict.fromkeys(path if root in partly else root for path, root in roots.items())
