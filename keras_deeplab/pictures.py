"""Pictures of label maps for people to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from keras_deeplab.data import voc_colors
from keras_deeplab.data.orientation import upright_pixels

GAP = 6
FONT_SIZE = 13
WHITE = (255, 255, 255)

CELL, SMALL_CELL = 34, 8
MOST_NAMES = 40
HEAT = np.array((16, 78, 139))  # the colour of a share of 1; 0 is white

Colors = Sequence[tuple[int, int, int]] | np.ndarray


def overlay(
    image: np.ndarray | Image.Image,
    labels: np.ndarray,
    colors: Colors | None = None,
    alpha: float = 0.5,
    ignore_label: int | None = 255,
) -> np.ndarray:
    """Lays the classes' colours over a photograph.

    Args:
        image: Pixels `(height, width, 3)`, or one-channel `(height, width)` or `(height, width,
            1)`, in 0..255; also with a batch axis in front. Or a `PIL.Image`, whose EXIF
            orientation is applied, as `predict` does.
        labels: Labels `(height, width)`, or `(batch, height, width)`.
        colors: One `(red, green, blue)` in 0..255 per class; PASCAL VOC's by default.
        alpha: How much of the colour is seen, 0 (none) to 1 (only the colour).
        ignore_label: Label whose pixels stay as they are, or None.

    Returns:
        RGB pixels uint8, of the shape of the labels and 3.

    Raises:
        ValueError: If the shapes do not fit, alpha is outside 0..1, or a label has no colour.

    Example:

    >>> picture = keras_deeplab.overlay(image, keras_deeplab.predict(model, image))
    >>> PIL.Image.fromarray(picture).save("overlay.png")
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in 0..1; received {alpha}")
    labels = np.asarray(labels)
    pixels = _rgb(image, labels.shape).astype(np.float32)
    painted = _painted(labels, colors, ignore_label)
    mixed = np.rint(pixels + alpha * (painted - pixels)).astype(np.uint8)
    ignored = (labels == ignore_label)[..., None]
    return np.where(ignored, pixels.astype(np.uint8), mixed)


def _rgb(image: np.ndarray | Image.Image, shape: tuple[int, ...]) -> np.ndarray:
    """Returns an image of those pixels with three channels."""
    pixels = upright_pixels(image, "RGB") if isinstance(image, Image.Image) else np.asarray(image)
    pixels = pixels[..., None] if pixels.shape == shape else pixels
    if pixels.shape[:-1] != shape or pixels.shape[-1] not in (1, 3):
        raise ValueError(
            "image must have the labels' height and width and 1 or 3 channels; received image of "
            f"shape {pixels.shape} and labels of shape {shape}"
        )
    return np.broadcast_to(np.clip(pixels, 0, 255), (*shape, 3))


def _painted(labels: np.ndarray, colors: Colors | None, ignore_label: int | None) -> np.ndarray:
    """Returns the labels in their colours; ignored pixels in PASCAL VOC's void colour."""
    table = np.asarray(voc_colors(255) if colors is None else colors, np.uint8).reshape(-1, 3)
    ignored = labels == ignore_label
    shown = np.where(ignored, 0, labels).astype(np.int64)
    if shown.size and not 0 <= shown.min() <= shown.max() < len(table):
        raise ValueError(
            f"colors must hold one colour per class; received {len(table)} colours for labels from "
            f"{shown.min()} to {shown.max()}"
        )
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
    """Draws photographs beside truth and prediction, with the classes' names and colours below.

    Args:
        images: Photographs `(height, width, 3)` or one-channel, in 0..255, of any sizes.
        truths: One label map `(height, width)` per photograph.
        predictions: One label map `(height, width)` per photograph.
        class_names: One name per class.
        colors: One `(red, green, blue)` in 0..255 per class; PASCAL VOC's by default.
        ignore_label: Label of the pixels that do not count, or None.
        max_width: Width to which wider photographs are shrunk.

    Returns:
        RGB pixels uint8 `(height, width, 3)`, one row per photograph.

    Raises:
        ValueError: If the numbers or sizes of images, truths and predictions differ.

    Example:

    >>> picture = comparison_picture(images, truths, predictions, ["sky", "ground"])
    >>> PIL.Image.fromarray(picture).save("comparison.png")
    """
    if not len(images) == len(truths) == len(predictions) > 0:
        raise ValueError(
            "images, truths and predictions must be equally many and at least one; received "
            f"{len(images)}, {len(truths)} and {len(predictions)}"
        )
    rows = []
    for image, *maps in zip(images, truths, predictions, strict=True):
        maps = [np.asarray(labels) for labels in maps]
        cells = [_painted(labels, colors, ignore_label) for labels in maps]
        cells = [_rgb(image, labels.shape) for labels in maps[:1]] + cells
        if len({cell.shape for cell in cells}) > 1:
            raise ValueError(
                "a photograph's truth and prediction must have its size; received shapes "
                f"{[cell.shape[:2] for cell in cells]}"
            )
        # Label maps are not smoothed: two classes' colours mixed would look like a third class.
        filters = [Image.Resampling.BOX] + 2 * [Image.Resampling.NEAREST]
        rows.append(
            [_shrunk(np.uint8(c), max_width, f) for c, f in zip(cells, filters, strict=True)]
        )
    table = voc_colors(len(class_names)) if colors is None else colors
    entries = [(str(n), tuple(map(int, c))) for n, c in zip(class_names, table, strict=True)]
    if any((np.asarray(labels) == ignore_label).any() for labels in truths):
        entries.append(("ignored", voc_colors(256)[255]))
    return _sheet(rows, entries)


def _shrunk(cell: np.ndarray, max_width: int, resampling: Image.Resampling) -> Image.Image:
    picture = Image.fromarray(cell)
    if picture.width <= max_width:
        return picture
    height = max(round(picture.height * max_width / picture.width), 1)
    return picture.resize((max_width, height), resampling)


