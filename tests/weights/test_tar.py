from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from keras_deeplab.weights.errors import WeightsError
from keras_deeplab.weights.readers import tar, tensorflow

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
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


def refusal(path: Path, into: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        tar.extract_checkpoint(path, into)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


@pytest.mark.parametrize("name", ["model.tar", "renamed.h5"])
def test_the_checkpoint_alone_comes_out_flat(packed, into, name):
    path = packed(FILES, link("deeplab/latest", "/etc/passwd"), name=name)
    assert tar.is_archive(path)
    tar.extract_checkpoint(path, into)
    contents = {file.name: file.read_bytes() for file in into.iterdir()}
    assert contents == {DATA: RANDOM, INDEX: b"index"}


def test_shards_folders_and_what_macos_adds(packed, into):
    prefix = "./a/b/model.ckpt-30000"
    names = ["index", "data-00000-of-00002", "data-00001-of-00002"]
    files = {f"{prefix}.{name}": name.encode() for name in names}
    files |= {f"{prefix}.meta": b"3", "./a/b/._model.ckpt-30000.index": b"4", "./a/checkpoint": b""}
    folder = tarfile.TarInfo("./a/index.index")
    folder.type = tarfile.DIRTYPE
    tar.extract_checkpoint(packed(files, folder), into)
    contents = {path.name: path.read_bytes() for path in into.iterdir()}
    assert contents == {f"model.ckpt-30000.{name}": name.encode() for name in names}


def test_rights_of_the_archive_are_not_taken_over(packed, into, tmp_path):
    member = tarfile.TarInfo(INDEX)
    member.mode = 0o4777
    tar.extract_checkpoint(packed({DATA: b""}, member), into)
    (tmp_path / "plain").touch()
    assert (into / INDEX).stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    "member",
    [
        *("../evil", "a/../../evil", "/evil", "..", "a\\..\\evil", "\\evil", "C:\\evil", "C:evil"),
        *("deeplab/../evil", "../model.ckpt.index"),
    ],
)
def test_paths_that_lead_out_are_refused_anywhere(packed, into, member):
    for kind in (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE):
        assert f"unsafe member {member!r}" in refusal(packed(FILES, link(member, "x", kind)), into)
    assert not list(into.parent.rglob("evil"))
    assert not list(into.iterdir())


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_among_the_needed_are_refused(packed, into, kind):
    for name, other in ((INDEX, DATA), (DATA, INDEX)):
        message = refusal(packed({other: b"1"}, link(name, "/etc/passwd", kind)), into)
        assert f"member {name!r} must be a file, not a link" in message


@pytest.mark.parametrize("again", [INDEX, f"another/{INDEX}"])
def test_a_file_twice_is_refused(packed, into, again):
    path = packed({INDEX: b"1", DATA: b"2"}, tarfile.TarInfo(again))
    assert f"holds several files {INDEX!r}" in refusal(path, into)


@pytest.mark.parametrize(
    "files, reason",
    [
        (["a"], "holds no TensorFlow checkpoint"),
        (["a/frozen_inference_graph.pb", "a/.index"], "holds no TensorFlow checkpoint"),
        ([DATA], "holds no TensorFlow checkpoint"),
        ([INDEX], "it is damaged or incomplete"),
        ([INDEX, DATA, "model.ckpt-7.index"], r"several checkpoints \(model.ckpt, model.ckpt-7\)"),
    ],
)
def test_what_is_not_one_whole_checkpoint_is_refused(packed, files, reason):
    path = packed(dict.fromkeys(files, b"x"))
    with pytest.raises(WeightsError, match=reason) as caught:
        tensorflow.read_archive(path)
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
        assert "damaged or cut off" in refusal(path, into)
        for file in into.iterdir():
            file.unlink()


def test_sizes_are_limited_before_anything_is_unpacked(packed, into, monkeypatch):
    assert tar.MAX_BYTES == 8 * 2**30
    path = into.parent / "huge.tar.gz"
    member = tarfile.TarInfo(DATA)
    member.size = tar.MAX_BYTES + 1
    path.write_bytes(gzip.compress(member.tobuf(tarfile.GNU_FORMAT)))
    assert f"it unpacks to {member.size} bytes" in refusal(path, into)
    monkeypatch.setattr(tar, "MAX_BYTES", len(RANDOM))
    assert f"to {len(RANDOM) + 5} bytes; at most {len(RANDOM)} are" in refusal(packed(FILES), into)


@BOTH
def test_a_bomb_is_refused_before_it_is_unpacked(packed, into, name, monkeypatch):
    monkeypatch.setattr(tar, "_ALWAYS_ALLOWED", 1_000_000)
    path = packed({DATA: bytes(3_000_000), INDEX: b"1"}, name=name)
    if name.endswith(".gz"):
        assert "it unpacks to 3000000 bytes; at most 1000000 are" in refusal(path, into)
        assert not list(into.iterdir())
    else:  # as long as what it holds
        tar.extract_checkpoint(path, into)


@BOTH
@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_headers_of_any_size_are_not_read_in_one(packed, into, kind, name):
    header = tarfile.TarInfo("a")
    header.type, header.size = kind, 7 << 30
    path = packed(FILES, name=name)
    is_packed = name.endswith(".gz")
    content = gzip.decompress(path.read_bytes()) if is_packed else path.read_bytes()
    content = header.tobuf(tarfile.GNU_FORMAT) + content
    path.write_bytes(gzip.compress(content) if is_packed else content)
    assert f"a header of {7 << 30} bytes" in refusal(path, into)


def test_a_negative_size_is_refused(into, tmp_path):
    header = bytearray(tarfile.TarInfo("a").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + b"\xfc\x00"  # -1024, in the GNU form
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = tmp_path / "model.tar"
    path.write_bytes(bytes(header) + bytes(10240))
    assert "of -1024 bytes" in refusal(path, into)


def test_endless_bytes_behind_the_last_member_are_refused(into, tmp_path, monkeypatch):
    member = tarfile.TarInfo("a").tobuf()
    path = tmp_path / "model.tar.gz"
    path.write_bytes(gzip.compress(member + bytes(30_000_000)))
    monkeypatch.setattr(tar, "MAX_BYTES", 10_000_000)
    assert "bytes; at most 10000000 are unpacked" in refusal(path, into)


def test_other_files_are_no_archives(tmp_path):
    (tmp_path / "short.tar").write_bytes(b"\x1f")
    (tmp_path / "text.tar.gz").write_bytes(b"text" * 1000)
    (tmp_path / "empty.tar.gz").touch()
    for name in ("short.tar", "text.tar.gz", "empty.tar.gz"):
        assert not tar.is_archive(tmp_path / name)
