"""Videos as streams of frames, read and written by FFmpeg through imageio."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from keras_deeplab.data.decoding import check_regular
from keras_deeplab.extras import require
from keras_deeplab.validation import error

FASTEST, RATE = 240, 30  # frames a second: above it a rate is the clock's, as of browsers' videos
VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")


def is_video(path: Path) -> bool:
    """Whether a path has the ending of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


@contextmanager
def open_video(path: Path) -> Iterator[tuple[Iterator[np.ndarray], float, int]]:
    """Yields the frames uint8 `(height, width, 3)` as viewers show them, their rate and number.

    Of a video of variable rate the frames are those at its mean rate, repeated or left out.
    """
    check_regular(path)
    try:
        with _imageio(path).get_reader(path, "ffmpeg") as reader:
            facts = reader.get_meta_data()
        rate = facts["fps"] if 0 < facts["fps"] <= FASTEST else RATE
        reader = _imageio(path).get_reader(path, "ffmpeg", fps=rate)
    except (OSError, RuntimeError, IndexError, ValueError) as fault:
        reason = str(fault).strip().rpartition("\n")[2]
        raise error("images", "videos that can be decoded", str(path), reason) from fault
    with reader:
        yield reader.iter_data(), rate, round(rate * facts["duration"])


@contextmanager
def video_writer(path: Path, rate: float) -> Iterator[Any]:
    """Yields a function that appends a frame to a new H.264 video.

    An odd last row or column is left out, as the codec halves the colours' sides.
    """
    with _imageio(path).get_writer(path, "ffmpeg", fps=rate, macro_block_size=2) as writer:

        def append(frame: np.ndarray) -> None:
            height, width = (side // 2 * 2 for side in frame.shape[:2])
            if not height or not width:
                rule = "videos of at least 2x2 pixels"
                raise error("images", rule, f"{frame.shape[1]}x{frame.shape[0]} pixels")
            writer.append_data(np.ascontiguousarray(frame[:height, :width]))

        yield append


def _imageio(path: Path) -> Any:
    require(f"{path}: a video", "video", "imageio", "imageio_ffmpeg")
    import imageio.v2

    return imageio.v2
