"""Files from the web: downloaded once, checked each time, never half there."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import re
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import keras

from keras_deeplab.weights.errors import WeightsError

# Seconds after which a server that cannot be reached, or that falls silent, is given up.
CONNECT_TIMEOUT = 20.0
READ_TIMEOUT = 60.0

logger = logging.getLogger(__name__)

SUBFOLDER = "keras_deeplab"
_CHUNK = 1 << 18
# Neither a path nor hidden: hidden names are those of sidecars and of what is being written.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_HASH = re.compile(r"(md5):([0-9a-f]{32})|(sha256):([0-9a-f]{64}|[0-9a-f]{8})")


class _Hash(NamedTuple):
    """What a file's digest starts with; no digits where nothing is known of it."""

    algorithm: str
    digits: str

    def fits(self, digest: str) -> bool:
        return digest.startswith(self.digits)


def fetch(url: str, file_hash: str | None, name: str, cache_dir: Path | None = None) -> Path:
    """Returns a file of the web from the cache, after downloading it where it is not there yet.

    The file is written aside and takes its name when its hash is right, so that several processes
    may fetch it at once and an interruption leaves nothing. (`keras.utils.get_file` writes under
    the final name, waits for a silent server for ever, and turns to /tmp if it may not write.)

    A file in the cache is checked at each call, and downloaded again, which is said in a printed
    line, if its hash no longer fits.

    Args:
        url: Address, http or https.
        file_hash: `"md5:"` and 32 digits, `"sha256:"` and 64 digits or the first 8 of them (as
            torchvision has them in its file names), or `None` where the publisher gives none: the
            length that the server announces must arrive then, and the SHA-256 of that download is
            kept beside the file.
        name: Of the file in the cache, without a folder.
        cache_dir: Folder in place of Keras' own, which is `$KERAS_HOME` or `~/.keras`. The file is
            in its subfolder `keras_deeplab`.

    Returns:
        The file.

    Raises:
        ValueError: If an argument is malformed.
        WeightsError: If the file cannot be had; the error says why, and what to do.
    """
    expected = _checked_hash(file_hash)
    target = _checked_target(name, cache_dir)
    _check_address(url)
    try:
        if target.is_file():
            if _is_intact(target, expected):
                return target
            logger.warning("%s does not match its hash; downloading it again from %s", target, url)
        target.parent.mkdir(parents=True, exist_ok=True)
        _download(url, expected, target)
    except OSError as error:
        raise WeightsError(
            url,
            f"{target} cannot be written or read: {error}. Make room or rights for it, set "
            "KERAS_HOME to another folder, or download it by hand from this address and pass the "
            "path.",
        ) from error
    return target


def _download(url: str, expected: _Hash | None, target: Path) -> None:
    """Writes a checked download to `target`; OSErrors are those of the disk."""
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    sidecar_aside = aside.with_name(f"{aside.name}.sha256")
    digest = _digest(expected.algorithm if expected else "sha256")
    try:
        with aside.open("xb") as file:
            for chunk in _body(url, target, known_hash=expected is not None):
                file.write(chunk)
                digest.update(chunk)
            file.flush()
            os.fsync(file.fileno())
        if expected is None:
            sidecar_aside.write_text(digest.hexdigest() + "\n")
            os.replace(sidecar_aside, _sidecar(target))
        elif not expected.fits(digest.hexdigest()):
            reason = (
                f"its {expected.algorithm} is {digest.hexdigest()} and should begin with "
                f"{expected.digits}: it is damaged, or another file than was published"
            )
            raise _failure(url, target, reason)
        os.replace(aside, target)
    finally:
        for path in (aside, sidecar_aside):
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _body(url: str, target: Path, *, known_hash: bool) -> Iterator[bytes]:
    """The pieces of what a server sends, with a progress bar; it is complete, or an error."""
    logger.info("Downloading %s", url)
    try:
        with _opened(url) as response:
            total, received = response.length, 0
            _check_answer(url, target, response, known_hash)
            progress = keras.utils.Progbar(total, unit_name="byte")
            while chunk := response.read(_CHUNK):
                received += len(chunk)
                yield chunk
                progress.update(received)
    except urllib.error.HTTPError as error:
        reason = f"the server answers HTTP {error.code} {error.reason}"
        raise _failure(url, target, reason) from error
    except TimeoutError as error:
        reason = f"the server is silent for {READ_TIMEOUT:g} seconds"
        raise _failure(url, target, reason) from error
    except urllib.error.URLError as error:
        raise _failure(url, target, f"there is no connection ({error.reason})") from error
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        reason = f"the connection failed ({type(error).__name__}: {error})"
        raise _failure(url, target, reason) from error
    if received == 0 or (total is not None and received != total):
        raise _failure(url, target, f"{received} bytes of {total or 0} arrived")


