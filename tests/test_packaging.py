"""The distributions: their contents and metadata, and the wheel installed without the clone."""

from __future__ import annotations

import configparser
import email
import itertools
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import keras_deeplab

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "keras_deeplab"
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")
EXTRAS = dict(SETUP["options.extras_require"])


def requirements(text: str) -> list[str]:
    """The lines of a list of requirements without comments."""
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def lowest(text: str) -> dict[str, str]:
    """The lower bound of each requirement."""
    bounds = (
        re.fullmatch(r"([\w-]+)(?:\[\w+])?>=([\w.]+)(?:,<\w+)?", r) for r in requirements(text)
    )
    return {bound[1]: bound[2] for bound in bounds}


def pinned(name: str) -> dict[str, str]:
    """The exact versions of a file of constraints."""
    lines = requirements((ROOT / "constraints" / name).read_text(encoding="utf-8"))
    return dict(line.split("==") for line in lines)


def test_the_lowest_versions_are_the_lower_bounds():
    required = requirements(SETUP["options"]["install_requires"])
    for name, text in EXTRAS.items():
        required += requirements(text) if name not in ("docs", "test") else []
    bounds = lowest("\n".join(required))
    assert len(bounds) == len(required), "a package is listed twice"
    assert pinned("lowest.txt") == bounds
    assert pinned("newest.txt").keys() == bounds.keys()


def test_the_extra_of_the_tests_has_the_other_extras():
    others = {name: lowest(text) for name, text in EXTRAS.items() if name not in ("docs", "test")}
    tested = lowest(EXTRAS["test"])
    for name, bounds in others.items():
        assert bounds.items() <= tested.items(), name


def test_errors_and_docs_name_extras_that_exist():
    texts = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *PACKAGE.rglob("*.py")]
    found = {
        name
        for path in texts
        for match in re.findall(r"keras_deeplab\[([\w,]+)]", path.read_text(encoding="utf-8"))
        for name in match.split(",")
    }
    assert found <= set(EXTRAS)
    table = re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert set(EXTRAS) - {"docs", "test"} <= set(table)


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> tuple[Path, Path]:
    """The sdist, and the wheel built from it."""
    folder = tmp_path_factory.mktemp("dist")
    # From a copy of what git tracks, as setuptools writes into the folder it builds from.
    clone = tmp_path_factory.mktemp("clone")
    names = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in names.strip("\0").split("\0"):
        if (ROOT / name).is_file() and not name.startswith(("examples/", "docs/story/")):
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            (clone / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(clone))
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def run(*command: str, **settings) -> str:
    """Runs a command that must succeed, outside the clone; returns what it prints."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, **settings
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
def test_twine_accepts_the_distributions(distributions):
    run(sys.executable, "-m", "twine", "check", "--strict", *map(str, distributions))


@pytest.mark.slow
def test_the_wheel_has_the_whole_package_and_nothing_else(distributions):
    names = set(zipfile.ZipFile(distributions[1]).namelist())
    info = f"keras_deeplab-{keras_deeplab.__version__}.dist-info/"
    found = {name for name in names if not name.startswith(info)}
    files = (path for path in PACKAGE.rglob("*") if path.is_file())
    expected = {path.relative_to(ROOT).as_posix() for path in files if path.suffix != ".pyc"}
    assert found == expected | {"keras_deeplab_launcher.py"}
    assert {"keras_deeplab/py.typed", "keras_deeplab/weights/published.csv"} <= found
    assert f"{info}licenses/LICENSE" in names or f"{info}LICENSE" in names


@pytest.mark.slow
def test_the_sdist_has_what_the_wheel_is_built_from_and_the_license(distributions):
    with tarfile.open(distributions[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"LICENSE", "README.md", "CHANGELOG.md", "setup.cfg", "setup.py", "pyproject.toml"}
    assert wanted <= names
    assert not {name.partition("/")[0] for name in names} & {"tests", "training", "shared", "runs"}


@pytest.mark.slow
def test_metadata(distributions):
    with zipfile.ZipFile(distributions[1]) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    assert metadata["Version"] == keras_deeplab.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra")) == set(EXTRAS)
    assert metadata["Description-Content-Type"] == "text/markdown"
    description = metadata.get_payload(decode=True).decode()
    links = re.findall(r"\]\(([^)]*)\)", description)
    assert links
    assert all(link.startswith("https://") for link in links), "these lead nowhere on an index page"
    assert "| story" in description.lower(), "the texts of the links stay"


@pytest.fixture(scope="module")
def installed(distributions, tmp_path_factory) -> Path:
    """A virtual environment with the wheel, and the dependencies of the present environment.

    A line in a .pth file adds a folder, but not what the .pth files there add: not the clone.
    """
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", str(folder))
    python = folder / "bin" / "python"
    wheel = str(distributions[1])
    run(sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", wheel)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(run(str(python), "-c", where).strip())
    present = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "dependencies.pth").write_text("\n".join(sorted(present)))
    return folder / "bin"


@pytest.mark.slow
def test_the_installed_wheel_works_without_the_clone(installed, tmp_path, write_pair):
    def command(*arguments: str) -> str:
        return run(str(installed / "keras-deeplab"), *arguments, cwd=tmp_path)

    code = "from importlib.util import find_spec as f; print(f('{}').origin)"
    for name in ("keras_deeplab", "keras_deeplab_launcher"):
        found = run(str(installed / "python"), "-c", code.format(name), cwd=tmp_path)
        assert Path(found.strip()).is_relative_to(installed.parent)
    assert command("--version").strip() == keras_deeplab.__version__

    random = np.random.default_rng(0)
    for split, name in itertools.product(("train", "val"), "ab"):
        pair = random.integers(0, 2, (2, 6, 8), np.uint8).repeat(8, 1).repeat(8, 2)
        write_pair(tmp_path / "mydata", split, name, *pair)

    small = "--model", "unet", "--set", "model={'depth':2,'filters':4}", "--crop-size", "48", "64"
    short = "--steps", "2", "--steps-per-epoch", "1", "--batch-size", "2"
    command("train", "--data", "mydata", *small, *short, "--output", "run")
    Image.fromarray(np.full((40, 56, 3), 90, np.uint8)).save(tmp_path / "photo.png")
    model = "--model", "run/model.keras"
    evaluate = "evaluate", *model, "--data", "mydata", "--output", "scores"
    predict = "predict", *model, "--images", "photo.png", "--output", "predicted"
    # In one process, which imports TensorFlow once.
    code = f"from keras_deeplab_launcher import main\nprint(*map(main, {(evaluate, predict)}))"
    assert run(str(installed / "python"), "-c", code, cwd=tmp_path).split()[-2:] == ["0", "0"]
    trained, found = (
        json.loads((tmp_path / folder / "metrics.json").read_text())["mean_iou"]
        for folder in ("run", "scores")
    )
    assert found == pytest.approx(trained, abs=1e-6)

    (labels,) = (p for p in (tmp_path / "predicted").rglob("*.png") if "overlay" not in p.name)
    assert Image.open(labels).size == (56, 40)
    assert (tmp_path / "run" / "saved_model" / "saved_model.pb").stat().st_size > 10_000
