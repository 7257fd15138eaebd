"""The code of README.md and docs/ runs, their commands parse and their links exist."""

from __future__ import annotations

import importlib
import itertools
import re
import shlex
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import keras_deeplab as kd

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
# A block that follows this comment needs a download or several devices.
SKIPPED = "<!-- not run"


def blocks(text: str, language: str) -> list[str]:
    """Fenced code of a language ("" for commands) that is not marked as skipped."""
    found, before = [], ""
    fences = iter(re.split(r"^```", text, flags=re.MULTILINE))
    for prose, code in zip(fences, fences, strict=False):
        first, _, rest = code.partition("\n")
        before = prose.strip().rpartition("\n")[2]
        if first == language and not before.startswith(SKIPPED):
            found.append(rest)
    return found


def small_network(input_shape, *, depth_multiplier=1.0, padding="same"):
    """A network with the strides of MobileNetV2 and little else."""
    inputs = x = keras.Input(input_shape)
    for index in range(5):
        x = keras.layers.Conv2D(8, 3, 2, padding="same", name=f"block{index}_conv")(x)
        x = keras.layers.BatchNormalization(name=f"block{index}_norm")(x)
    return keras.Model(inputs, keras.layers.ReLU()(x), name="small")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the files that the pages mention."""
    root = tmp_path_factory.mktemp("docs")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / "mydata" / split / kind).mkdir(parents=True)
        for number in range(2):
            labels = rng.integers(0, 2, (12, 12), np.uint8).repeat(8, 0).repeat(8, 1)
            Image.fromarray(labels).save(root / f"mydata/{split}/labels/{number}.png")
            pixels = np.stack([labels * 200] * 3, -1)
            Image.fromarray(pixels).save(root / f"mydata/{split}/images/{number}.jpg")
    Image.fromarray(pixels).save(root / "photo.jpg")
    model = kd.DeepLabV3(2, small_network((None, None, 3)), aspp_filters=8, aspp_rates=(2,))
    model.save(root / "model.keras")
    kd.export.saved_model(model, root / "saved_model")
    return root


# Smaller images and batches.
SHORTER = {"(384, 384)": "(32, 32)", "(97, 97)": "(33, 33)", "batch_size=8": "batch_size=2"}


@pytest.fixture
def short_runs(monkeypatch):
    """One step of training, not compiled, of a small network; no download and no export."""
    fit = keras.Model.fit

    def one_step(self, *args, **settings):
        self.run_eagerly = True
        short = {"epochs": 1, "steps_per_epoch": 1, "validation_steps": 1}
        return fit(self, *args, **{**settings, **short})

    def applications(**settings):
        return small_network((None, None, 3))

    monkeypatch.setattr(keras.Model, "fit", one_step)
    monkeypatch.setattr(keras.applications, "MobileNetV2", applications)
    small = kd.backbones.Backbone(small_network, "tf")
    monkeypatch.setitem(kd.backbones.BACKBONES, "mobilenet_v2", small)
    # Exports have tests of their own.
    monkeypatch.setattr(kd.export, "saved_model", lambda model, path: None)


@pytest.mark.parametrize("page", [name for name in TEXTS if blocks(TEXTS[name], "python")])
@pytest.mark.usefixtures("one_device", "short_runs")
def test_code_runs(page, folder, monkeypatch):
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    for code in blocks(TEXTS[page], "python"):
        for long, short in SHORTER.items():
            code = code.replace(long, short)
        exec(compile(code, page, "exec"), names)


COMMANDS = [
    (name, line)
    for name, text in TEXTS.items()
    for code in blocks(text, "")
    for line in code.replace("\\\n", " ").splitlines()
    if "keras-deeplab " in line or "python -m training." in line
]


def links(text: str) -> list[str]:
    found = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", "".join(text.split("```")[::2]))
    return [link for link in found if not link.startswith("http")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_exist(page):
    for link in links(TEXTS[page.name]):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("line", [line for _, line in COMMANDS])
def test_commands_parse(line):
    command = re.search("keras-deeplab .*|python -m training.*", line)[0].removesuffix("&")
    program, name, *arguments = shlex.split(command, comments=True)
    if program == "keras-deeplab":
        module = f"keras_deeplab.cli.{name.replace('-', '_')}"
    else:
        module, *arguments = arguments
        module = {"training.benchmark": "training.benchmark.__main__"}.get(module, module)
        module = module.replace("training.train", "keras_deeplab.cli.train")
    importlib.import_module(module).parser().parse_args(arguments)


def test_pages_have_links_code_and_commands():
    assert len(list(itertools.chain(*map(links, TEXTS.values())))) > 10
    assert len(COMMANDS) > 15
