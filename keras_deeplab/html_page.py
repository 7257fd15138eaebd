"""HTML pages that need no other file: their frame, tables, bars and pictures."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

SIDE = 240  # pixels of a picture's longer side
STYLE = """
body{font:15px system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse}td,th{padding:.15rem .7rem .15rem 0;text-align:left}
.warning{border-left:.4rem solid #c33}.note{border-left:.4rem solid #999}
.finding{padding:.3rem .8rem;margin:.6rem 0;background:#f6f6f6}
.bar{display:inline-block;height:.8rem}figure{display:inline-block;margin:.3rem}
figcaption{font-size:.75rem;color:#666;max-width:15rem;overflow-wrap:anywhere}
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
