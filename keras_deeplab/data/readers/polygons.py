"""Label maps drawn from outlines and masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from keras_deeplab.data.faults import FileFault
from keras_deeplab.data.formats import MAX_PIXELS

Point = Sequence[float]
MAX_COORDINATE = 1e6
# Of the rows of pixels by an outline, for each pixel of its box and each point. An outline around
# pixels crosses one pixel once; with more it retraces itself everywhere.
MAX_CROSSINGS = 30
PART = 2**18  # crossings that are computed at once
BACKGROUND = "background"


class Area(NamedTuple):
    """An area with a value: a polygon's points `(x, y)`, or a mask at a place `(left, top)`."""

    value: int
    points: Sequence[Point] = ()
    mask: np.ndarray | None = None
    place: tuple[int, int] = (0, 0)


def drawn(size: tuple[int, int], areas: Iterable[Area]) -> np.ndarray:
    """Draws areas in their order, the later ones over the earlier; uint8 `(height, width)`.

    The pixels of an outline are those whose centres are inside, as their coordinates are those of
    the pixels' corners: a square from 10 to 20 has 10 pixels along each side.
    """
    canvas = np.zeros(_checked(size), np.uint8)
    for area in areas:
        mask, (left, top) = area.mask, area.place
        if mask is None:
            mask, (left, top) = _filled(area.points, size)
        part = canvas[max(0, top) :, max(0, left) :]
        mask = mask[max(0, -top) :, max(0, -left) :][: part.shape[0], : part.shape[1]]
        part[: mask.shape[0], : mask.shape[1]][mask] = area.value
    return canvas


def _filled(points: Sequence[Point], size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """The pixels inside an outline, of its box on the image, and the place of the box."""
    corners = np.array([(float(x), float(y)) for x, y in points])
    if len(corners) < 3 or not (np.abs(corners) < MAX_COORDINATE).all():
        raise FileFault("bad annotation", f"an outline of {len(points)} points: {points[:3]}")
    limits = np.stack([np.floor(corners.min(0)), np.ceil(corners.max(0))])
    (left, top), (right, bottom) = np.clip(limits, 0, size[::-1]).astype(int)
    if not (left < right and top < bottom):
        return np.zeros((bottom - top, right - left), bool), (left, top)
    corners -= 0.5  # integers are centres of pixels
    edges = np.stack([corners, np.roll(corners, -1, 0)], 1)
    # From above to below, and on the image: outlines that share an edge compute the same.
    edges = np.where(edges[:, :1, 1:] > edges[:, 1:, 1:], edges[:, ::-1], edges)
    first, end = np.ceil(edges[..., 1]).clip(top, bottom).astype(int).T
    toggles = np.zeros((bottom - top, right - left + 1), np.uint8)
    crossed = np.cumsum(end - first)
    if crossed[-1] > max(PART, MAX_CROSSINGS * (toggles.size + len(edges))):
        text = f"an outline that crosses rows of pixels {crossed[-1]} times"
        raise FileFault("bad annotation", text)
    # Each edge toggles the pixels to the right of it, in each row whose centres it crosses.
    parts = np.flatnonzero(np.diff(crossed // PART)) + 1
    for low, high in pairwise([0, *parts.tolist(), len(edges)]):
        part, begin, stop = edges[low:high], first[low:high], end[low:high]
        edge = np.repeat(np.arange(len(part)), stop - begin)
        row = np.arange(len(edge)) + (stop - np.cumsum(stop - begin))[edge]
        (x, y), (next_x, next_y) = part[edge].transpose(1, 2, 0)
        column = np.ceil(x + (row - y) * ((next_x - x) / (next_y - y))).clip(left, right)
        np.bitwise_xor.at(toggles, (row - top, column.astype(int) - left), 1)
    filled = toggles[:, :-1]
    return np.bitwise_xor.accumulate(filled, axis=1, out=filled).view(bool), (left, top)


def with_background(names: Iterable[str]) -> tuple[str, ...]:
    """Returns class names with the background first, which may be one of them in any case."""
    names = list(names)
    first = next(filter(is_background, names), BACKGROUND)
    return first, *(name for name in names if not is_background(name))


def is_background(name: str) -> bool:
    """Whether a class is the background, also as LabelMe writes it: `_background_`."""
    return name.strip("_").lower() == BACKGROUND


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


def rotated(points: Sequence[Point], degrees: float) -> list[Point]:
    """Returns points rotated around their mean, clockwise on the image; as they are by 0."""
    if not degrees:
        return list(points)
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    center = np.mean(points, axis=0)
    return ((np.array(points) - center) @ [[cos, sin], [-sin, cos]] + center).tolist()


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
