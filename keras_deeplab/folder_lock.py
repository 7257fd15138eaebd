"""A folder that one process writes to at a time."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

logger = logging.getLogger(__name__)


class FolderLock:
    """Keeps other processes out of a folder; the system unlocks it if this process is killed.

    Windows and some network file systems have no such locks; there the folder is not locked.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.file = folder / name
        self._open: IO | None = None

    def acquire(self) -> None:
        """Makes the folder and locks it, or raises a ValueError if another process holds it."""
        folder = self.file.parent
        folder.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            return
        self._open = self.file.open("a")
        try:
            fcntl.flock(self._open, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise ValueError(
                f"{folder} is in use by another process. Wait until it has ended, or choose "
                "another folder."
            ) from None
        except OSError as error:
            message = "%s cannot be locked (%s). Do not start another run in it."
            logger.warning(message, folder, error.strerror)

    def release(self) -> None:
        """Releases the lock."""
        if self._open is not None:
            self._open.close()
            self._open = None
