"""HTML pages that need no other file: their frame, tables, bars, pictures and line charts."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from PIL import Image

SIDE = 240  # pixels of a picture's longer side
CHART = (480, 280)  # width and height
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 40  # margins of a chart
LARGEST = float(np.finfo(np.float32).max)  # of a loss; differences of larger ones overflow
MARKED = 60  # points of a curve, of which more are not marked
# Okabe and Ito's colours, which colour-blind readers can tell apart, without black and yellow.
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLE = """
body{font:15px system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse}td,th{padding:.15rem .7rem .15rem 0;text-align:left}
.warning{border-left:.4rem solid #c33}.note{border-left:.4rem solid #999}
.finding{padding:.3rem .8rem;margin:.6rem 0;background:#f6f6f6}
.bar{display:inline-block;height:.8rem}figure{display:inline-block;margin:.3rem}
figcaption{font-size:.75rem;color:#666;max-width:15rem;overflow-wrap:anywhere}
.chart{vertical-align:top}.chart figcaption{max-width:30rem}h1,td{overflow-wrap:anywhere}
pre{background:#f6f6f6;padding:.6rem .8rem;overflow:auto}
"""


def page(title: str, parts: Iterable[str]) -> str:
    """Returns a page of parts in HTML, under a title in plain text."""
    name, body = html.escape(title), "\n".join(parts)
    text = (
        f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{name}</title>'
        f"<style>{STYLE}</style><h1>{name}</h1>\n{body}\n</html>\n"
    )
    # File names that are not UTF-8 are escaped.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def bar(share: float, color: Sequence[int]) -> str:
    """Returns a bar of a share in 0..1."""
    return (
        f'<span class="bar" style="width:{160 * share:.0f}px;'
        f'background:rgb{tuple(color)};outline:1px solid #ccc"></span>'
    )


def figure(pictures: Sequence[np.ndarray], caption: str) -> str:
    """Returns pictures of one size beside each other, over a caption in plain text."""
    shown = picture(np.concatenate(pictures, 1))
    return f"<figure>{shown}<figcaption>{html.escape(caption)}</figcaption></figure>"


def picture(pixels: np.ndarray, kind: str = "JPEG") -> str:
    """Returns a picture of pixels uint8; "PNG" keeps sharp edges."""
    return f'<img src="{data_uri(pixels, kind)}">'


def data_uri(pixels: np.ndarray, kind: str) -> str:
    """Returns pixels as an image file, "JPEG" or "PNG", in a data URI."""
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, kind, quality=85)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(encoded.getvalue()).decode()}"


def cell(value: float | None, form: str = ".3f") -> str:
    """Returns the text of a number, empty for None."""
    return "" if value is None else format(value, form)


def table(rows: Iterable[Sequence[str]], heads: Sequence[str] = ()) -> str:
    """Returns a table of cells in plain text."""
    lines = [f"<tr>{''.join(f'<th>{html.escape(head)}' for head in heads)}"] if heads else []
    lines += [f"<tr>{''.join(f'<td>{html.escape(cell)}' for cell in row)}" for row in rows]
    return f"<table>{''.join(lines)}</table>"


def line_chart(title: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Returns curves over the epochs in one SVG drawing.

    Args:
        title: Name of the values, in plain text.
        curves: Points `(epoch, value)` of each curve, in order. Those that are not finite, or
            larger than any float32, are left out, and the points beside them are connected. A curve
            without points is not in the legend.

    Returns:
        HTML; an empty string if there are no points.

    Example:

    >>> chart = keras_deeplab.html_page.line_chart("loss", {"train": [(1, 0.9), (2, 0.5)]})
    """
    finite = {}
    for name, curve in curves.items():
        if found := [point for point in curve if all(abs(part) <= LARGEST for part in point)]:
            finite[name] = found
    if not finite:
        return ""
    (width, height), points = CHART, np.array([p for c in finite.values() for p in c], np.float64)
    first = points[:, 0].min()
    last = max(points[:, 0].max(), first + 1)
    columns = [tick for tick in _ticks(first, last, smallest=1) if first <= tick <= last]
    rows = _ticks(points[:, 1].min(), points[:, 1].max())

    def place(point: tuple[float, float]) -> tuple[float, float]:
        across = (point[0] - first) / (last - first)
        up = (point[1] - rows[0]) / (rows[-1] - rows[0])
        return (
            LEFT + across * (width - LEFT - RIGHT),
            height - BOTTOM - up * (height - TOP - BOTTOM),
        )

    drawn, legend = [], []
    for column in columns:
        left, _ = place((column, rows[0]))
        where = f'x="{left:.1f}" y="{height - BOTTOM + 16}" text-anchor="middle"'
        drawn.append(f"<text {where}>{column:g}</text>")
    for row in rows:
        _, y = place((first, row))
        drawn.append(
            f'<path d="M{LEFT} {y:.1f}H{width - RIGHT}" stroke="#ddd"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{row:g}</text>'
        )
    middle = (LEFT + width - RIGHT) / 2
    drawn.append(f'<text x="{middle}" y="{height - 6}" text-anchor="middle">epoch</text>')
    for number, (name, curve) in enumerate(finite.items()):
        color = LINES[number % len(LINES)]
        dash = ' stroke-dasharray="5 3"' * (number // len(LINES) % 2)
        places = " ".join(f"{left:.1f},{y:.1f}" for left, y in map(place, curve))
        drawn.append(
            f'<polyline points="{places}" fill="none" stroke="{color}" stroke-width="2"{dash}/>'
        )
        for point in curve if len(curve) <= MARKED else ():
            left, y = place(point)
            drawn.append(
                f'<circle cx="{left:.1f}" cy="{y:.1f}" r="2.5" fill="{color}"><title>'
                f"{html.escape(name)}, epoch {point[0]:g}: {point[1]:.4g}</title></circle>"
            )
        legend.append(f'<span style="color:{color}">&#9632;</span> {html.escape(name)}')
    return (
        f'<figure class="chart"><b>{html.escape(title)}</b><br><svg width="{width}" '
        f'height="{height}" font-size="12" fill="#444">{"".join(drawn)}</svg>'
        f"<figcaption>{' &nbsp; '.join(legend)}</figcaption></figure>"
    )


def _ticks(low: float, high: float, smallest: float = 0) -> list[float]:
    """Round numbers at equal distances, from at most `low` to at least `high`."""
    if math.isclose(low, high):
        high = low + (max(smallest, abs(low) / 10) or 1)
    power = 10 ** math.floor(math.log10((high - low) / 5))
    step = next(n * power for n in (1, 2, 5, 10) if n * power * 5 >= high - low)
    step = max(step, smallest)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]
