from __future__ import annotations

import hashlib
import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from local_server import serving

from keras_deeplab.weights import published
from keras_deeplab.weights.errors import WeightsError

BODY = bytes(range(256)) * 1024
MD5 = f"md5:{hashlib.md5(BODY).hexdigest()}"
SHA256 = f"sha256:{hashlib.sha256(BODY).hexdigest()}"


class Handler(BaseHTTPRequestHandler):
    """Each path is a way in which a server may behave."""

    protocol_version = "HTTP/1.1"
    requests: Counter[str] = Counter()
    second = threading.Event()

    def log_message(self, *arguments) -> None:
        """Not on the screen."""

    def begin(self, code: int = 200, **headers: str) -> None:
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.close_connection = True

    def do_GET(self) -> None:
        Handler.requests[self.path] += 1
        getattr(self, f"answer_{self.path.strip('/')}")()

    def answer_whole(self) -> None:
        self.begin(Content_Length=str(len(BODY)))
        self.wfile.write(BODY)

    def answer_to_several(self) -> None:
        """Begins once there is a second request."""
        if Handler.requests[self.path] > 1:
            Handler.second.set()
        assert Handler.second.wait(20)
        self.answer_whole()

    def answer_cut(self) -> None:
        self.begin(Content_Length=str(len(BODY)))
        self.wfile.write(BODY[:-1000])

    def answer_reset(self) -> None:
        self.begin(Content_Length=str(len(BODY)))
        self.wfile.write(BODY[:1000])
        self.wfile.flush()
        # Closed with nothing lingering, the connection is reset rather than ended.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    def answer_missing(self) -> None:
        self.send_error(404)

    def answer_empty(self) -> None:
        self.begin(Content_Length="0")

    def answer_moved(self) -> None:
        self.begin(302, Location="/whole", Content_Length="0")

    def answer_to_file(self) -> None:
        self.begin(302, Location="file:///etc/passwd", Content_Length="0")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The address of a server on this machine; the cache is this test's own."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    Handler.requests.clear()
    Handler.second.clear()
    with serving(Handler) as address:
        yield address


def files(cache: Path) -> set[str]:
    folder = cache / "keras_deeplab"
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


@pytest.mark.parametrize("file_hash", [MD5, SHA256[:15], None])
def test_a_file_is_downloaded_once(server, tmp_path, file_hash):
    for _ in range(2):
        path = published.fetch(f"{server}/moved", file_hash, "weights.bin")
        assert path == tmp_path / "keras_deeplab" / "weights.bin"
        assert path.read_bytes() == BODY
    assert Handler.requests["/whole"] == 1
    assert files(tmp_path) == {"weights.bin"}


@pytest.mark.parametrize(
    "way, file_hash, reason",
    [
        ("cut", MD5, r"retrieval incomplete|IncompleteRead"),
        ("reset", None, "Connection reset"),
        ("missing", None, "404"),
        ("empty", None, "it is empty, or"),
        ("to_file", None, "302"),
        ("whole", "md5:" + 32 * "0", "or its hash is not md5:000"),
    ],
)
def test_a_failed_download_is_one_clear_error(server, tmp_path, way, file_hash, reason):
    url = f"{server}/{way}"
    with pytest.raises(WeightsError, match=f"cannot be downloaded: .*({reason})") as caught:
        published.fetch(url, file_hash, "weights.bin")
    assert str(caught.value).startswith(f"{url}: ")
    assert "or download it and pass its path" in str(caught.value)
    assert files(tmp_path) == set()


def test_a_file_with_another_hash_is_replaced(server, tmp_path, logs):
    path = published.fetch(f"{server}/whole", MD5, "a")
    path.write_bytes(BODY[:-1])
    with pytest.raises(WeightsError):
        published.fetch(f"{server}/cut", MD5, "a")
    assert path.read_bytes() == BODY[:-1]
    assert published.fetch(f"{server}/whole", MD5, "a").read_bytes() == BODY
    assert f"{path} does not match its hash; downloading it again" in logs.text
    assert Handler.requests["/whole"] == 2
    assert files(tmp_path) == {"a"}


def test_where_the_cache_is(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for unset in (partial(monkeypatch.setenv, value=""), monkeypatch.delenv):
        unset("KERAS_HOME")
        path = published.fetch(f"{server}/whole", MD5, "a")
        assert path == tmp_path / ".keras" / "keras_deeplab" / "a"
    monkeypatch.setenv("KERAS_HOME", str(path))  # which cannot be a folder
    with pytest.raises(WeightsError, match="cannot be downloaded: .* set KERAS_HOME .*more space"):
        published.fetch(f"{server}/whole", MD5, "b")


def test_an_interruption_leaves_nothing(server, tmp_path, monkeypatch):
    def interrupted(self, *arguments, **keywords):
        assert all(name.startswith(".download-") for name in files(tmp_path))
        raise KeyboardInterrupt

    monkeypatch.setattr("keras.src.utils.file_utils.Progbar.update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        published.fetch(f"{server}/whole", MD5, "a")
    assert files(tmp_path) == set()


def test_downloads_at_once_do_not_disturb_each_other(server, tmp_path):
    together = threading.Barrier(6)

    def fetched(_: int) -> bytes:
        together.wait(20)
        return published.fetch(f"{server}/to_several", MD5, "a").read_bytes()

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(fetched, range(6))) == {BODY}
    assert Handler.requests["/to_several"] > 1
    assert files(tmp_path) == {"a"}
