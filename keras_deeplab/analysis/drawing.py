"""Pictures of receptive fields, of the taps of atrous kernels and of the spatial pyramid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_deeplab.analysis.effective_field import EffectiveField
from keras_deeplab.analysis.receptive_field import Stage
from keras_deeplab.analysis.transposed_field import checked_position
from keras_deeplab.extras import require
from keras_deeplab.layers.pyramid import bin_range
from keras_deeplab.validation import error, integer, integers, pair

DPI = 80
BLUR = 128  # parts of an image's side that are the standard deviation of a blur
# Values of `tap_map` and their colours.
PADDING, MAP, TAP, DEAD_TAP = range(4)
TAP_COLORS = ("#d8d8d8", "#ffffff", "#104e8b", "#c33333")


def panels(
    columns: int, rows: int = 1, side: float = 2.8, ticks: bool = False
) -> tuple[Any, list[Any]]:
    """Returns a matplotlib figure with a grid of axes, row by row, without pyplot's state."""
    require("a picture", "plots", "matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((side * columns, (side + 0.5) * rows), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).reshape(-1).tolist()
    for one in axes:
        if not ticks:
            one.set_xticks([])
            one.set_yticks([])
    return figure, axes


def rendered(figure: Any) -> np.ndarray:
    """Returns the pixels of a figure, uint8 `(height, width, 3)`."""
    figure.canvas.draw()
    return np.array(figure.canvas.buffer_rgba())[..., :3]


def fields_picture(
    image: np.ndarray, fields: Mapping[str, tuple[Stage, EffectiveField]]
) -> np.ndarray:
    """Draws theoretical and effective receptive fields on an image.

    The rectangle is the theoretical field of the pixel at the cross, cut at the border of the
    image; the heat is its effective field, on a square root scale.

    Args:
        image: `(height, width, 3)` in 0..255.
        fields: For each caption the last stage of `receptive_field` and the effective field on
            images of the same size. The stage's stride must be 1.

    Returns:
        RGB pixels uint8 `(height, width, 3)`, a panel for each caption.

    Raises:
        ImportError: Without matplotlib.
        ValueError: If the sizes differ or `fields` is empty.

    Example:

    >>> network = keras.Sequential([keras.Input((33, 33, 3)), keras.layers.Conv2D(4, 5)])
    >>> stage = keras_deeplab.analysis.receptive_field(network).stages[-1]
    >>> effective = keras_deeplab.analysis.effective_receptive_field(network)
    >>> image = np.zeros((33, 33, 3), "uint8")
    >>> picture = keras_deeplab.analysis.fields_picture(image, {"5x5": (stage, effective)})

    Reference:
        [Luo et al., 2016](https://arxiv.org/abs/1701.04128), figure 1.
    """
    from scipy import ndimage  # here, as it takes time

    image = np.asarray(image)
    if not fields:
        raise error("fields", "a dict with a caption and its fields at least", fields)
    for _, effective in fields.values():
        if effective.map.shape != image.shape[:2]:
            raise error("image", f"of the fields' size {effective.map.shape}", image.shape)
    figure, axes = panels(len(fields))
    for one, (caption, (stage, effective)) in zip(axes, fields.items(), strict=True):
        one.imshow(image.astype(np.uint8))
        # Means around each pixel, as single pixels with a large gradient hide all others.
        heat = ndimage.gaussian_filter(effective.map, max(image.shape) / BLUR)
        heat = np.sqrt(heat / heat.max())
        one.imshow(heat, cmap="inferno", alpha=np.minimum(1.5 * heat, 1), vmin=0, vmax=1)
        row, column = effective.center
        one.plot(column, row, "+", color="#00e0ff")
        _box(one, stage.box(effective.center, image.shape[:2]), edgecolor="#00e0ff")
        size = "x".join(f"{side:g}" for side in stage.receptive_field)
        more = " + image" * stage.whole_image
        one.set_title(f"{caption}\n{size}{more}, 95 %: {effective.side}", fontsize=9)
    return rendered(figure)


def _box(axes: Any, box: tuple[int, int, int, int], **style: Any) -> None:
    from matplotlib.patches import Rectangle

    top, left, bottom, right = box
    corner, width, height = (left - 0.5, top - 0.5), right - left, bottom - top
    axes.add_patch(Rectangle(corner, width, height, fill=False, linewidth=1.5, **style))


def tap_map(kernel: int, rate: int, side: int, position: tuple[int, int]) -> np.ndarray:
    """Returns where the taps of a kernel lie, for the output at `position` of a square map.

    Values are `MAP` on the map and `PADDING` around it, `TAP` and `DEAD_TAP` for a tap there. The
    padding is as wide as that of a convolution of the same size.
    """
    reach = (kernel // 2) * rate
    found = np.full((side + 2 * reach,) * 2, PADDING)
    found[reach : reach + side, reach : reach + side] = MAP
    taps = np.ix_(*(place + rate * np.arange(kernel) for place in position))
    found[taps] = np.where(found[taps] == MAP, TAP, DEAD_TAP)
    return found


def taps_picture(
    rates: Sequence[int], side: int, kernel: int = 3, position: tuple[int, int] | None = None
) -> np.ndarray:
    """Draws the taps of an atrous kernel at several rates: blue on the map, red in the padding.

    Args:
        rates: Atrous rates, a panel for each.
        side: Height and width of the map.
        kernel: Taps per side, an odd number.
        position: Row and column of the output; the centre by default.

    Returns:
        RGB pixels uint8 `(height, width, 3)`.

    Raises:
        ImportError: Without matplotlib.
        ValueError: If an argument is out of its range.

    Example:

    >>> picture = keras_deeplab.analysis.taps_picture((1, 2, 4), side=11)

    Reference:
        [Chen et al., 2017, DeepLabV3](https://arxiv.org/abs/1706.05587), figures 1 and 4.
    """
    rates, side = integers("rates", rates), integer("side", side)
    if integer("kernel", kernel) % 2 == 0:
        raise error("kernel", "odd", kernel)
    position = checked_position(position, (side, side))
    figure, axes = panels(len(rates), side=2.4)
    from matplotlib.colors import ListedColormap

    colors = ListedColormap(TAP_COLORS)
    for one, rate in zip(axes, rates, strict=True):
        taps = tap_map(kernel, rate, side, position)
        one.imshow(taps, cmap=colors, vmin=PADDING, vmax=DEAD_TAP, interpolation="nearest")
        live = (taps == TAP).sum()
        one.set_title(f"rate {rate}: {live} of {kernel**2} taps", fontsize=9)
    return rendered(figure)


def pyramid_picture(
    sizes: Sequence[tuple[int, int]], levels: Sequence[int] = (4, 2, 1)
) -> np.ndarray:
    """Draws the bins of spatial pyramid pooling on maps of several sizes.

    The number of bins, and with it the length of the vector, does not depend on the size.

    Args:
        sizes: `(height, width)` of maps, a row for each.
        levels: Bins per side, a column for each, as in `layers.SpatialPyramidPooling2D`.

    Returns:
        RGB pixels uint8 `(height, width, 3)`.

    Raises:
        ImportError: Without matplotlib.
        ValueError: If an argument is out of its range.

    Example:

    >>> picture = keras_deeplab.analysis.pyramid_picture([(13, 13), (10, 18)])

    Reference:
        [He et al., 2014, SPP-net](https://arxiv.org/abs/1406.4729), section 2.2 and figure 3.
    """
    sizes = [pair("sizes", size) for size in sizes]
    levels = integers("levels", levels)
    if not sizes or not levels:
        raise error("sizes", "one size and one level at least", (sizes, levels))
    figure, axes = panels(len(levels), len(sizes), side=2)
    grid = [(size, bins) for size in sizes for bins in levels]
    for one, ((height, width), bins) in zip(axes, grid, strict=True):
        one.imshow(np.indices((height, width)).sum(0) % 2, cmap="Greys", vmin=0, vmax=6)
        for row, column in np.ndindex(bins, bins):
            top, bottom = bin_range(row, height, bins)
            left, right = bin_range(column, width, bins)
            _box(one, (top, left, bottom, right), edgecolor=f"C{(row + column) % 2}")
        one.set_title(f"{height}x{width}: {bins}x{bins} bins", fontsize=9)
    return rendered(figure)
