from __future__ import annotations

import errno
import hashlib
import os
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from local_server import serving

from keras_deeplab.weights import download
from keras_deeplab.weights.errors import WeightsError

BODY = bytes(range(256)) * 4096
MD5 = f"md5:{hashlib.md5(BODY).hexdigest()}"
SHA256 = f"sha256:{hashlib.sha256(BODY).hexdigest()}"


class Handler(BaseHTTPRequestHandler):
    """Each path is a way in which a server may behave."""

    protocol_version = "HTTP/1.1"
    requests: Counter[str] = Counter()
    body = BODY
    goes_on = threading.Event()

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
        getattr(self, f"answer_{self.path.strip('/').partition('.')[0]}")()

    def answer_whole(self) -> None:
        self.begin(Content_Length=str(len(self.body)))
        self.wfile.write(self.body)

    def answer_cut(self) -> None:
        self.begin(Content_Length=str(len(BODY)))
        self.wfile.write(BODY[:-1000])

    def answer_reset(self) -> None:
        self.begin(Content_Length=str(len(BODY)))
        self.wfile.write(BODY[:1000])
        self.wfile.flush()
        # Closed with nothing lingering, the connection is reset rather than ended.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    def answer_stalled(self) -> None:
        self.begin(Content_Length=str(len(BODY)))
        self.wfile.write(BODY[:1000])
        self.wfile.flush()
        self.goes_on.wait(20)

    def answer_silent(self) -> None:
        self.goes_on.wait(20)
        self.close_connection = True

    def answer_hung_up(self) -> None:
        self.close_connection = True

    def answer_missing(self) -> None:
        self.send_error(404)

    def answer_broken(self) -> None:
        self.send_error(500)

    def answer_nothing(self) -> None:
        self.begin(204)

    def answer_empty(self) -> None:
        self.begin(Content_Length="0")

    def answer_chunked(self) -> None:
        self.begin(Transfer_Encoding="chunked")
        for start in range(0, len(BODY), 100_000):
            piece = BODY[start : start + 100_000]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def answer_chunked_cut(self) -> None:
        self.begin(Transfer_Encoding="chunked")
        self.wfile.write(b"%x\r\n%s" % (len(BODY), BODY[:-1000]))

    def answer_no_length(self) -> None:
        self.begin(Connection="close")
        self.wfile.write(BODY)

    def answer_moved(self) -> None:
        self.begin(302, Location="/whole", Content_Length="0")

    def answer_to_file(self) -> None:
        self.begin(302, Location="file:///etc/passwd", Content_Length="0")

    def answer_to_plain(self) -> None:
        self.begin(302, Location="http://127.0.0.1/", Content_Length="0")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    """The address of a server on this machine."""
    monkeypatch.setenv("no_proxy", "*")
    Handler.requests.clear()
    Handler.goes_on = threading.Event()
    monkeypatch.setattr(Handler, "body", BODY)
    with serving(Handler) as address:
        yield address
        Handler.goes_on.set()


@pytest.fixture
def pool(server):
    with ThreadPoolExecutor(1) as running:
        yield running
        Handler.goes_on.set()


def files(cache: Path) -> set[str]:
    folder = cache / "keras_deeplab"
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


@pytest.mark.parametrize("file_hash", [MD5, MD5.upper(), SHA256, SHA256[:15], None])
def test_a_file_is_downloaded_once(server, tmp_path, file_hash):
    if file_hash is not None:
        file_hash = file_hash.replace("MD5", "md5")
    path = download.fetch(f"{server}/whole", file_hash, "weights.bin", tmp_path)
    assert path == tmp_path / "keras_deeplab" / "weights.bin"
    assert path.read_bytes() == BODY
    assert download.fetch(f"{server}/whole", file_hash, "weights.bin", tmp_path) == path
    assert Handler.requests["/whole"] == 1
    sidecar = {".weights.bin.sha256"} if file_hash is None else set()
    assert files(tmp_path) == {"weights.bin"} | sidecar


@pytest.mark.parametrize("way", ["chunked", "moved"])
@pytest.mark.parametrize("file_hash", [MD5, None])
def test_other_ways_to_send_a_whole_file(server, tmp_path, way, file_hash):
    path = download.fetch(f"{server}/{way}", file_hash, "weights.bin", tmp_path)
    assert path.read_bytes() == BODY


def test_a_length_is_not_needed_beside_a_hash(server, tmp_path):
    assert download.fetch(f"{server}/no_length", MD5, "a", tmp_path).read_bytes() == BODY


