"""Label maps drawn from outlines and masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from keras_deeplab.data.faults import FileFault
from keras_deeplab.data.formats import MAX_PIXELS

Point = Sequence[float]
MAX_COORDINATE = 1e6
BACKGROUND = "background"


class Area(NamedTuple):
    """An area with a value: a polygon's points `(x, y)`, or a mask at a place `(left, top)`."""

    value: int
    points: Sequence[Point] = ()
    mask: np.ndarray | None = None
    place: tuple[int, int] = (0, 0)


def drawn(size: tuple[int, int], areas: Iterable[Area]) -> np.ndarray:
    """Draws areas in their order, the later ones over the earlier; uint8 `(height, width)`."""
    height, width = _checked(size)
    canvas = Image.new("L", (width, height))
    draw = ImageDraw.Draw(canvas)
    for area in areas:
        if area.mask is not None:
            draw.bitmap(area.place, Image.fromarray(area.mask), fill=area.value)
            continue
        points = [(float(x), float(y)) for x, y in area.points]
        # Pillow draws coordinates that exceed 32 bits elsewhere.
        if len(points) < 3 or not (np.abs(points) < MAX_COORDINATE).all():
            raise FileFault("bad annotation", f"an outline of {len(points)} points: {points[:3]}")
        draw.polygon(points, fill=area.value)
    return np.asarray(canvas)


def with_background(names: Iterable[str]) -> tuple[str, ...]:
    """Returns class names with the background first, which may be one of them in any case."""
    names = list(names)
    first = next((name for name in names if name.lower() == BACKGROUND), BACKGROUND)
    return first, *(name for name in names if name.lower() != BACKGROUND)


def rectangle(first: Point, second: Point) -> list[Point]:
    """Returns the corners of a rectangle of which two opposite ones are given."""
    (left, top), (right, bottom) = first, second
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def ellipse(center: Point, radii: Point) -> list[Point]:
    """Returns 64 points of an ellipse."""
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    across = center[0] + radii[0] * np.cos(angles)
    down = center[1] + radii[1] * np.sin(angles)
    return list(zip(across.tolist(), down.tolist(), strict=True))


def run_lengths(counts: Sequence[int], size: tuple[int, int], by_columns: bool) -> np.ndarray:
    """Decodes lengths of runs of False and True in turn; bool `(height, width)`."""
    height, width = _checked(size)
    if sum(counts) != height * width or min(counts, default=0) < 0:
        found = f"runs of {sum(counts)} pixels for an area of {width}x{height}"
        raise FileFault("bad annotation", found)
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return flat.reshape(width, height).T if by_columns else flat.reshape(height, width)


def _checked(size: tuple[int, int]) -> tuple[int, int]:
    """Returns `(height, width)`, before memory is taken for it."""
    height, width = size
    if min(size) < 1:
        raise FileFault("bad annotation", f"a size of {width}x{height} pixels")
    if height * width > MAX_PIXELS:
        raise FileFault("image too large", f"{width}x{height} pixels")
    return height, width