def _check_answer(
    url: str, target: Path, response: http.client.HTTPResponse, known_hash: bool
) -> None:
    """Refuses an answer that is no file, or of which one could not say whether it is whole."""
    if urlsplit(response.url).scheme not in ("https", urlsplit(url).scheme):
        raise _failure(url, target, f"the server leads to {response.url}, which is less secure")
    if response.status != 200:
        raise _failure(url, target, f"the server answers HTTP {response.status}")
    if not known_hash and response.length is None and not response.chunked:
        reason = "there is neither a hash nor a length to tell a whole file from a cut one"
        raise _failure(url, target, reason)


class _Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(READ_TIMEOUT)


class _SecureConnection(http.client.HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(READ_TIMEOUT)


class _Handler(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, request)


class _SecureHandler(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_SecureConnection, request)


def _opened(url: str) -> http.client.HTTPResponse:
    # urllib knows one time limit; a connection takes the one for reading once it is made.
    opener = urllib.request.build_opener(_Handler, _SecureHandler)
    # Some hosts refuse Python's own name.
    request = urllib.request.Request(url, headers={"User-Agent": SUBFOLDER})
    return opener.open(request, timeout=CONNECT_TIMEOUT)


def _is_intact(target: Path, expected: _Hash | None) -> bool:
    """Whether a file in the cache is what was once downloaded."""
    if expected is None:
        sidecar = _sidecar(target)
        if not sidecar.is_file():
            return False
        expected = _Hash("sha256", sidecar.read_text(errors="replace").strip())
        if len(expected.digits) != 64:
            return False
    with target.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: _digest(expected.algorithm))
    return expected.fits(digest.hexdigest())


def _digest(algorithm: str) -> hashlib._Hash:
    # It tells damage, not forgery; Pythons that forbid MD5 for secrets allow that.
    return hashlib.new(algorithm, usedforsecurity=False)


def _sidecar(target: Path) -> Path:
    return target.with_name(f".{target.name}.sha256")


def _failure(url: str, target: Path, reason: str) -> WeightsError:
    return WeightsError(
        url,
        f"{target.name} cannot be downloaded: {reason}. Nothing was kept. Try again later, or "
        "download it by hand from this address and pass the path.",
    )


def _checked_hash(file_hash: str | None) -> _Hash | None:
    if file_hash is None:
        return None
    match = _HASH.fullmatch(file_hash.lower())
    if match is None:
        raise ValueError(
            "`file_hash` must be 'md5:' and 32 hexadecimal digits, 'sha256:' and 64 or the first "
            f"8 of them, or None, received {file_hash!r}."
        )
    return _Hash(*(group for group in match.groups() if group is not None))


def _checked_target(name: str, cache_dir: Path | None) -> Path:
    if not _NAME.fullmatch(name):
        raise ValueError(
            "`name` must be a file name of letters, digits, '_', '-' and '.', not starting with a "
            f"'.', without a folder, received {name!r}."
        )
    if cache_dir is None:
        cache_dir = Path(os.environ.get("KERAS_HOME") or "~/.keras")
    return Path(cache_dir).expanduser() / SUBFOLDER / name


def _check_address(url: str) -> None:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:  # malformed IPv6
        valid = False
    if not valid:
        raise WeightsError(url, "the address must start with http:// or https:// and a host")
