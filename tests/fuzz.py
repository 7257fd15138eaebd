"""Fuzzing: damaged weight files through Python and the commands, and data folders with faults.

    python tests/fuzz.py weights --count 200
    python tests/fuzz.py folders --count 100

Every case runs in a child process with limits on memory and time. Accepted outcomes are success or
the one clear error that a user gets; anything else is listed and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import traceback
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
SHARED = ROOT.parent / "shared"
MEMORY = 6 << 30  # bytes of address space beyond what the libraries take
SECONDS = 180
Case = tuple[str, int, str]  # kind, number, where its file or folder lies


# --- damage -------------------------------------------------------------------------------------


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes with one to four faults, half of them near the ends, where formats have headers."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        edge = min(len(data), 1 << 14)
        near = rng.choice((rng.randrange(edge), len(data) - 1 - rng.randrange(edge)))
        at = near if rng.random() < 0.6 else rng.randrange(len(data))
        size = min(len(data) - at, rng.choice((1, 4, 8, 64, 4096)))
        number = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1))
        begin, rest = data[:at], data[at + size :]
        faults = {
            "bit": begin + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :],
            "zero": begin + bytes(size) + rest,
            "ones": begin + b"\xff" * size + rest,
            "noise": begin + rng.randbytes(size) + rest,
            "cut": data[: at + 1],
            "insert": begin + rng.randbytes(size) + data[at:],
            "repeat": begin + data[at : at + size] + data[at:],
            "number": begin + number.to_bytes(8, rng.choice(("little", "big"))) + data[at + 8 :],
        }
        data = faults[rng.choice(sorted(faults))]
    return bytes(data)


def damaged_archive(path: Path, rng: random.Random) -> bytes:
    """A zip archive one member of which is damaged, with a right checksum."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    victim = rng.choice(sorted(members))
    members[victim] = damaged(members[victim], rng)
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return written.getvalue()


# --- weight files -------------------------------------------------------------------------------


def small_model(**arguments: Any) -> Any:
    import keras_deeplab as kd

    return kd.DeepLabV3(3, aspp_rates=(), head_filters=None, aspp_filters=8, **arguments)


