from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from keras_deeplab.weights import WeightsError, open_checkpoint
from keras_deeplab.weights.errors import reading
from keras_deeplab.weights.readers import tar

INDEX, DATA = "model.ckpt.index", "model.ckpt.data-00000-of-00001"
RANDOM = np.random.default_rng(0).bytes(300_000)
FILES = {
    f"deeplab/{DATA}": RANDOM,
    f"deeplab/{INDEX}": b"index",
    "deeplab/frozen_inference_graph.pb": b"graph",
}
BOTH = pytest.mark.parametrize("name", ["model.tar.gz", "model.tar"])


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.fixture
def packed(tmp_path: Path):
    """Writes an archive of files and ready-made members, gzipped by its name."""

    def write(
        files: dict[str, bytes], *members: tarfile.TarInfo, name: str = "model.tar.gz"
    ) -> Path:
        path = tmp_path / name
        with tarfile.open(path, "w" if name.endswith(".tar") else "w:gz") as writer:
            for member in members:
                writer.addfile(member)
            for file, content in files.items():
                member = tarfile.TarInfo(file)
                member.size = len(content)
                writer.addfile(member, io.BytesIO(content))
        return path

    return write


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "inside" / "into"
    folder.mkdir(parents=True)
    return folder


def refusal(path: Path, into: Path) -> str:
    with pytest.raises(WeightsError) as caught, reading(path):
        tar.extract_checkpoint(path, into)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def test_the_checkpoint_alone_comes_out_flat(packed, into):
    tar.extract_checkpoint(packed(FILES, link("deeplab/latest", "/etc/passwd")), into)
    contents = {file.name: file.read_bytes() for file in into.iterdir()}
    assert contents == {DATA: RANDOM, INDEX: b"index"}


def test_shards_folders_rights_and_what_macos_adds(packed, into, tmp_path):
    prefix = "./a/b/model.ckpt-30000"
    names = ["index", "data-00000-of-00002", "data-00001-of-00002"]
    files = {f"{prefix}.{name}": name.encode() for name in names}
    files |= {f"{prefix}.meta": b"3", "./a/b/._model.ckpt-30000.index": b"4", "./a/checkpoint": b""}
    folder = tarfile.TarInfo("./a/index.index")
    folder.type = tarfile.DIRTYPE
    rights = tarfile.TarInfo(INDEX)
    rights.mode = 0o4777
    tar.extract_checkpoint(packed(files, folder, rights), into)
    contents = {path.name: path.read_bytes() for path in into.iterdir()}
    expected = {f"model.ckpt-30000.{name}": name.encode() for name in names}
    assert contents == {**expected, INDEX: b""}
    (tmp_path / "plain").touch()
    assert (into / INDEX).stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    "place", ["../", "a/../../", "/", "a\\..\\", "\\", "C:\\", "C:", "stream:"]
)
def test_nothing_leaves_the_folder(packed, into, place):
    kinds = (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
    members = [link(f"{place}evil{n}.index", "/etc/passwd", kind) for n, kind in enumerate(kinds)]
    tar.extract_checkpoint(packed(FILES, *members), into)
    # At most a file of that name beside the others; links and devices are not made.
    assert {path.name for path in into.iterdir()} - {"evil0.index"} == {INDEX, DATA}
    assert all(path.is_file() and not path.is_symlink() for path in into.iterdir())
    assert list(into.parent.iterdir()) == [into]


def test_a_file_twice_is_refused(packed, into):
    path = packed({INDEX: b"1", DATA: b"2"}, tarfile.TarInfo(f"another/{INDEX}"))
    assert "File exists" in refusal(path, into)


@pytest.mark.parametrize(
    "files, reason",
    [
        (["a/frozen_inference_graph.pb", "a/.index"], "holds no checkpoint"),
        ([DATA], "holds no checkpoint"),
        ([INDEX], "its index is cut off"),
        ([INDEX, DATA, "model.ckpt-7.index"], r"several checkpoints \(model.ckpt, model.ckpt-7\)"),
    ],
)
def test_what_is_not_one_whole_checkpoint_is_refused(packed, files, reason):
    path = packed(dict.fromkeys(files, b"x"))
    with pytest.raises(WeightsError, match=reason) as caught:
        open_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")


@BOTH
def test_a_cut_or_wrong_archive_is_refused(packed, into, name):
    path = packed(FILES, name=name)
    content = path.read_bytes()
    wrong = [content[: int(len(content) * part)] for part in (0.02, 0.3, 0.9)]
    if name.endswith(".gz"):
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        wrong += [flipped, content[:-1], content[:-8], gzip.compress(b"no archive")]
    for body in wrong:
        path.write_bytes(body)
        assert "it cannot be read: " in refusal(path, into)
        for file in into.iterdir():
            file.unlink()


def test_sizes_are_limited_before_anything_is_unpacked(packed, into, tmp_path, monkeypatch):
    assert tar.MAX_BYTES == 8 * 2**30
    path = tmp_path / "huge.tar.gz"
    member = tarfile.TarInfo(DATA)
    member.size = tar.MAX_BYTES + 1
    path.write_bytes(gzip.compress(member.tobuf(tarfile.GNU_FORMAT)))
    assert f"it unpacks to {member.size} bytes" in refusal(path, into)
    monkeypatch.setattr(tar, "MAX_BYTES", len(RANDOM))
    assert f"to {len(RANDOM) + 5} bytes; at most {len(RANDOM)} are" in refusal(packed(FILES), into)
    # Also endless bytes behind the last member.
    path.write_bytes(gzip.compress(tarfile.TarInfo("a").tobuf() + bytes(3_000_000)))
    assert f"bytes; at most {len(RANDOM)} are unpacked" in refusal(path, into)


@BOTH
def test_a_bomb_is_refused_before_it_is_unpacked(packed, into, name, monkeypatch):
    monkeypatch.setattr(tar, "_ALWAYS_ALLOWED", 1_000_000)
    path = packed({DATA: bytes(3_000_000), INDEX: b"1"}, name=name)
    if name.endswith(".gz"):
        assert "it unpacks to 3000000 bytes; at most 1000000 are" in refusal(path, into)
        assert not list(into.iterdir())
    else:  # as long as what it holds
        tar.extract_checkpoint(path, into)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_headers_of_any_size_are_not_read_in_one(packed, into, kind):
    header = tarfile.TarInfo("a")
    header.type, header.size = kind, 7 << 30
    path = packed(FILES)
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + content))
    assert f"a header of {7 << 30} bytes" in refusal(path, into)


def test_a_negative_size_is_refused(into, tmp_path):
    header = bytearray(tarfile.TarInfo("a").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + b"\xfc\x00"  # -1024, in the GNU form
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = tmp_path / "model.tar"
    path.write_bytes(bytes(header) + bytes(10240))
    assert "a member of -1024 bytes" in refusal(path, into)
