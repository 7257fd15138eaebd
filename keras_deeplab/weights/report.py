"""What came of weights that were loaded, in words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TransferReport:
    """Which layers took their weights from elsewhere.

    Attributes:
        kept: Names of the layers whose weights were copied.
        fresh: Names of the layers that stayed as they were.
        left_over: Names of the source's variables that found no place.
        notes: What else is to be known: a class predictor that was not taken, settings in which
            the model differs from the network that the weights were trained in.
        source: What the weights are, and the file.
    """

    kept: tuple[str, ...]
    fresh: tuple[str, ...]
    left_over: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    source: str | None = None

    def __str__(self) -> str:
        head = "" if self.source is None else f"{self.source}: "
        fresh = ", ".join(_together(self.fresh, self.kept)) or "none"
        lines = [f"{head}loaded {len(self.kept)} layers; missing keys: {fresh}"]
        if self.left_over:
            shown = ", ".join(self.left_over[:6]) + (", ..." if len(self.left_over) > 6 else "")
            lines.append(f"unexpected keys: {len(self.left_over)}: {shown}")
        return "\n".join([*lines, *self.notes])


def _together(fresh: tuple[str, ...], kept: tuple[str, ...]) -> list[str]:
    """Names of layers, those inside one layer that is wholly among them as that one's name."""
    partly = {path.partition("/")[0] for path in kept}
    names = (path if path.partition("/")[0] in partly else path.partition("/")[0] for path in fresh)
    return list(dict.fromkeys(names))