def write_weight_files(folder: Path) -> dict[str, Path]:
    """A valid file of each format."""
    import keras
    import numpy as np
    import safetensors.numpy
    from weights import parity, sources, torch_bytes

    files = {format: folder / name for format, name in FILES.items()}
    options = {"backbone_options": {"depth_multiplier": 0.35}}
    model = sources.scattered(small_model(backbone="mobilenet_v2", **options))
    model.save(files["keras"])
    model.save_weights(files["weights.h5"])
    network = keras.applications.MobileNetV2((224, 224, 3), 0.35, include_top=False, weights=None)
    sources.scattered(network)
    sources.write_applications(files["h5"], network)
    state = parity.state(SHARED, "torchvision_deeplabv3_mobilenet_v3_large")
    state = {name: np.asarray(array) for name, array in state.items()}
    safetensors.numpy.save_file(state, files["safetensors"])
    items, stored = {}, {}
    for number, (name, array) in enumerate(state.items()):
        half = np.ascontiguousarray(array, np.float16)
        strides = tuple(step // 2 for step in half.strides)
        kept = torch_bytes.storage(str(number), half.size, b"ctorch\nHalfStorage\n")
        items[name] = torch_bytes.tensor(kept, 0, half.shape, strides)
        stored[str(number)] = half.tobytes()
    body = torch_bytes.dict_of(**items)
    torch_bytes.write_zip(files["torch"], body, **stored)
    torch_bytes.write_stream(files["torch legacy"], body, 2, **stored)
    parity.write_case(SHARED, "tf1_deeplab_mobilenet_v2", folder)
    packed = folder / "packed"
    packed.mkdir()
    for format in ("tf1 index", "tf1 data"):
        shutil.copy(files[format], packed)
    files["tar.gz"].write_bytes(sources.tar_gz(packed))
    shutil.copy(SHARED / "pretrained" / FILES["tflite"], folder)
    return files


FILES = {
    "keras": "model.keras",
    "weights.h5": "model.weights.h5",
    "h5": "applications.h5",
    "safetensors": "model.safetensors",
    "torch": "model.pth",
    "torch legacy": "old.pth",
    "tf1 index": "tf1_deeplab_mobilenet_v2.index",
    "tf1 data": "tf1_deeplab_mobilenet_v2.data-00000-of-00001",
    "tar.gz": "model.tar.gz",
    "tflite": "deeplabv3_257_mv_gpu.tflite",
}


def write_damaged_file(format: str, valid: Path, number: int, folder: Path) -> Path:
    """A damaged copy in a folder of its own; a checkpoint's other file lies beside it, whole."""
    rng = random.Random(f"{format} {number}")
    place = folder / f"{format.replace(' ', '_')}-{number}"
    place.mkdir()
    if format.startswith("tf1"):
        for other in ("tf1 index", "tf1 data"):
            shutil.copy(valid.with_name(FILES[other]), place)
    is_zip = format in ("keras", "torch") and number % 2
    content = damaged_archive(valid, rng) if is_zip else damaged(valid.read_bytes(), rng)
    (place / valid.name).write_bytes(content)
    return place / valid.name


@functools.cache
def model_for(format: str) -> tuple[Any, Path]:
    """A model into which the valid file of a format loads, and a data folder."""
    import keras_deeplab as kd

    folder = Path(os.environ["FUZZ_VALID"])
    valid = folder / FILES[format].removesuffix(".index").removesuffix(".data-00000-of-00001")
    if format in ("keras", "h5"):
        model = small_model(weights=valid)
    elif format == "weights.h5":
        model = small_model(weights=folder / FILES["keras"])
    else:
        model = kd.from_pretrained(valid)
    kd.weights.load(model, valid)  # else everything would be refused
    return model, folder / "data"


def load_weights(format: str, number: int, path: str) -> dict[str, str]:
    """The outcomes in Python and in the commands."""
    import keras_deeplab as kd
    from keras_deeplab.cli import convert, evaluate, export, predict

    (model, data), folder = model_for(format), Path(path).parent
    found = {"load": outcome(lambda: kd.weights.load(model, path))}
    found["convert"] = command(convert.main, path, "--output", folder / "out.keras")
    if format == "keras":
        found["load_model"] = outcome(lambda: kd.load_model(path))
        images = data / "val" / "images"
        main, *rest = [
            (predict, "--images", images, "--output", folder / "labels"),
            (evaluate, "--data", data),
            (export, "--output", folder / "saved_model"),
        ][number % 3]
        found[main.__name__.rpartition(".")[2]] = command(main.main, "--model", path, *rest)
    return found


# --- data folders -------------------------------------------------------------------------------


def write_folder(root: Path) -> None:
    """A small folder of images and label maps without a fault."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for number in range(count):
            label = np.kron(rng.integers(0, 3, (4, 5)), np.ones((16, 16))).astype(np.uint8)
            suffix = "jpg" if number % 2 else "png"
            pixels = rng.integers(0, 256, (*label.shape, 3), np.uint8)
            Image.fromarray(pixels).save(root / split / "images" / f"{number}.{suffix}")
            Image.fromarray(label).save(root / split / "labels" / f"{number}.png")
    classes = {"classes": ["a", "b", "c"], "ignore_label": 255}
    (root / "dataset.json").write_text(json.dumps(classes))


def damage_folder(root: Path, rng: random.Random) -> list[str]:
    """Adds one to three faults of those that people's folders have; returns their names."""
    import numpy as np
    from PIL import Image

    def pick(*kinds: str) -> Path:
        kind = rng.choice(kinds or ("images", "labels"))
        found = [p for p in root.rglob("*") if p.is_file() and p.parent.name.lower() == kind]
        return rng.choice(sorted(found)) if found else root / "train" / kind / "0.png"

    def change_bytes(change: Callable[[bytes], bytes]) -> None:
        path = pick()
        path.write_bytes(change(path.read_bytes()))

    def labels(change: Callable[[Any], Any]) -> None:
        path = pick("labels")
        Image.fromarray(change(np.array(Image.open(path)))).save(path, format="PNG")

    def stray(mask: Any) -> Any:
        mask[0, 0] = rng.choice((3, 7, 128, 254, 255))
        return mask

    def image(suffix: str, shape: tuple[int, ...], high: int = 256, **options: Any) -> None:
        pixels = np.random.default_rng(rng.randrange(99)).integers(0, high, shape)
        dtype, path = np.uint8 if high <= 256 else np.uint16, pick("images")
        Image.fromarray(pixels.astype(dtype)).save(path.with_suffix(suffix), **options)
        if path.suffix != suffix:
            path.unlink()

    def turned() -> None:
        exif = Image.Exif()
        exif[0x0112] = rng.randrange(1, 9)
        image(".jpg", rng.choice(((64, 80, 3), (80, 64, 3))), exif=exif)

    def replace_by(make: Callable[[Path], Any]) -> None:
        path = pick()
        path.unlink()
        make(path)

    def settings(text: str) -> None:
        (root / "dataset.json").write_text(text)

    faults: dict[str, Callable[[], Any]] = {
        "bytes": lambda: change_bytes(lambda content: damaged(content, rng)),
        "half zero": lambda: change_bytes(lambda b: b[: len(b) // 2] + bytes(len(b) - len(b) // 2)),
        "empty file": lambda: change_bytes(lambda content: b""),
        "stray value": lambda: labels(stray),
        "0 and 255": lambda: labels(lambda mask: (mask > 0).astype(np.uint8) * 255),
        "all ignored": lambda: labels(lambda mask: np.full_like(mask, 255)),
        "RGB mask": lambda: labels(lambda mask: np.stack([mask * 50] * 3, -1)),
        "other size": lambda: labels(lambda mask: mask[:-1]),
        "16-bit mask": lambda: labels(lambda mask: mask.astype(np.uint16)),
        "orientation": turned,
        "12-bit image": lambda: image(".png", (64, 80), 4096),
        "16-bit image": lambda: image(".png", (64, 80), 65536),
        "other format": lambda: image(rng.choice((".tif", ".webp", ".bmp")), (64, 80, 3)),
        "gif": lambda: image(".gif", (64, 80)),
        "pipe": lambda: replace_by(os.mkfifo),
        "folder": lambda: replace_by(Path.mkdir),
        "broken link": lambda: replace_by(lambda path: path.symlink_to(path.parent / "nothing")),
        "loop": lambda: replace_by(lambda path: path.symlink_to(path)),
        "deleted": lambda: pick().unlink(),
        "copy": lambda: shutil.copy(path := pick("images"), path.with_suffix(".bmp")),
        "text": lambda: (root / "train" / "images" / "notes.txt").write_text("notes"),
        "name": lambda: os.rename(
            os.fsencode(path := pick("images")), os.fsencode(path.parent) + b"/\xff\xfe.png"
        ),
        "capitals": lambda: (root / "val").rename(root / "Val"),
        "no split": lambda: (root / "train").rename(root / "pictures"),
        "json depth": lambda: settings("[" * 100_000),
        "json bytes": lambda: settings(damaged(b'{"classes": ["a", "b"]}', rng).decode("latin-1")),
        "json null": lambda: settings(rng.choice(("null", "[]", "{}", "3", '{"classes": []}'))),
        "ignored class": lambda: settings(
            json.dumps({"ignore_label": rng.choice((0, 1, [0, 255]))})
        ),
        "no json": lambda: (root / "dataset.json").unlink(missing_ok=True),
    }
    names = [rng.choice(sorted(faults)) for _ in range(rng.choice((1, 1, 2, 3)))]
    for name in names:
        with contextlib.suppress(OSError, ValueError, TypeError):  # one fault may prevent the next
            faults[name]()
    return names


def damaged_folder(folder: Path, number: int) -> Path:
    """A folder with faults, named after them."""
    root = folder / f"folder-{number}"
    write_folder(root)
    faults = damage_folder(root, random.Random(number))
    return root.rename(root.with_name(f"{root.name}-{'+'.join(faults)}"))


def use_folder(kind: str, number: int, path: str) -> dict[str, str]:
    """Audits a folder, and trains on it as far as reading goes where the audit accepts it."""
    del kind, number
    import keras_deeplab as kd
    from keras_deeplab.cli import evaluate

    def read() -> None:
        source = kd.data.open_source(path)
        kd.data.audit(source)
        train = kd.data.training_dataset(source, crop_size=(32, 32), batch_size=2)
        batches = [*train.take(3), *kd.data.evaluation_dataset(source)]
        del train  # an iterator that is alive at the end of the process can hang it
        assert all(len(labels) for _, labels in batches)

    model = Path(os.environ["FUZZ_VALID"]) / FILES["keras"]
    found = {"audit and read": outcome(read)}
    arguments = ["--model", model, "--data", path, "--output", Path(path) / "scores"]
    found["evaluate"] = command(evaluate.main, *arguments)
    if found["audit and read"] == "ok" and found["evaluate"].startswith("wrong"):
        found["evaluate"] = f"accepted by the audit, then {found['evaluate']}"
    return found


# --- outcomes -----------------------------------------------------------------------------------


def outcome(function: Callable[[], Any]) -> str:
    """`ok`, `refused` or what is wrong with the error."""
    import keras_deeplab as kd

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            function()
    except (ValueError, OSError, kd.export.ExportError) as error:
        name = type(error).__name__
        if isinstance(error.__cause__, AttributeError | NameError | AssertionError):
            return f"wrong: {traceback.format_exc(limit=-6)}"  # of the reader, not of the file
        return f"refused: {error}" if str(error).strip() else f"wrong: {name} without a message"
    except BaseException:
        return f"wrong: {traceback.format_exc(limit=-6)}"
    return "ok"


def command(main: Callable, *arguments: str | Path) -> str:
    """The same of a command: exit status 0, or 2 with an error and no traceback."""
    errors, status = io.StringIO(), []
    with contextlib.redirect_stderr(errors):
        found = outcome(lambda: status.append(main(list(map(str, arguments)))))
    text = errors.getvalue()
    if found != "ok" or status == [0]:
        return found if found == "ok" else f"wrong: {found}"
    is_clear = status == [2] and "error: " in text and "Traceback" not in text
    return f"{'refused' if is_clear else 'wrong'}: status {status}, {text}"


def limit() -> None:
    """Limits the memory of a child process."""
    import keras_deeplab  # noqa: F401

    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run(function: Callable[..., dict[str, str]], cases: Iterator[Case]) -> bool:
    """Runs all cases in a child that is begun again where one ends it; prints a table."""
    pool, wrong = None, []
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for case in cases:
        pool = pool or multiprocessing.get_context("spawn").Pool(1, limit)
        try:
            found = pool.apply_async(function, case).get(SECONDS)
        except multiprocessing.TimeoutError:
            found = {"process": "hang or crash"}
            pool.terminate()
            pool = None
        for way, text in found.items():
            kind = text.split(":", 1)[0]
            counts[f"{case[0]}, {way}"][kind] += 1
            if kind not in ("ok", "refused"):
                wrong.append(f"{Path(case[2]).name} {case[1]}, {way}: {text}")
        shutil.rmtree(Path(case[2]) if Path(case[2]).is_dir() else Path(case[2]).parent)
    for name, count in counts.items():
        print(f"{name:<32}", ", ".join(f"{kind} {n}" for kind, n in sorted(count.items())))
    print("\n".join([*wrong, f"{len(wrong)} wrong"]))
    return not wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("weights", "folders"))
    parser.add_argument("--count", type=int, default=100, help="cases of each kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--formats", nargs="+", default=FILES, help="of weights")
    options = parser.parse_args()
    numbers = range(options.first, options.first + options.count)
    with tempfile.TemporaryDirectory() as name:
        folder, valid = Path(name), Path(name) / "valid"
        valid.mkdir()
        os.environ["FUZZ_VALID"] = str(valid)
        files = write_weight_files(valid)
        write_folder(valid / "data")
        if options.what == "weights":
            cases = (
                (format, number, str(write_damaged_file(format, files[format], number, folder)))
                for format in options.formats
                for number in numbers
            )
            return 0 if run(load_weights, cases) else 1
        cases = (("folder", number, str(damaged_folder(folder, number))) for number in numbers)
        return 0 if run(use_folder, cases) else 1


if __name__ == "__main__":
    raise SystemExit(main())
