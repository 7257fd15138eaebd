"""Pictures of receptive fields, atrous kernels and pyramid bins, drawn by matplotlib."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers as kl

from keras_deeplab.analysis.effective_field import MASS, EffectiveField
from keras_deeplab.analysis.live_taps import live_taps
from keras_deeplab.analysis.receptive_field import Stage
from keras_deeplab.analysis.transposed_field import transposed_receptive_field
from keras_deeplab.extras import require

PANEL = 2.4  # inches of a picture's panel
DPI = 100
MAP = 65  # samples of the map in figure 4 of the DeepLabV3 paper


def draw_fields(
    image: np.ndarray, fields: Mapping[str, tuple[Stage, EffectiveField]]
) -> np.ndarray:
    """Draws the theoretical and the effective field of networks on an image.

    Args:
        image: uint8 `(height, width, 3)`, of the size of the effective fields.
        fields: A dict from a name to the last stage of `receptive_field` and the result of
            `effective_receptive_field`.

    Returns:
        RGB pixels uint8: for each network the effective field in red, the square with 95 % of it in
        white, and the theoretical field as a dashed rectangle, clipped to the image.

    Raises:
        ImportError: If matplotlib is missing.

    Example:

    >>> network = keras.Sequential([keras.Input((65, 65, 3)), keras.layers.Conv2D(8, 5)])
    >>> stage = keras_deeplab.analysis.receptive_field(network).stages[-1]
    >>> field = keras_deeplab.analysis.effective_receptive_field(network)
    >>> image = np.zeros((65, 65, 3), np.uint8)
    >>> keras_deeplab.analysis.drawing.draw_fields(image, {"5x5": (stage, field)}).shape[-1]
    3
    """
    figure, panels = _panels(len(fields))
    height, width = image.shape[:2]
    for axes, (name, (stage, field)) in zip(panels, fields.items(), strict=True):
        heat = np.zeros((height, width, 4))
        heat[..., 0] = 1
        heat[..., 3] = np.minimum(1, (field.map / np.quantile(field.map, 0.9995)) ** 0.5)
        axes.imshow(image, alpha=0.75)
        axes.imshow(heat)
        _square(axes, field.centre, (field.side, field.side), edgecolor="white")
        _square(axes, field.centre, stage.receptive_field, edgecolor="black", linestyle="--")
        sides = f"{stage.receptive_field[0]:g}{' + image' * stage.whole_image}"
        axes.set_title(f"{name}\nfield {sides}\n{100 * MASS:g} % in {field.side}", fontsize=9)
        axes.set_xlim(-0.5, width - 0.5)
        axes.set_ylim(height - 0.5, -0.5)
    return _pixels(figure)


def draw_taps(rates: Sequence[int] = (1, 2, 4, 6), side: int = 15) -> np.ndarray:
    """Draws the taps of a 3x3 kernel at several atrous rates on a grid of samples.

    Args:
        rates: Atrous rates.
        side: Samples of the grid; taps outside lie in the padding.

    Returns:
        RGB pixels uint8.

    Raises:
        ImportError: If matplotlib is missing.

    Example:

    >>> picture = keras_deeplab.analysis.drawing.draw_taps()
    """
    figure, panels = _panels(len(rates))
    for axes, rate in zip(panels, rates, strict=True):
        field = transposed_receptive_field(_ones(rate), (side, side))[..., 0]
        axes.imshow(field, cmap="Blues", vmin=0, vmax=1.5)
        axes.set_axis_on()
        axes.set_xticks(np.arange(-0.5, side), labels=[])
        axes.set_yticks(np.arange(-0.5, side), labels=[])
        axes.tick_params(length=0)
        axes.grid(color="0.85", linewidth=0.5)
        axes.set_title(f"rate {rate}: {2 * rate + 1}x{2 * rate + 1}", fontsize=9)
    return _pixels(figure)


def draw_transposed(stacks: Mapping[str, Sequence[int]], side: int = 33) -> np.ndarray:
    """Draws a one-hot map after each transposed convolution of stacks of 3x3 kernels of ones.

    Args:
        stacks: A dict from a name to the atrous rates of its layers, from the first to the last.
        side: Samples of the map.

    Returns:
        RGB pixels uint8, a row for each stack. After the last layer it is the weight that each
        pixel has in the output.

    Raises:
        ImportError: If matplotlib is missing.

    Example:

    >>> stacks = {"plain": (1, 1, 1), "atrous": (1, 2, 4)}
    >>> picture = keras_deeplab.analysis.drawing.draw_transposed(stacks)
    """
    count = 1 + max(map(len, stacks.values()))
    figure, panels = _panels(count * len(stacks), columns=count)
    for row, (name, rates) in zip(np.reshape(panels, (-1, count)), stacks.items(), strict=True):
        for done, axes in enumerate(row):
            field = np.zeros((side, side))
            field[side // 2, side // 2] = 1
            if done and done <= len(rates):
                stack = _ones(*rates[len(rates) - done :])
                field = transposed_receptive_field(stack, (side, side))[..., 0]
            extent = int(np.ptp(np.nonzero(field)[0])) + 1
            axes.imshow(field / field.max(), cmap="magma")
            after = "one-hot" if not done else f"after {done} (rate {rates[-done]})"
            axes.set_title(f"{name}: {after}\n{extent}x{extent}", fontsize=8)
    return _pixels(figure)


def draw_live_taps(rates: Sequence[int] = (1, *range(4, MAP + 8, 4))) -> np.ndarray:
    """Draws figure 4 of the DeepLabV3 paper: live taps of a 3x3 kernel against its rate.

    Args:
        rates: Atrous rates, on a map of 65x65.

    Returns:
        RGB pixels uint8: the share of the positions with 1, 2, 4, 6 and 9 taps on the map.

    Raises:
        ImportError: If matplotlib is missing.

    Example:

    >>> picture = keras_deeplab.analysis.drawing.draw_live_taps((1, 20, 40, 65))
    """
    figure, (axes,) = _panels(1, size=(1.8, 1.3))
    found = {rate: live_taps(_ones(rate), MAP, MAP) for rate in rates}
    for taps in (9, 6, 4, 2, 1):
        shares = [
            one[0].positions.get(taps, 0) if one else float(taps == 9) for one in found.values()
        ]
        axes.plot(rates, shares, label=f"{taps}")
    axes.set_axis_on()
    axes.set_xlabel(f"atrous rate on a map of {MAP}x{MAP}")
    axes.set_ylabel("share of the positions")
    axes.legend(title="live taps", fontsize=8)
    return _pixels(figure)


def draw_bins(sizes: Sequence[tuple[int, int]], levels: Sequence[int] = (4, 2, 1)) -> np.ndarray:
    """Draws the bins of spatial pyramid pooling on maps of several sizes; bins may overlap.

    Args:
        sizes: `(height, width)` of the maps.
        levels: As of `layers.SpatialPyramidPooling2D`.

    Returns:
        RGB pixels uint8: a row for each size, a column for each level.

    Raises:
        ImportError: If matplotlib is missing.

    Example:

    >>> picture = keras_deeplab.analysis.drawing.draw_bins([(13, 13), (10, 16)])
    """
    figure, panels = _panels(len(sizes) * len(levels), columns=len(levels))
    rows = np.reshape(panels, (-1, len(levels)))
    for row, (height, width) in zip(rows, sizes, strict=True):
        for axes, count in zip(row, levels, strict=True):
            spans = [
                [(k * n // count, -(-(k + 1) * n // count)) for k in range(count)]
                for n in (height, width)
            ]
            for (top, bottom), (left, right) in itertools.product(*spans):
                sides, middle = (bottom - top, right - left), (top + bottom, left + right)
                centre = middle[0] / 2, middle[1] / 2
                _square(axes, centre, sides, facecolor=(0.2, 0.4, 0.8, 0.3), edgecolor="black")
            axes.set_title(f"{width}x{height}: {count}x{count} bins", fontsize=8)
            axes.set_xlim(0, max(side for _, side in sizes))
            axes.set_ylim(max(side for side, _ in sizes), 0)
            axes.set_aspect("equal")
    return _pixels(figure)


def _ones(*rates: int) -> keras.Model:
    """A stack of 3x3 kernels of ones."""
    options = {"padding": "same", "kernel_initializer": "ones", "use_bias": False}
    kernels = [kl.Conv2D(1, 3, dilation_rate=rate, **options) for rate in rates]
    return keras.Sequential([keras.Input((None, None, 1)), *kernels])


def _panels(
    count: int, columns: int | None = None, size: tuple[float, float] = (1.0, 1.15)
) -> tuple[Any, list[Any]]:
    """Returns a figure and its panels, without axes."""
    require("Drawing", "plots", "matplotlib")
    from matplotlib.figure import Figure

    columns = columns or count
    rows = -(-count // columns)
    figure = Figure((PANEL * columns * size[0], PANEL * rows * size[1]), DPI, layout="constrained")
    panels = list(np.ravel(figure.subplots(rows, columns)))
    for axes in panels:
        axes.set_axis_off()
    return figure, panels


def _square(
    axes: Any, centre: tuple[float, float], sides: tuple[float, float], **style: Any
) -> None:
    from matplotlib.patches import Rectangle

    (row, column), (height, width) = centre, sides
    corner = (column - width / 2, row - height / 2)
    axes.add_patch(Rectangle(corner, width, height, **{"facecolor": "none", **style}))


def _pixels(figure: Any) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
