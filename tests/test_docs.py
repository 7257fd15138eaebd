"""The code of README.md and docs/ runs, their commands parse and their links exist."""

from __future__ import annotations

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
    model = kd.DeepLabV3(2, "mobilenet_v2", aspp_filters=8)
    model.save(root / "model.keras")
    with pytest.warns(UserWarning, match="Is the model trained"):
        kd.export.saved_model(model, root / "saved_model")
    return root


@pytest.fixture
def short_runs(monkeypatch):
    """One step of training, no download and no export."""
    fit = keras.Model.fit
    monkeypatch.setattr(
        keras.Model,
        "fit",
        lambda self, *args, **settings: fit(
            self, *args, **{**settings, "epochs": 1, "steps_per_epoch": 1}
        ),
    )
    monkeypatch.setattr(keras.applications, "MobileNetV2", without_weights)
    # Exports have tests of their own.
    monkeypatch.setattr(kd.export, "saved_model", lambda model, path: None)


MobileNetV2 = keras.applications.MobileNetV2


def without_weights(*args: object, **settings: object) -> keras.Model:
    return MobileNetV2(*args, **{**settings, "weights": None})


@pytest.mark.parametrize("page", [name for name in TEXTS if blocks(TEXTS[name], "python")])
@pytest.mark.usefixtures("one_device", "short_runs")
def test_code_runs(page, folder, monkeypatch):
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    for code in blocks(TEXTS[page], "python"):
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


def test_pages_have_links_code_and_commands():
    assert len(list(itertools.chain(*map(links, TEXTS.values())))) > 10
    assert len(COMMANDS) > 15
    assert shlex.split(COMMANDS[0][1])