@pytest.mark.parametrize(
    "way, file_hash, reason",
    [
        ("cut", MD5, f"{len(BODY) - 1000} bytes of {len(BODY)} arrived"),
        ("cut", None, f"{len(BODY) - 1000} bytes of {len(BODY)} arrived"),
        ("reset", None, "the connection failed"),
        ("chunked_cut", None, "the connection failed"),
        ("hung_up", None, "the connection failed"),
        ("stalled", None, "silent for 0.2 seconds"),
        ("silent", None, "silent for 0.2 seconds"),
        ("missing", None, "HTTP 404"),
        ("broken", None, "HTTP 500"),
        ("nothing", None, "HTTP 204"),
        ("empty", None, "0 bytes of 0 arrived"),
        ("no_length", None, "neither a hash nor a length"),
        ("to_file", None, "HTTP 302"),
        ("whole", "md5:" + 32 * "0", MD5[4:]),
        ("whole", "sha256:" + 64 * "0", SHA256[7:]),
        ("whole", "sha256:" + 8 * "0", SHA256[7:]),
    ],
)
def test_a_failed_download_is_one_clear_error(
    server, tmp_path, monkeypatch, way, file_hash, reason
):
    monkeypatch.setattr(download, "READ_TIMEOUT", 0.2)
    url = f"{server}/{way}"
    with pytest.raises(WeightsError) as caught:
        download.fetch(url, file_hash, "weights.bin", tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{url}: weights.bin cannot be downloaded")
    assert reason in message
    assert "download it by hand from this address and pass the path" in message
    assert files(tmp_path) == set()


def test_a_failure_leaves_the_cached_file_unused_and_no_other(server, tmp_path, logs):
    path = download.fetch(f"{server}/whole", MD5, "a", tmp_path)
    path.write_bytes(BODY[:-1])
    with pytest.raises(WeightsError, match="arrived"):
        download.fetch(f"{server}/cut", MD5, "a", tmp_path)
    assert files(tmp_path) == {"a"}
    assert f"{path} does not match its hash; downloading it again" in logs.text


@pytest.mark.parametrize("file_hash", [MD5, SHA256[:15], None])
def test_a_damaged_file_in_the_cache_is_replaced(server, tmp_path, logs, file_hash):
    path = download.fetch(f"{server}/whole", file_hash, "a", tmp_path)
    assert "again" not in logs.text
    path.write_bytes(BODY[:1000] + b"!" + BODY[1001:])
    download.fetch(f"{server}/whole", file_hash, "a", tmp_path)
    assert path.read_bytes() == BODY
    assert "downloading it again" in logs.text
    assert Handler.requests["/whole"] == 2


@pytest.mark.parametrize("content", [None, "", "nonsense", "\xff"])
def test_a_file_that_nothing_vouches_for_is_replaced(server, tmp_path, content):
    path = download.fetch(f"{server}/whole", None, "a", tmp_path)
    sidecar = path.with_name(".a.sha256")
    sidecar.unlink()
    if content is not None:
        sidecar.write_bytes(content.encode("latin-1"))
    path.write_bytes(b"half")
    assert download.fetch(f"{server}/whole", None, "a", tmp_path).read_bytes() == BODY
    download.fetch(f"{server}/whole", None, "a", tmp_path)
    assert Handler.requests["/whole"] == 2


def test_a_server_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/a"
        with pytest.raises(WeightsError, match=r"no connection \(.*refused"):
            download.fetch(url, None, "a", tmp_path)
    with pytest.raises(WeightsError, match="no connection"):
        download.fetch("http://no-such-host.invalid/a", None, "a", tmp_path)
    assert files(tmp_path) == set()


def test_a_connection_that_is_not_accepted_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    limits = []

    def silent(address, timeout, *arguments):
        limits.append(timeout)
        raise TimeoutError("timed out")

    monkeypatch.setattr(download, "CONNECT_TIMEOUT", 0.3)
    monkeypatch.setattr(socket, "create_connection", silent)
    for scheme in ("http", "https"):
        with pytest.raises(WeightsError, match=r"no connection \(timed out\)"):
            download.fetch(f"{scheme}://127.0.0.1/a", None, "a", tmp_path)
    assert limits == [0.3, 0.3]


def test_a_server_without_a_certificate_is_refused(server, tmp_path):
    with pytest.raises(WeightsError, match="no connection"):
        download.fetch(server.replace("http:", "https:") + "/whole", MD5, "a", tmp_path)


def test_https_is_never_left_for_http(server, tmp_path, monkeypatch):
    opened = download._opened
    monkeypatch.setattr(download, "_opened", lambda url: opened(url.replace("https:", "http:")))
    with pytest.raises(WeightsError, match="less secure"):
        download.fetch(server.replace("http:", "https:") + "/whole", MD5, "a", tmp_path)


@pytest.mark.parametrize(
    "url", ["", "file:///etc/passwd", "ftp://host/a", "/etc/passwd", "http:///a", "http://[::1/a"]
)
def test_other_addresses_are_refused(tmp_path, url):
    with pytest.raises(WeightsError, match="must start with http:// or https://"):
        download.fetch(url, MD5, "a", tmp_path)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:port/a", "http://127.0.0.1/\u00e4", "http://a b/"]
)
def test_malformed_addresses_are_one_clear_error(tmp_path, url):
    with pytest.raises(WeightsError, match="a cannot be downloaded"):
        download.fetch(url, MD5, "a", tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            ".",
            "..",
            "../a",
            "/a",
            "a/b",
            "a\\b",
            "..\\a",
            ".a",
            "a\0",
            "a\n",
            "C:a",
            "~",
            201 * "a",
        )
    ],
)
def test_names_never_leave_the_cache(server, tmp_path, name):
    with pytest.raises(ValueError, match="`name` must be a file name"):
        download.fetch(f"{server}/whole", MD5, name, tmp_path)
    assert not any(tmp_path.rglob("*"))
    assert not Handler.requests


