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
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
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
        fault = rng.choice(("bit", "zero", "ones", "noise", "cut", "insert", "repeat", "number"))
        if fault == "bit":
            data[at] ^= 1 << rng.randrange(8)
        elif fault in ("zero", "ones"):
            data[at : at + size] = (b"\0" if fault == "zero" else b"\xff") * size
        elif fault == "noise":
            data[at : at + size] = rng.randbytes(size)
        elif fault == "cut":
            del data[at + 1 :]
        elif fault == "insert":
            data[at:at] = rng.randbytes(size)
        elif fault == "repeat":
            data[at:at] = data[at : at + size]
        else:
            number = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1))
            data[at : at + 8] = number.to_bytes(8, rng.choice(("little", "big")))
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

    files = {}
    options = {"backbone_options": {"depth_multiplier": 0.35}}
    model = sources.scattered(small_model(backbone="mobilenet_v2", **options))
    for format, name in (("keras", "model.keras"), ("weights.h5", "model.weights.h5")):
        files[format] = folder / name
        (model.save if format == "keras" else model.save_weights)(files[format])
    network = keras.applications.MobileNetV2((224, 224, 3), 0.35, include_top=False, weights=None)
    sources.scattered(network)
    files["h5"] = sources.write_applications(folder / "applications.h5", network)
    state = parity.state(SHARED, "torchvision_deeplabv3_mobilenet_v3_large")
    state = {name: np.asarray(array) for name, array in state.items()}
    files["safetensors"] = folder / "model.safetensors"
    safetensors.numpy.save_file(state, files["safetensors"])
    items, stored = {}, {}
    for number, (name, array) in enumerate(state.items()):
        half = np.ascontiguousarray(array, np.float16)
        strides = tuple(step // 2 for step in half.strides)
        kept = torch_bytes.storage(str(number), half.size, b"ctorch\nHalfStorage\n")
        items[name] = torch_bytes.tensor(kept, 0, half.shape, strides)
        stored[str(number)] = half.tobytes()
    body = torch_bytes.dict_of(**items)
    files["torch"] = torch_bytes.write_zip(folder / "model.pth", body, **stored)
    files["torch legacy"] = torch_bytes.write_stream(folder / "old.pth", body, 2, **stored)
    prefix = parity.write_case(SHARED, "tf1_deeplab_mobilenet_v2", folder)
    files["tf1 index"] = prefix.with_name(f"{prefix.name}.index")
    files["tf1 data"] = prefix.with_name(f"{prefix.name}.data-00000-of-00001")
    packed = folder / "packed"
    packed.mkdir()
    for file in (files["tf1 index"], files["tf1 data"]):
        shutil.copy(file, packed / file.name)
    files["tar.gz"] = folder / "model.tar.gz"
    files["tar.gz"].write_bytes(sources.tar_gz(packed))
    files["tflite"] = SHARED / "pretrained" / "deeplabv3_257_mv_gpu.tflite"
    return files


def write_damaged_file(format: str, valid: Path, number: int, folder: Path) -> Path:
    """A damaged copy in a folder of its own; a checkpoint's other file lies beside it, whole."""
    rng = random.Random(f"{format} {number}")
    place = folder / f"{format.replace(' ', '_')}-{number}"
    place.mkdir()
    is_zip = format in ("keras", "torch") and number % 2
    content = damaged_archive(valid, rng) if is_zip else damaged(valid.read_bytes(), rng)
    (place / valid.name).write_bytes(content)
    if format.startswith("tf1"):
        for other in valid.parent.glob(f"{valid.stem}.*"):
            if other.suffix in (".index", ".data-00000-of-00001") and other != valid:
                shutil.copy(other, place / other.name)
    return place / valid.name


_MODELS: dict[str, Any] = {}


def load_weights(format: str, number: int, path: str) -> dict[str, str]:
    """The outcomes in Python and in the commands."""
    import keras_deeplab as kd
    from keras_deeplab.cli import convert, evaluate, export, predict

    if format not in _MODELS:
        valid = path_of_valid(format)
        if format in ("keras", "h5"):
            _MODELS[format] = small_model(weights=valid)
        elif format == "weights.h5":
            _MODELS[format] = small_model(weights=path_of_valid("keras"))
        else:
            _MODELS[format] = kd.from_pretrained(valid)
        kd.weights.load(_MODELS[format], valid)  # else everything would be refused
    model, folder = _MODELS[format], Path(path).parent
    found = {"load": outcome(lambda: kd.weights.load(model, path))}
    arguments = [path, "--output", str(folder / "out.keras")]
    found["convert"] = command(convert.main, arguments)
    if format == "keras":
        found["load_model"] = outcome(lambda: kd.load_model(path))
        image = str(_small_data() / "val" / "images" / "0.png")
        calls = {
            "predict": (predict.main, ["--images", image, "--output", str(folder / "labels")]),
            "evaluate": (evaluate.main, ["--data", str(_small_data())]),
            "export": (export.main, ["--output", str(folder / "saved_model")]),
        }
        name = list(calls)[number % 3]
        main, rest = calls[name]
        found[name] = command(main, ["--model", path, *rest])
    return found


def path_of_valid(format: str) -> Path:
    path = (
        Path(os.environ["FUZZ_VALID"])
        / {
            "keras": "model.keras",
            "weights.h5": "model.weights.h5",
            "h5": "applications.h5",
            "safetensors": "model.safetensors",
            "torch": "model.pth",
            "torch legacy": "old.pth",
            "tf1 index": "tf1_deeplab_mobilenet_v2",
            "tf1 data": "tf1_deeplab_mobilenet_v2",
            "tar.gz": "model.tar.gz",
            "tflite": "deeplabv3_257_mv_gpu.tflite",
        }[format]
    )
    return path if format != "tflite" else SHARED / "pretrained" / path.name


def _small_data() -> Path:
    root = Path(os.environ["FUZZ_VALID"]) / "data"
    if not root.exists():
        write_folder(root)
    return root


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

    def pick(kind: str) -> Path:
        found = [p for p in root.rglob("*") if p.is_file() and p.parent.name.lower() == kind]
        return rng.choice(sorted(found)) if found else root / "train" / kind / "0.png"

    def bytes_of(kind: str) -> None:
        path = pick(kind)
        path.write_bytes(damaged(path.read_bytes(), rng))

    def half_zero() -> None:
        path = pick("images")
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))

    def labels(change: Callable[[Any], Any]) -> None:
        path = pick("labels")
        Image.fromarray(change(np.array(Image.open(path)))).save(path, format="PNG")

    def stray(mask: Any) -> Any:
        mask[0, 0] = rng.choice((3, 7, 128, 254, 255))
        return mask

    def image(array: Any, suffix: str, **options: Any) -> None:
        path = pick("images")
        Image.fromarray(array).save(path.with_suffix(suffix), **options)
        if path.suffix != suffix:
            path.unlink()

    def replace_by(make: Callable[[Path], Any], kind: str = "images") -> None:
        path = pick(kind)
        path.unlink()
        make(path)

    def turned() -> None:
        exif = Image.Exif()
        exif[0x0112] = rng.randrange(1, 9)
        size = rng.choice(((64, 80), (80, 64)))
        image(rng_array(*size, 3), ".jpg", exif=exif)

    def rng_array(*shape: int, dtype: Any = np.uint8, high: int = 256) -> Any:
        return np.random.default_rng(rng.randrange(99)).integers(0, high, shape).astype(dtype)

    def settings(text: str) -> None:
        (root / "dataset.json").write_text(text)

    faults: dict[str, Callable[[], Any]] = {
        "image bytes": lambda: bytes_of("images"),
        "label bytes": lambda: bytes_of("labels"),
        "half zero": half_zero,
        "empty file": lambda: pick(rng.choice(("images", "labels"))).write_bytes(b""),
        "stray value": lambda: labels(stray),
        "0 and 255": lambda: labels(lambda mask: (mask > 0).astype(np.uint8) * 255),
        "all ignored": lambda: labels(lambda mask: np.full_like(mask, 255)),
        "RGB mask": lambda: labels(lambda mask: np.stack([mask * 50] * 3, -1)),
        "other size": lambda: labels(lambda mask: mask[:-1]),
        "16-bit mask": lambda: labels(lambda mask: mask.astype(np.uint16)),
        "orientation": turned,
        "12-bit image": lambda: image(rng_array(64, 80, dtype=np.uint16, high=4096), ".png"),
        "16-bit image": lambda: image(rng_array(64, 80, dtype=np.uint16, high=65536), ".png"),
        "tif": lambda: image(rng_array(64, 80, 3), ".tif"),
        "webp": lambda: image(rng_array(64, 80, 3), ".webp"),
        "gif": lambda: image(rng_array(64, 80), ".gif"),
        "bmp": lambda: image(rng_array(64, 80, 3), ".bmp"),
        "pipe": lambda: replace_by(os.mkfifo),
        "folder": lambda: replace_by(Path.mkdir, rng.choice(("images", "labels"))),
        "broken link": lambda: replace_by(lambda path: path.symlink_to(path.parent / "nothing")),
        "loop": lambda: replace_by(lambda path: path.symlink_to(path)),
        "deleted": lambda: pick(rng.choice(("images", "labels"))).unlink(),
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
        with contextlib.suppress(OSError, ValueError, TypeError):  # one fault may hinder the next
            faults[name]()
    return names


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

    model = Path(os.environ["FUZZ_VALID"]) / "model.keras"
    found = {"audit and read": outcome(read)}
    output = str(Path(path) / "scores")
    options = ["--model", str(model), "--data", path, "--output", output]
    found["evaluate"] = command(evaluate.main, options)
    if found["audit and read"] == "ok" and found["evaluate"].startswith("wrong"):
        found["evaluate"] = f"accepted by the audit, then {found['evaluate']}"
    return found


# --- outcomes -----------------------------------------------------------------------------------


def outcome(function: Callable[[], Any]) -> str:
    """`ok`, `refused` or what is wrong with the error."""
    import keras_deeplab as kd

    shown = io.StringIO()
    try:
        with contextlib.redirect_stdout(shown):
            function()
    except (ValueError, OSError, kd.export.ExportError) as error:
        if not str(error).strip():
            return f"wrong: {type(error).__name__} without a message"
        return f"refused: {error}"
    except MemoryError:
        return "wrong: MemoryError"
    except BaseException:
        return f"wrong: {traceback.format_exc(limit=-6)}"
    return "ok"


def command(main: Callable, arguments: list[str]) -> str:
    """The same of a command: exit status 0, or 2 with an error and no traceback."""
    shown, errors = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(errors):
            status = main(arguments)
    except BaseException:
        return f"wrong: {traceback.format_exc(limit=-6)}"
    text = errors.getvalue()
    if status == 0:
        return "ok"
    if status == 2 and "error: " in text and "Traceback" not in text:
        return f"refused: {text}"
    return f"wrong: status {status}, {text}"


def work(pipe: Any, function: Callable[..., dict[str, str]]) -> None:
    """A child process: takes cases, gives their outcomes and the memory that it took."""
    import keras_deeplab  # noqa: F401

    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe.send("ready")
    while (case := pipe.recv()) is not None:
        found = function(*case)
        pipe.send((found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10))
    pipe.send("done")


def run(function: Callable[..., dict[str, str]], cases: Iterator[Case]) -> bool:
    """Runs all cases in a child that is begun again where one ends it; prints a table."""
    context = multiprocessing.get_context("spawn")
    process, pipe = None, None
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    wrong, peak, start = [], 0, time.monotonic()
    for case in cases:
        if process is None:
            pipe, end = context.Pipe()
            process = context.Process(target=work, args=(end, function), daemon=True)
            process.start()
            end.close()
            pipe.recv()
        pipe.send(case)
        try:
            found, memory = pipe.recv() if pipe.poll(SECONDS) else ({"time": "hang"}, 0)
        except EOFError:
            process.join()
            found, memory = {"process": f"crash, exit status {process.exitcode}"}, 0
        if "time" in found or "process" in found:
            process.kill()
            process = None
        peak = max(peak, memory)
        for way, text in found.items():
            kind = text.split(":", 1)[0]
            counts[f"{case[0]}, {way}"][kind] += 1
            if kind not in ("ok", "refused"):
                wrong.append((case, way, text))
        if os.environ.get("FUZZ_VERBOSE"):
            print(case, found, flush=True)
        shutil.rmtree(Path(case[2]) if Path(case[2]).is_dir() else Path(case[2]).parent)
    if process is not None:
        pipe.send(None)
        process.join(10)
    for name, count in counts.items():
        print(f"{name:<32}", ", ".join(f"{kind} {n}" for kind, n in sorted(count.items())))
    for case, way, text in wrong:
        print(f"\n{Path(case[2]).name} {case[1]}, {way}: {text}")
    print(f"{len(wrong)} wrong; at most {peak} MiB; {time.monotonic() - start:.0f} s")
    return not wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("weights", "folders"))
    parser.add_argument("--count", type=int, default=100, help="cases of each kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--formats", nargs="+", help="of weights; default: all")
    options = parser.parse_args()
    numbers = range(options.first, options.first + options.count)
    with tempfile.TemporaryDirectory() as name:
        folder, valid = Path(name), Path(name) / "valid"
        valid.mkdir()
        os.environ["FUZZ_VALID"] = str(valid)
        files = write_weight_files(valid)
        write_folder(valid / "data")

        def weights() -> Iterator[Case]:
            for format in options.formats or files:
                for number in numbers:
                    path = write_damaged_file(format, files[format], number, folder)
                    yield format, number, str(path)

        def folders() -> Iterator[Case]:
            for number in numbers:
                rng, root = random.Random(number), folder / f"folder-{number}"
                write_folder(root)
                named = root.with_name(f"{root.name}-{'+'.join(damage_folder(root, rng))}")
                yield "folder", number, str(root.rename(named))

        cases = {"weights": weights, "folders": folders}[options.what]
        function = {"weights": load_weights, "folders": use_folder}[options.what]
        return 0 if run(function, cases()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
