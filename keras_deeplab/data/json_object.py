"""Reading a JSON file that people write or edit."""

from __future__ import annotations

import json
from pathlib import Path
from reprlib import repr as shortened
from typing import Any


def read_json_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object in UTF-8, with or without a byte order mark.

    Args:
        path: A regular file. Others are refused, as to open a named pipe may wait forever.

    Raises:
        ValueError: If it holds none. The message, on one line, begins with a verb and lacks the
            path, so that the caller can put what the file is in front of it.
    """
    if not path.is_file():
        raise ValueError("is not a regular file")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError as error:
        raise ValueError("is not readable as JSON: brackets are nested too deeply") from error
    except (ValueError, OSError) as error:
        raise ValueError(f"is not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"must hold a JSON object. Received: {shortened(content)}")
    return content