@pytest.mark.parametrize("file_hash", ["", "md5:12", "md5:" + 32 * "g", SHA256[:14], SHA256[7:]])
def test_malformed_hashes_are_refused(server, tmp_path, file_hash):
    with pytest.raises(ValueError, match="`file_hash` must be"):
        download.fetch(f"{server}/whole", file_hash, "a", tmp_path)
    assert not Handler.requests


def test_keras_home_is_the_cache(server, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    path = download.fetch(f"{server}/whole", MD5, "a")
    assert path == tmp_path / "keras" / "keras_deeplab" / "a"
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    path = download.fetch(f"{server}/whole", MD5, "a")
    assert path == tmp_path / ".keras" / "keras_deeplab" / "a"


def test_a_cache_that_cannot_be(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match=r"cannot be written or read.*KERAS_HOME") as caught:
        download.fetch(f"{server}/whole", MD5, "a", tmp_path / "file")
    assert f"{server}/whole: {tmp_path / 'file' / 'keras_deeplab' / 'a'}" in str(caught.value)
    assert not Handler.requests


@pytest.mark.parametrize("file_hash", [MD5, None])
def test_a_folder_in_the_place_of_the_file(server, tmp_path, file_hash):
    (tmp_path / "keras_deeplab" / "a").mkdir(parents=True)
    with pytest.raises(WeightsError, match="cannot be written or read"):
        download.fetch(f"{server}/whole", file_hash, "a", tmp_path)
    assert files(tmp_path) - {".a.sha256"} == {"a"}


@pytest.mark.parametrize("file_hash", [MD5, None])
@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_full_disk(server, tmp_path, monkeypatch, call, file_hash):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(WeightsError, match="No space left on device.*Make room"):
        download.fetch(f"{server}/whole", file_hash, "a", tmp_path)
    assert files(tmp_path) == set()


@pytest.mark.parametrize("file_hash", [MD5, None])
def test_an_interruption_leaves_nothing(server, tmp_path, monkeypatch, file_hash):
    def interrupted(self, *arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr("keras.utils.Progbar.update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        download.fetch(f"{server}/whole", file_hash, "a", tmp_path)
    assert files(tmp_path) == set()


def test_progress_is_shown_in_bytes(server, tmp_path, capsys, logs):
    download.fetch(f"{server}/whole", MD5, "a", tmp_path)
    assert f"Downloading {server}/whole" in logs.text
    assert f"{len(BODY)}/{len(BODY)}" in capsys.readouterr().out


def test_nothing_is_under_the_final_name_before_the_end(server, tmp_path, monkeypatch, pool):
    monkeypatch.setattr(download, "READ_TIMEOUT", 20)
    call = pool.submit(download.fetch, f"{server}/stalled", MD5, "a", tmp_path)
    while not files(tmp_path) and not call.done():
        time.sleep(0.01)
    assert files(tmp_path)
    assert all(name.startswith(".a.") for name in files(tmp_path))
    Handler.goes_on.set()
    assert isinstance(call.exception(20), WeightsError)
    assert files(tmp_path) == set()


@pytest.mark.parametrize("file_hash", [MD5, None])
def test_downloads_at_once_do_not_disturb_each_other(server, tmp_path, file_hash):
    together = threading.Barrier(6)

    def fetched(_: int) -> bytes:
        together.wait(20)
        return download.fetch(f"{server}/whole", file_hash, "a", tmp_path).read_bytes()

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(fetched, range(6))) == {BODY}
    requests = Handler.requests["/whole"]
    assert requests > 1
    sidecar = {".a.sha256"} if file_hash is None else set()
    assert files(tmp_path) == {"a"} | sidecar
    download.fetch(f"{server}/whole", file_hash, "a", tmp_path)
    assert Handler.requests["/whole"] == requests
