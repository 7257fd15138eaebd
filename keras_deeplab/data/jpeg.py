"""Detection of truncated JPEG files.

libjpeg fills in missing data: a file that ends early, or continues with zeros, decodes without an
error to an image that is grey below, with a warning on stderr only, in Pillow and TensorFlow. So
the structure of the file is read here, and suspicious ends are tested with the decoder.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import numpy as np
from PIL.JpegImagePlugin import JpegImageFile

from keras_deeplab.data.faults import FileFault
from keras_deeplab.data.formats import PILLOW_ERRORS

# Coded data end at a marker: not a stuffed byte, a restart marker or a fill byte.
_END_OF_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_ZEROS = bytes(64)  # coded camera images never contain that many, flat images may
_MISSING_GREY = 128  # libjpeg's value of every channel where data are missing
_TAIL = 8
# Each scan costs the time of a pass over the image, however few bytes it has. libjpeg writes 10 for
# progressive files; one for each coefficient of luminance would be 64.
MAX_SCANS = 100
_TESTED_SCANS = 10  # the last ones with zeros, as each test decodes the image twice

Span = tuple[int, int]


def check_whole(encoded: bytes, pixels: np.ndarray | None = None, thorough: bool = False) -> None:
    """Raises a FileFault if a JPEG is cut, ends in zeros or lacks scans.

    Without the decoded `pixels` only the structure is checked. Bytes after the end marker, as some
    phones write them, are allowed. A `thorough` check also tests the last scan of progressive
    files, with two more decodings; such images lack only their finest details.
    """
    components, scans, missing = _structure(encoded)
    if pixels is None:
        return
    if missing:
        raise _early_end(encoded, "scans are missing")
    progressive = len(scans) > components
    grey = (pixels[-1, -1] == _MISSING_GREY).all() or components > 3
    zeros: list[Span] = []
    if pixels.min() < pixels.max():  # the code of one colour may be zeros alone, without effect
        zeros = [scan for scan in scans if encoded.find(_ZEROS, *scan) >= 0][-_TESTED_SCANS:]
    is_tested = thorough if progressive else grey
    picture = _decoded(encoded) if is_tested or zeros else None
    if is_tested and _wants_more(encoded, scans[-1], picture):
        raise _early_end(encoded, "image data end early")
    for scan in zeros:
        if _wants_more(encoded, scan, picture) or _leaves_some(encoded, scan, picture):
            raise _early_end(encoded, "zeros in place of image data")


def check_scans(encoded: bytes) -> None:
    """Raises a FileFault for a JPEG of too many scans to decode."""
    # At least the scans; a search that takes no time. Others are in thumbnails and behind the end.
    if encoded.count(b"\xff\xda") > MAX_SCANS:
        _structure(encoded)


def _early_end(encoded: bytes, what: str) -> FileFault:
    return FileFault("truncated file", f"{len(encoded)} bytes, {what}")


def _structure(encoded: bytes) -> tuple[int, list[Span], set[tuple[int, int]]]:
    """Reads the first image in a file.

    Returns the number of components, the places of the coded data of each scan, and the
    `(component, coefficient)` that no scan gives to the last bit.
    """
    components: list[int] = []
    missing: set[tuple[int, int]] = set()
    scans, progressive = [], False
    for marker, start, end in _segments(encoded):
        segment = encoded[start:end]
        try:
            if marker in _FRAMES:
                progressive = marker in _PROGRESSIVE
                components = [*segment[6 : 6 + 3 * segment[5] : 3]]
                missing = {(component, number) for component in components for number in range(64)}
            elif marker == 0xDA:
                count = segment[0]
                first, last, bits = segment[1 + 2 * count : 4 + 2 * count]
                if not progressive:  # decoders ignore the fields, and some cameras set them to 0
                    first, last, bits = 0, 63, 0
                scans.append((end, _END_OF_SCAN.search(encoded, end).start()))
                if bits & 15 == 0:
                    given = segment[1 : 1 + 2 * count : 2]
                    missing -= {(one, number) for one in given for number in range(first, last + 1)}
        except (IndexError, ValueError) as error:
            raise _early_end(encoded, "a header is too short") from error
        if len(scans) > MAX_SCANS:
            text = f"{len(encoded)} bytes, JPEG of more than {MAX_SCANS} scans"
            raise FileFault("unreadable file", text, f"at most {MAX_SCANS} scans")
    return len(components), scans, missing


def _segments(encoded: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields `(marker, start, end)` of each segment up to the end marker, which is required."""
    position = 2
    while match := _END_OF_SCAN.search(encoded, position):
        marker, start = encoded[match.end() - 1], match.end()
        if marker == 0xD9:
            return
        if marker in (0x01, 0xD8):
            position = start
            continue
        position = start + int.from_bytes(encoded[start : start + 2])
        if marker == 0xDA and not _END_OF_SCAN.search(encoded, position):
            break
        yield marker, start + 2, position
    raise _early_end(encoded, "the end marker is missing")


def _wants_more(encoded: bytes, scan: Span, picture: bytes | None) -> bool:
    """Whether more data at a scan's end change the picture: the decoder lacked them."""
    more = encoded[: scan[1]] + 8 * _TAIL * b"\x55" + encoded[scan[1] :]
    return _decoded(more) != picture


def _leaves_some(encoded: bytes, scan: Span, picture: bytes | None) -> bool:
    """Whether other data at a scan's end do not change the picture: the decoder ignores them."""
    start, end = max(scan[0], scan[1] - _TAIL), scan[1]
    start += encoded[start - 1] == 0xFF  # the first is a stuffed byte
    others = (encoded[:start] + (end - start) * byte + encoded[end:] for byte in (b"\x55", b"\x33"))
    return all(_decoded(other) == picture for other in others)


def _decoded(encoded: bytes) -> bytes | None:
    try:
        with JpegImageFile(io.BytesIO(encoded)) as image:
            return image.tobytes()
    except PILLOW_ERRORS:
        return None
