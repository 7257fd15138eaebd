from __future__ import annotations

from dataclasses import dataclass

from keras_deeplab.data.source import DatasetInfo

MAX_CLASS_NAME = 24


@dataclass(frozen=True)
class SplitReport:
    """Statistics of a split; sizes are `(height, width)`, all shares add up to 1.

    Attributes:
        images: Number of images.
        smallest: Smallest height and smallest width.
        largest: Largest height and largest width.
        class_share: Each class' share of all pixels.
        ignored_share: The share of ignored pixels.
        where_present: Each class' share of the valid pixels of the images that contain it, 0 if
            there are none.
    """

    images: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    class_share: tuple[float, ...]
    ignored_share: float
    where_present: tuple[float, ...]

    @property
    def sizes(self) -> str:
        """The sizes as width x height."""
        (low_height, low_width), (high_height, high_width) = self.smallest, self.largest
        text = f"{low_width}x{low_height}"
        return text if self.smallest == self.largest else f"{text} to {high_width}x{high_height}"


@dataclass(frozen=True)
class Report:
    """Report of `data.audit` on a data set without faults; `print` shows it as a table.

    Attributes:
        info: Classes and colours.
        splits: A `SplitReport` per split.
        warnings: What is valid but rarely intended, such as a class that never occurs.
        mapping: The mask values of the labels as text, empty if they are the same.
    """

    info: DatasetInfo
    splits: dict[str, SplitReport]
    warnings: tuple[str, ...] = ()
    mapping: str = ""

    def __str__(self) -> str:
        """Returns sizes, pixel shares per class and split, and the warnings."""
        lines = [
            f"{split}: {part.images} images, {part.sizes}" for split, part in self.splits.items()
        ]
        lines += [self.mapping] if self.mapping else []
        width = max(len("ignored"), *(len(name) for name in self.info.classes))
        width = min(width, MAX_CLASS_NAME)
        lines.append("pixels".ljust(width) + "".join(f"{split:>9}" for split in self.splits))
        for index, name in enumerate(self.info.classes):
            shares = [part.class_share[index] for part in self.splits.values()]
            lines.append(_row(name, width, shares))
        lines.append(_row("ignored", width, [p.ignored_share for p in self.splits.values()]))
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])


def _row(name: str, width: int, shares: list[float]) -> str:
    return name[:width].ljust(width) + "".join(f"{100 * share:8.2f}%" for share in shares)
