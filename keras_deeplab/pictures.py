"""Pictures of label maps and confusion matrices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from keras_deeplab.data import voc_colors
from keras_deeplab.data.orientation import upright_pixels
from keras_deeplab.validation import error, fraction

GAP = 6
FONT_SIZE = 13
LINE = FONT_SIZE + GAP
FONT = ImageFont.load_default(size=FONT_SIZE)

CELL, SMALL_CELL = 34, 8
MAX_NAMES = 40
HEAT = np.array((16, 78, 139))  # the colour of a share of 1; 0 is white

Color = tuple[int, int, int]
Colors = Sequence[Color] | np.ndarray


def overlay(
    image: np.ndarray | Image.Image,
    labels: np.ndarray,
    colors: Colors | None = None,
    alpha: float = 0.5,
    ignore_label: int | None = 255,
) -> np.ndarray:
    """Blends the classes' colours with an image.

    Args:
        image: Pixels `(height, width, 3)`, or one-channel `(height, width)` or `(height, width,
            1)`, in 0..255; also with a batch axis in front. Of more channels the first three are
            shown. Or a `PIL.Image`, whose EXIF
            orientation is applied, as `predict` does.
        labels: Labels `(height, width)`, or `(batch, height, width)`.
        colors: One `(red, green, blue)` in 0..255 per class; PASCAL VOC's by default.
        alpha: Weight of the colours, from 0 to 1.
        ignore_label: Label whose pixels stay unchanged, or None.

    Returns:
        RGB pixels uint8, of the shape of the labels and 3.

    Raises:
        ValueError: If the shapes do not fit, alpha is outside 0..1, or a label has no colour.

    Example:

    >>> picture = keras_deeplab.overlay(image, keras_deeplab.predict(model, image))
    >>> PIL.Image.fromarray(picture).save("overlay.png")
    """
    fraction("alpha", alpha)
    labels = np.asarray(labels)
    pixels = _rgb(image, labels.shape).astype(np.float32)
    painted = _painted(labels, colors, ignore_label)
    mixed = np.rint(pixels + alpha * (painted - pixels)).astype(np.uint8)
    ignored = (labels == ignore_label)[..., None]
    return np.where(ignored, pixels.astype(np.uint8), mixed)


def _rgb(image: np.ndarray | Image.Image, shape: tuple[int, ...]) -> np.ndarray:
    pixels = upright_pixels(image, "RGB") if isinstance(image, Image.Image) else np.asarray(image)
    pixels = pixels[..., None] if pixels.shape == shape else pixels
    if pixels.shape[:-1] != shape:
        raise error("image", f"of the labels' shape {shape}", pixels.shape)
    if pixels.shape[-1] not in (1, 3):
        pixels = pixels[..., : 3 if pixels.shape[-1] > 3 else 1]
    low, high = (float(end(initial=0)) for end in (pixels.min, pixels.max))
    if not (low > -1 and high < 256):  # interpolation overshoots a little
        raise error("image", "of values in 0..255", f"{low:g} to {high:g}")
    return np.broadcast_to(np.clip(pixels, 0, 255), (*shape, 3))


def _painted(labels: np.ndarray, colors: Colors | None, ignore_label: int | None) -> np.ndarray:
    """Returns the labels in their colours, ignored pixels in PASCAL VOC's."""
    ignored = labels == ignore_label
    shown = np.where(ignored, 0, labels).astype(np.int64)
    if colors is None:
        colors = voc_colors(min(int(shown.max(initial=0)) + 1, 65_536))
    table = np.asarray(colors, np.uint8).reshape(-1, 3)
    if shown.size and not 0 <= shown.min() <= shown.max() < len(table):
        rule = f"one colour per class for the labels {shown.min()} to {shown.max()}"
        raise error("colors", rule, table.tolist())
    return np.where(ignored[..., None], np.uint8(voc_colors(256)[255]), table[shown])


def comparison_picture(
    images: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    class_names: Sequence[str],
    colors: Colors | None = None,
    ignore_label: int | None = 255,
    max_width: int = 480,
) -> np.ndarray:
    """Draws images beside truth and prediction, with the classes' names and colours below.

    Args:
        images: Images `(height, width, 3)` or one-channel, in 0..255, of any sizes.
        truths: One label map `(height, width)` per image.
        predictions: One label map `(height, width)` per image.
        class_names: One name per class.
        colors: One `(red, green, blue)` in 0..255 per class; PASCAL VOC's by default.
        ignore_label: Label of ignored pixels, or None.
        max_width: Width to which wider images are shrunk.

    Returns:
        RGB pixels uint8 `(height, width, 3)`, one row per image.

    Raises:
        ValueError: If the numbers or sizes of images, truths and predictions differ.

    Example:

    >>> picture = comparison_picture(images, truths, predictions, ["sky", "ground"])
    >>> PIL.Image.fromarray(picture).save("comparison.png")
    """
    lengths = (len(images), len(truths), len(predictions))
    if len(set(lengths)) > 1 or not lengths[0]:
        raise error("images", "as many as truths and predictions, and at least one", lengths)
    rows = []
    for image, *maps in zip(images, truths, predictions, strict=True):
        maps = [np.asarray(labels) for labels in maps]
        cells = [_rgb(image, maps[0].shape), *(_painted(m, colors, ignore_label) for m in maps)]
        if len({cell.shape for cell in cells}) > 1:
            rule = f"of the size of their image, {cells[0].shape[:2]}"
            raise error("predictions", rule, cells[2].shape[:2])
        rows.append([_shrunk(np.uint8(c), max_width, smooth=c is cells[0]) for c in cells])
    table = voc_colors(len(class_names)) if colors is None else colors
    legend = [(str(n), tuple(map(int, c))) for n, c in zip(class_names, table, strict=True)]
    if any((np.asarray(labels) == ignore_label).any() for labels in truths):
        legend.append(("ignored", voc_colors(256)[255]))
    return _sheet(rows, legend)


