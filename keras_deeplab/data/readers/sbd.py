"""The masks of SBD, Semantic Boundaries Dataset, as its archive has them: MATLAB files."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np

from keras_deeplab.data.faults import FileFault

LIMIT = 2**25  # bytes of an unpacked file; those of SBD have less than 1 MB
_HEADER, _TAG, _COMPRESSED = 128, 8, 15  # of MATLAB 5 files


def read_mask(encoded: bytes) -> np.ndarray:
    """Returns `GTcls.Segmentation` uint8 `(height, width)` of a file of `cls`.

    Raises a FileFault for other contents. MATLAB files hold no code.
    """
    from scipy.io import loadmat  # here, as it takes time

    expected = "a MATLAB 5 file with GTcls.Segmentation, uint8 (height, width)"
    if _unpacked_size(encoded) > LIMIT:
        raise FileFault("image too large", f"more than {LIMIT} bytes unpacked", expected)
    try:
        content = loadmat(io.BytesIO(encoded), variable_names=("GTcls",))
        mask = content["GTcls"]["Segmentation"].item()
    except Exception as error:  # SciPy raises many kinds
        text = f"{len(encoded)} bytes, {type(error).__name__} {error}"
        raise FileFault("unreadable file", text, expected) from error
    if getattr(mask, "dtype", None) != np.uint8 or mask.ndim != 2:
        raise FileFault("label map not one-channel", f"Segmentation is {mask!r:.60}", expected)
    return np.ascontiguousarray(mask)


def _unpacked_size(encoded: bytes) -> int:
    """The bytes that a file unpacks to, or more than LIMIT of them."""
    total, position = len(encoded), _HEADER
    order = ">" if encoded[_HEADER - 2 : _HEADER] == b"MI" else "<"
    while position + _TAG <= len(encoded) and total <= LIMIT:
        kind, size = struct.unpack_from(f"{order}II", encoded, position)
        position += _TAG
        if kind == _COMPRESSED:
            try:
                part = encoded[position : position + size]
                total += len(zlib.decompressobj().decompress(part, LIMIT))
            except zlib.error:
                return total  # which SciPy reports
        position += size
    return total
