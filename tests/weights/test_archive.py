from __future__ import annotations

import errno
import gzip
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from keras_deeplab.weights import archive
from keras_deeplab.weights.errors import WeightsError

INDEX, DATA = "model.ckpt.index", "model.ckpt.data-00000-of-00001"
RANDOM = np.random.default_rng(0).bytes(300_000)
FILES = {
    f"deeplab/{DATA}": RANDOM,
    f"deeplab/{INDEX}": b"index",
    "deeplab/frozen_inference_graph.pb": b"graph",
}


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
    """A folder that holds a file already."""
    folder = tmp_path / "into"
    folder.mkdir()
    (folder / "other").touch()
    return folder


def refusal(path: Path, into: Path) -> str:
    """The error's message, after a look at what it left behind."""
    with pytest.raises(WeightsError) as caught:
        archive.extract_checkpoint(path, into)
    assert str(caught.value).startswith(f"{path}: ")
    assert os.listdir(into) == ["other"]
    return str(caught.value)


@pytest.mark.parametrize("name", ["model.tar.gz", "model.tgz", "model.tar", "renamed.gz"])
def test_the_checkpoint_alone_comes_out_flat(packed, into, name):
    path = packed(FILES, name=name)
    prefix = archive.extract_checkpoint(path, into)
    assert prefix == into / "model.ckpt"
    assert sorted(os.listdir(into)) == [DATA, INDEX, "other"]
    assert (into / DATA).read_bytes() == RANDOM
    assert (into / INDEX).read_bytes() == b"index"


def test_numbered_checkpoints_with_shards_folders_and_what_macos_adds(packed, tmp_path):
    prefix = "./a/b/model.ckpt-30000"
    files = {
        f"{prefix}.index": b"0",
        f"{prefix}.data-00000-of-00002": b"1",
        f"{prefix}.data-00001-of-00002": b"2",
        f"{prefix}.meta": b"3",
        "./a/b/._model.ckpt-30000.index": b"4",
        "./a/checkpoint": b"5",
    }
    folder = tarfile.TarInfo("./a/index.index")
    folder.type = tarfile.DIRTYPE
    into = tmp_path / "new" / "folder"
    assert archive.extract_checkpoint(packed(files, folder), into) == into / "model.ckpt-30000"
    contents = {path.name.removeprefix("model.ckpt-30000."): path for path in into.iterdir()}
    assert {name: path.read_bytes() for name, path in contents.items()} == {
        "index": b"0",
        "data-00000-of-00002": b"1",
        "data-00001-of-00002": b"2",
    }


def test_tensorflow_reads_what_comes_out(packed, tmp_path):
    written = tf.train.Checkpoint(value=tf.Variable([1.0, 2.0])).write(str(tmp_path / "model.ckpt"))
    files = {path.name: path.read_bytes() for path in tmp_path.glob("model.ckpt.*")}
    prefix = archive.extract_checkpoint(packed(files), tmp_path / "into")
    name = next(name for name, _ in tf.train.list_variables(written) if "value" in name)
    np.testing.assert_array_equal(tf.train.load_variable(str(prefix), name), [1.0, 2.0])


def test_rights_of_the_archive_are_not_taken_over(packed, into, tmp_path):
    member = tarfile.TarInfo(INDEX)
    member.mode = 0o4777
    archive.extract_checkpoint(packed({DATA: b""}, member), into)
    (tmp_path / "plain").touch()
    assert (into / INDEX).stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    "member",
    [
        *("../evil", "a/../../evil", "/evil", "..", "a\\..\\evil", "\\evil", "C:\\evil", "C:evil"),
        *("deeplab/../evil", "../model.ckpt.index"),
    ],
)
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE])
@pytest.mark.parametrize("name", ["model.tar.gz", "model.tar"])
def test_paths_that_lead_out_are_refused_anywhere(packed, into, member, kind, name):
    message = refusal(packed(FILES, link(member, "x", kind), name=name), into)
    assert f"unsafe member {member!r}" in message
    assert not list(into.parent.rglob("evil"))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
@pytest.mark.parametrize("name", [INDEX, DATA])
def test_links_and_devices_among_the_needed_are_refused(packed, into, kind, name):
    files = {INDEX: b"1", DATA: b"2"}
    del files[name]
    message = refusal(packed(files, link(name, "/etc/passwd", kind)), into)
    assert f"member {name!r} is no file, but a link or device" in message


def test_links_among_the_others_are_passed_over(packed, into):
    archive.extract_checkpoint(packed(FILES, link("deeplab/latest", "/etc/passwd")), into)
    assert sorted(os.listdir(into)) == [DATA, INDEX, "other"]


@pytest.mark.parametrize(
    "files, reason",
    [
        (["a"], "holds no TensorFlow checkpoint"),
        (["a/frozen_inference_graph.pb", "a/.index"], "holds no TensorFlow checkpoint"),
        ([INDEX], f"lacks {DATA}"),
        ([DATA], f"lacks {INDEX}"),
        ([INDEX, "model.ckpt.data-00001-of-00003"], "lacks model.ckpt.data-00000-of-00003, model"),
        ([INDEX, DATA, "model.ckpt.data-00000-of-00002"], "lacks model.ckpt.data-00001-of-00002"),
        ([INDEX, "model.ckpt.data-00000-of-00000"], f"lacks {DATA}"),
        ([INDEX, f"a/{DATA}"], "holds 2: a/model.ckpt, model.ckpt"),
        ([INDEX, DATA, f"a/{INDEX}", f"a/{DATA}"], "holds 2: a/model.ckpt, model.ckpt"),
        ([INDEX, DATA, "model.ckpt-7.index"], "holds 2: model.ckpt, model.ckpt-7"),
    ],
)
@pytest.mark.parametrize("name", ["model.tar.gz", "model.tar"])
def test_what_is_not_one_whole_checkpoint_is_refused(packed, into, files, reason, name):
    assert reason in refusal(packed(dict.fromkeys(files, b"x"), name=name), into)