def _shrunk(cell: np.ndarray, max_width: int, smooth: bool) -> Image.Image:
    """Label maps are not smoothed: a mix of two classes' colours may be that of a third class."""
    picture = Image.fromarray(cell)
    if picture.width <= max_width:
        return picture
    height = max(round(picture.height * max_width / picture.width), 1)
    resampling = Image.Resampling.BOX if smooth else Image.Resampling.NEAREST
    return picture.resize((max_width, height), resampling)


def _sheet(rows: list[list[Image.Image]], legend: list[tuple[str, Color]]) -> np.ndarray:
    """Puts the rows under captions and the legend under the rows."""
    column = max(80, *(row[0].width for row in rows)) + GAP
    entry = LINE + 2 * GAP + round(max(FONT.getlength(name) for name, _ in legend))
    width = max(3 * column, entry) + GAP
    entries_in_line = (width - GAP) // entry
    top = LINE + GAP
    bottom = top + sum(row[0].height + GAP for row in rows)
    height = bottom + -(-len(legend) // entries_in_line) * LINE
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for index, caption in enumerate(("image", "truth", "prediction")):
        draw.text((GAP + index * column, GAP // 2), caption, fill="black", font=FONT)
    for row in rows:
        for index, cell in enumerate(row):
            sheet.paste(cell, (GAP + index * column, top))
        top += row[0].height + GAP
    for index, (name, color) in enumerate(legend):
        y, x = divmod(index, entries_in_line)
        x, y = GAP + x * entry, bottom + y * LINE
        box = (x, y, x + FONT_SIZE, y + FONT_SIZE)
        draw.rectangle(box, fill=color, outline="black")
        draw.text((x + LINE, y - 1), name, fill="black", font=FONT)
    return np.asarray(sheet)


def confusion_picture(confusion: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Draws a confusion matrix as RGB pixels uint8: rows are the truth, columns the prediction.

    Each cell shows the share of its row's pixels in percent. The rows of classes that no truth has
    are grey. With more than 40 classes the cells are small, without names and numbers.
    """
    confusion, names = np.asarray(confusion, np.float64), [str(name) for name in class_names]
    if confusion.shape != (len(names), len(names)):
        rule = f"a matrix with a row and a column for each of {len(names)} class names"
        raise error("confusion", rule, confusion.shape)
    pixels = confusion.sum(1, keepdims=True)
    shares = confusion / np.where(pixels == 0, 1, pixels)
    colors = np.rint(255 + shares[..., None] * (HEAT - 255)).astype(np.uint8)
    colors[pixels[:, 0] == 0] = 224
    cell = CELL if len(names) <= MAX_NAMES else SMALL_CELL
    grid = Image.fromarray(colors.repeat(cell, 0).repeat(cell, 1))
    rows = columns = Image.new("RGB", (0, 0))
    if cell == CELL:
        draw = ImageDraw.Draw(grid)
        for (row, column), share in np.ndenumerate(shares):
            if round(100 * share) > 0:
                middle = (column + 0.5) * CELL, (row + 0.5) * CELL
                color = "white" if share > 0.5 else "black"
                draw.text(middle, f"{100 * share:.0f}", fill=color, font=FONT, anchor="mm")
        rows = _name_strip(names, "rm")
        columns = _name_strip(names, "lm").transpose(Image.Transpose.ROTATE_90)
    caption = "rows: truth, columns: prediction, % of the row"
    left, top = GAP + rows.width, LINE + GAP + columns.height
    width = max(left + grid.width, GAP + round(FONT.getlength(caption))) + GAP
    sheet = Image.new("RGB", (width, top + grid.height + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP // 2), caption, fill="black", font=FONT)
    draw.rectangle((left - 1, top - 1, left + grid.width, top + grid.height), outline="black")
    sheet.paste(rows, (GAP, top))
    sheet.paste(columns, (left, top - columns.height))
    sheet.paste(grid, (left, top))
    return np.asarray(sheet)


def _name_strip(names: Sequence[str], anchor: str) -> Image.Image:
    """Writes a name beside each row, at the strip's left ("lm") or right ("rm")."""
    width = round(max(map(FONT.getlength, names))) + 2 * GAP
    strip = Image.new("RGB", (width, len(names) * CELL), "white")
    draw = ImageDraw.Draw(strip)
    for index, name in enumerate(names):
        x = GAP if anchor == "lm" else width - GAP
        draw.text((x, (index + 0.5) * CELL), name, fill="black", font=FONT, anchor=anchor)
    return strip
