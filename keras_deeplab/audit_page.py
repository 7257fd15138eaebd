"""The report of an audit as one HTML page that needs no other file."""

from __future__ import annotations

import html
from collections.abc import Iterator

import tensorflow as tf

from keras_deeplab.data import DatasetError, Report, Source
from keras_deeplab.data.source import evenly_spaced
from keras_deeplab.html_page import SIDE, bar, figure, page, table
from keras_deeplab.pictures import overlay

SHOWN = 12  # pairs of each split
LISTED_FAULTS = 100  # of each kind


def audit_page(report: Report, source: Source, title: str) -> str:
    """Returns a report as HTML: findings, shares of the classes as bars, and pairs with overlays.

    Args:
        report: Of `data.audit`.
        source: The data set, of which up to 12 pairs of each split are drawn.
        title: Name of the data set.

    Returns:
        The text of a page that needs no other file.

    Example:

    >>> source = data.Shapes(train=9, val=3)
    >>> page = keras_deeplab.audit_page.audit_page(data.audit(source), source, "shapes")
    """
    return page(title, [_findings(report), _sizes(report), _bars(report), *_sheets(report, source)])


def faults_page(error: DatasetError, title: str) -> str:
    """Returns the faults of a data set as HTML, with their probable causes.

    Args:
        error: Of `data.audit`.
        title: Name of the data set.

    Returns:
        The text of a page that needs no other file.

    Example:

    >>> fault = data.faults.FileFault("empty split", "train: no images")
    >>> error = data.DatasetError("mydata", [fault])
    >>> page = keras_deeplab.audit_page.faults_page(error, "mydata")
    """
    body = "".join(
        f'<div class="finding warning"><b>probable cause</b> {html.escape(cause)}</div>'
        for cause in error.causes
    )
    for fault in error.faults:
        listed = "".join(f"<li>{html.escape(found)}" for found in fault.found[:LISTED_FAULTS])
        more = len(fault.found) - LISTED_FAULTS
        body += (
            f"<h2>{html.escape(fault.kind)} ({len(fault.found)})</h2>"
            f"<p>Expected: {html.escape(fault.expected)}</p><ul>{listed}</ul>"
            + f"<p>and {more} more</p>"
            * (more > 0)
        )
    return page(title, [body])


def _findings(report: Report) -> str:
    lines = [
        f'<div class="finding {"warning" if one.is_warning else "note"}">'
        f"<b>{html.escape(one.kind)}</b> (confidence {one.confidence:.2f}): "
        f"{html.escape(str(one).removeprefix(one.kind + ': '))}</div>"
        for one in report.findings
    ]
    lines += [
        f'<div class="finding note">{html.escape(warning)}</div>' for warning in report.warnings
    ]
    return "<h2>Findings</h2>" + ("".join(lines) or "<p>None.</p>")


def _sizes(report: Report) -> str:
    rows = []
    for split, part in report.splits.items():
        smallest, largest, crop = (
            f"{width}x{height}" for height, width in (part.smallest, part.largest, part.crop_size)
        )
        rows.append([split, f"{part.images} images", f"{smallest} to {largest}", f"crop {crop}"])
    low, high = report.scales
    return f"<h2>Splits</h2>{table(rows)}<p>Random scales {low:g} to {high:g}</p>"


def _bars(report: Report) -> str:
    """The share of pixels of each class and split."""
    splits = report.splits
    names = (*report.info.classes, "ignored")
    colors = (*report.info.colors, (200, 200, 200))
    weights = report.class_weights
    heads = "".join(f"<th>{html.escape(split)}" for split in splits)
    rows = [f"<tr><th>class{heads}<th>weight (median frequency)"]
    for label, (name, color) in enumerate(zip(names, colors, strict=True)):
        cells = ""
        for part in splits.values():
            share = (*part.class_share, part.ignored_share)[label]
            cells += f"<td>{bar(share, color)} {100 * share:.2f} %"
        weight = f"<td>{weights[label]:.2f}" if label < len(weights) else "<td>"
        rows.append(f"<tr><td>{html.escape(name)}{cells}{weight}")
    return f"<h2>Shares of pixels</h2><table>{''.join(rows)}</table>"


def _sheets(report: Report, source: Source) -> Iterator[str]:
    """Overlays of evenly spaced pairs of each split."""
    for split in report.splits:
        names = source.names(split)
        places = evenly_spaced(len(names), SHOWN)
        pairs = source.dataset(split, tf.data.Dataset.from_tensor_slices(places))
        figures = ""
        for place, (image, label) in zip(places, pairs.as_numpy_iterator(), strict=True):
            step = -(-max(label.shape) // SIDE)
            image, label = image[::step, ::step], label[::step, ::step]
            shown = [overlay(image, label, report.info.colors, alpha) for alpha in (0.0, 0.5)]
            figures += figure(shown, names[place])
        yield f"<h2>{html.escape(split)}</h2>{figures}"