def test_a_file_twice_is_refused(packed, into):
    assert f"{INDEX!r} is there twice" in refusal(
        packed({INDEX: b"1", DATA: b"2"}, tarfile.TarInfo(INDEX)), into
    )


@pytest.mark.parametrize("name", ["model.tar.gz", "model.tar"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.9])
def test_a_cut_archive_is_refused(packed, into, name, part):
    path = packed(FILES, name=name)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    assert "damaged or cut off" in refusal(path, into)


def test_a_cut_inside_the_last_data_member_is_refused(packed, into):
    path = packed({INDEX: b"1", DATA: RANDOM}, name="model.tar")
    path.write_bytes(path.read_bytes()[: 512 * 3 + len(RANDOM) // 2])
    assert "damaged or cut off" in refusal(path, into)


def test_a_wrong_byte_in_a_gzip_is_refused(packed, into):
    path = packed(FILES)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "damaged or cut off" in refusal(path, into)


@pytest.mark.parametrize("lost", [1, 8])
def test_a_gzip_without_its_checksum_is_refused(packed, into, lost):
    path = packed(FILES)
    path.write_bytes(path.read_bytes()[:-lost])
    assert "damaged or cut off" in refusal(path, into)


@pytest.mark.parametrize("content", [b"no archive", gzip.compress(b"")], ids=["text", "gzip"])
def test_a_gzip_of_something_else_is_refused(into, tmp_path, content):
    path = tmp_path / "model.tar.gz"
    path.write_bytes(gzip.compress(content))
    assert "damaged or cut off" in refusal(path, into)


def test_sizes_that_would_not_fit_are_refused_before_they_are_read(packed, into, monkeypatch):
    assert archive.MAX_BYTES == 8 * 2**30
    path = into.parent / "huge.tar.gz"
    member = tarfile.TarInfo("model.ckpt.data-00000-of-00001")
    member.size = archive.MAX_BYTES + 1
    path.write_bytes(gzip.compress(member.tobuf(tarfile.GNU_FORMAT)))
    assert f"of {member.size} bytes" in refusal(path, into)
    monkeypatch.setattr(archive, "MAX_BYTES", len(RANDOM))
    assert f"{len(RANDOM) + 5} in all; at most {len(RANDOM)}" in refusal(packed(FILES), into)
    monkeypatch.setattr(archive, "MAX_BYTES", len(RANDOM) + 10)
    assert archive.extract_checkpoint(packed(FILES), into)


@pytest.mark.parametrize("name", ["model.tar.gz", "model.tar"])
def test_a_bomb_is_refused_before_it_is_unpacked(packed, into, name, monkeypatch):
    zeros = {INDEX: b"1", DATA: bytes(3_000_000)}
    monkeypatch.setattr(archive, "_ALWAYS_ALLOWED", 1_000_000)
    if name.endswith(".gz"):
        assert "3000000 bytes makes 3000001 in all; at most 1000000" in refusal(packed(zeros), into)
    else:  # as long as what it holds
        assert archive.extract_checkpoint(packed(zeros, name=name), into)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
@pytest.mark.parametrize("name", ["model.tar.gz", "model.tar"])
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
    monkeypatch.setattr(archive, "MAX_BYTES", 10_000_000)
    assert "bytes follow its last member" in refusal(path, into)


def full(*arguments, **keywords):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_nothing(packed, into, monkeypatch):
    path = packed(FILES)
    monkeypatch.setattr("shutil.copyfileobj", full)
    assert f"cannot be extracted into {into}: [Errno 28]" in refusal(path, into)


def test_a_failure_in_the_last_step_leaves_nothing(packed, into, monkeypatch):
    path, replace, calls = packed(FILES), os.replace, []

    def second_fails(*arguments):
        calls.append(arguments)
        return replace(*arguments) if len(calls) == 1 else full()

    monkeypatch.setattr(os, "replace", second_fails)
    assert "No space left" in refusal(path, into)
    assert len(calls) == 2


def test_an_interruption_leaves_nothing(packed, into, monkeypatch):
    def interrupted(source, target, length):
        target.write(source.read(100))
        raise KeyboardInterrupt

    path = packed(FILES)
    monkeypatch.setattr("shutil.copyfileobj", interrupted)
    with pytest.raises(KeyboardInterrupt):
        archive.extract_checkpoint(path, into)
    assert os.listdir(into) == ["other"]


def test_a_folder_that_cannot_be(packed, into):
    with pytest.raises(WeightsError, match="cannot be extracted into"):
        archive.extract_checkpoint(packed(FILES), into / "other")


def test_archives_are_recognised_by_content(packed, tmp_path, into):
    assert archive.is_archive(packed(FILES, name="a.tar"))
    assert archive.is_archive(packed(FILES, name="a.h5"))
    (tmp_path / "short.tar").write_bytes(b"\x1f")
    (tmp_path / "text.tar.gz").write_bytes(b"text" * 1000)
    (tmp_path / "empty.tar.gz").touch()
    for name in ("short.tar", "text.tar.gz", "empty.tar.gz", "into", "missing.tar.gz"):
        assert not archive.is_archive(tmp_path / name)
        assert "is no such file" in refusal(tmp_path / name, into)