def _sheet(
    rows: list[list[Image.Image]], entries: list[tuple[str, tuple[int, int, int]]]
) -> np.ndarray:
    """Puts the rows under three captions and the legend under the rows."""
    font = ImageFont.load_default(size=FONT_SIZE)
    line = FONT_SIZE + GAP
    column = max(max(row[0].width for row in rows), 80) + GAP
    width = 3 * column + GAP
    places, legend_height = _legend_places([name for name, _ in entries], font, width)
    top = line + GAP
    height = top + sum(row[0].height + GAP for row in rows)
    sheet = Image.new("RGB", (width, height + legend_height), WHITE)
    draw = ImageDraw.Draw(sheet)
    for index, caption in enumerate(("photograph", "truth", "prediction")):
        draw.text((GAP + index * column, GAP // 2), caption, fill="black", font=font)
    for row in rows:
        for index, cell in enumerate(row):
            sheet.paste(cell, (GAP + index * column, top))
        top += row[0].height + GAP
    for (name, color), (x, y) in zip(entries, places, strict=True):
        box = (x, height + y, x + FONT_SIZE, height + y + FONT_SIZE)
        draw.rectangle(box, fill=color, outline="black")
        draw.text((x + FONT_SIZE + GAP, height + y - 1), name, fill="black", font=font)
    return np.asarray(sheet)


def _legend_places(
    names: list[str], font: ImageFont.FreeTypeFont, width: int
) -> tuple[list[tuple[int, int]], int]:
    """Returns where each legend entry goes, line after line, and the height of them all."""
    places, x, y = [], GAP, 0
    for name in names:
        entry = FONT_SIZE + 3 * GAP + round(font.getlength(name))
        if x > GAP and x + entry > width:
            x, y = GAP, y + FONT_SIZE + GAP
        places.append((x, y))
        x += entry
    return places, y + FONT_SIZE + GAP


def confusion_picture(confusion: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Draws where each class's pixels went: rows are the truth, columns the prediction.

    Each cell holds the share of its row's pixels in percent, and is the darker the larger it is; a
    perfect model has a dark diagonal and white elsewhere. The rows of classes that no truth has are
    grey. With more than 40 classes the cells are small, without names and numbers.

    Args:
        confusion: Pixel counts `(num_classes, num_classes)`, as `metrics.scores` takes them.
        class_names: One name per class.

    Returns:
        RGB pixels uint8 `(height, width, 3)`.

    Raises:
        ValueError: If the matrix is not square, or the names are not one per class.

    Example:

    >>> picture = confusion_picture(np.array([[8, 2], [1, 9]]), ["sky", "ground"])
    >>> PIL.Image.fromarray(picture).save("confusion.png")
    """
    confusion, names = np.asarray(confusion, np.float64), [str(name) for name in class_names]
    if confusion.shape != (len(names), len(names)):
        raise ValueError(
            "confusion must be a square matrix with a row for each class name; received shape "
            f"{confusion.shape} and {len(names)} names"
        )
    pixels = confusion.sum(1, keepdims=True)
    shares = confusion / np.where(pixels == 0, 1, pixels)
    colors = np.rint(255 + shares[..., None] * (HEAT - 255)).astype(np.uint8)
    colors[pixels[:, 0] == 0] = 224
    cell = CELL if len(names) <= MOST_NAMES else SMALL_CELL
    grid = Image.fromarray(colors.repeat(cell, 0).repeat(cell, 1))
    rows = columns = Image.new("RGB", (0, 0))
    font = ImageFont.load_default(size=FONT_SIZE)
    if cell == CELL:
        _write_shares(ImageDraw.Draw(grid), shares, pixels[:, 0] > 0, font)
        rows = _name_strip(names, font, "rm")
        columns = _name_strip(names, font, "lm").transpose(Image.Transpose.ROTATE_90)
    caption = "rows: truth, columns: prediction, % of the row"
    left, top = GAP + rows.width, FONT_SIZE + 2 * GAP + columns.height
    width = max(left + grid.width, GAP + round(font.getlength(caption))) + GAP
    sheet = Image.new("RGB", (width, top + grid.height + GAP), WHITE)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP // 2), caption, fill="black", font=font)
    draw.rectangle((left - 1, top - 1, left + grid.width, top + grid.height), outline="black")
    sheet.paste(rows, (GAP, top))
    sheet.paste(columns, (left, top - columns.height))
    sheet.paste(grid, (left, top))
    return np.asarray(sheet)


def _write_shares(
    draw: ImageDraw.ImageDraw, shares: np.ndarray, present: np.ndarray, font: ImageFont.FreeTypeFont
) -> None:
    """Writes each share of the present rows into its cell, nothing where it rounds to 0."""
    for (row, column), share in np.ndenumerate(shares):
        if present[row] and round(100 * share) > 0:
            middle = (column + 0.5) * CELL, (row + 0.5) * CELL
            color = WHITE if share > 0.5 else "black"
            draw.text(middle, f"{100 * share:.0f}", fill=color, font=font, anchor="mm")


def _name_strip(names: Sequence[str], font: ImageFont.FreeTypeFont, anchor: str) -> Image.Image:
    """Writes a name beside each row, at the strip's left ("lm") or right ("rm")."""
    width = round(max(map(font.getlength, names))) + 2 * GAP
    strip = Image.new("RGB", (width, len(names) * CELL), WHITE)
    x = GAP if anchor == "lm" else width - GAP
    for index, name in enumerate(names):
        place = (x, (index + 0.5) * CELL)
        ImageDraw.Draw(strip).text(place, name, fill="black", font=font, anchor=anchor)
    return strip
