"""Data sets with one classic mistake each, and clean ones that raise no alarm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageDraw

from keras_deeplab import data
from keras_deeplab.data.diagnostics import Evidence, look_closely
from keras_deeplab.data.source import decoded

SIZE = (72, 96)
CLASSES = ["ground", "disc", "box", "bar"]
COLORS = [[0, 0, 0], [200, 40, 10], [20, 180, 90], [120, 60, 220]]
Pair = tuple[np.ndarray, np.ndarray]


def scene(seed: int, kinds: tuple[int, ...] = (1, 2, 3)) -> Pair:
    """A photograph of textured shapes, and its label map of the values 0..3."""
    rng = np.random.default_rng(seed)
    label = Image.new("L", SIZE[::-1], 0)
    draw = ImageDraw.Draw(label)
    for kind in kinds:
        left, top = rng.integers(2, SIZE[1] - 34), rng.integers(2, SIZE[0] - 30)
        wide, high = rng.integers(20, 30, 2) if kind != 3 else (30, 8)
        place = (left, top, left + int(wide), top + int(high))
        (draw.ellipse if kind == 1 else draw.rectangle)(place, fill=kind)
    values = np.asarray(label)
    tones = rng.permutation([50, 110, 170, 230])[:, None] + rng.integers(-15, 15, (4, 3))
    image = (
        tones[values]
        + rng.normal(0, 6, (*SIZE, 3))
        + rng.normal(0, 12, (9, 12, 3)).repeat(8, 0).repeat(8, 1)
    )
    return np.clip(image, 0, 255).astype(np.uint8), values


class Written:
    """A data set to be changed and written as a folder."""

    def __init__(self, write_pair: Callable) -> None:
        self.write_pair = write_pair
        self.pairs = {"train": [scene(n) for n in range(16)]}
        self.pairs["val"] = [scene(1000 + n) for n in range(8)]
        self.settings: dict | None = {"classes": CLASSES}
        self.name: Callable[[str, int], str] = "{}_{}".format

    def change(self, function: Callable[[np.ndarray, np.ndarray], Pair]) -> None:
        self.pairs = {s: [function(*pair) for pair in part] for s, part in self.pairs.items()}

    def labels(self, function: Callable[[np.ndarray], np.ndarray]) -> None:
        self.change(lambda image, label: (image, function(label)))

    def write(self, root: Path) -> Path:
        for split, part in self.pairs.items():
            for number, (image, label) in enumerate(part):
                self.write_pair(root, split, self.name(split[0], number), label, image)
        if self.settings is not None:
            (root / "dataset.json").write_text(json.dumps(self.settings))
        return root


@pytest.fixture
def written(write_pair) -> Written:
    return Written(write_pair)


def resized(label):
    small = Image.fromarray(label).resize((64, 48), Image.Resampling.BILINEAR)
    return np.asarray(small.resize(SIZE[::-1], Image.Resampling.BILINEAR))


def labels_resized(found):
    found.labels(lambda label: resized(label * 60) // 60)


def three_labels_resized(found):
    """With one value in between, which has wide areas of its own."""
    found.labels(lambda label: resized(np.minimum(label, 2) * 60) // 60)
    found.settings = {"classes": CLASSES[:3]}


def masks_resized(found):
    found.labels(lambda label: np.uint8(255) * (label > 0))
    found.labels(resized)
    found.settings = None


def off_by_one(found):
    found.labels(lambda label: label + 1)


def off_by_one_without_classes(found):
    off_by_one(found)
    found.settings = None


def bgr(found):
    found.settings = {"classes": CLASSES, "colors": COLORS}
    found.labels(lambda label: np.array(COLORS, np.uint8)[label][..., ::-1])


def lost_palette(found):
    palette = np.array(data.voc_colors(4), np.uint8)
    found.labels(lambda label: np.asarray(Image.fromarray(palette[label]).convert("L")))
    found.settings = None


def void_by_name(found):
    found.settings = {"classes": [*CLASSES[:3], "Void"]}


def void_by_place(found):
    def bordered(label):
        edge = np.zeros(label.shape, bool)
        for axis in (0, 1):
            for step in (1, -1, 2, -2):
                edge |= np.roll(label, step, axis) != label
        return np.where(edge, 4, label).astype(np.uint8)

    found.labels(bordered)
    found.settings = {"classes": [*CLASSES, "edge"]}


def foreground_255(found):
    found.labels(lambda label: np.uint8(255) * (label > 0))
    found.settings = {"classes": ["ground", "thing"]}


def exchanged(found):
    found.change(lambda image, label: (label, image))


def half_empty(found):
    for part in found.pairs.values():
        part[::2] = [(image, np.zeros_like(label)) for image, label in part[::2]]


def shifted(found):
    found.labels(lambda label: np.roll(label, (3, -4), (0, 1)))


def mirrored(found):
    found.labels(lambda label: label[:, ::-1])


def duplicates(found):
    copies = [
        (np.clip(i.astype(int) + 2, 0, 255).astype(np.uint8), v)
        for i, v in found.pairs["train"][:4]
    ]
    found.pairs["val"][:4] = copies


def sequences(found):
    found.name = lambda split, number: (
        f"{'north' if split == 'v' or number % 2 else 'south'}_{ord(split)}{number:04d}"
    )


def absent_from_train(found):
    found.pairs["train"] = [scene(n, (1, 2)) for n in range(16)]


def thin(found):
    def lines(label):
        label = np.zeros_like(label)
        label[:, 5::20], label[:, 6::20] = 1, 1
        return label

    rng = np.random.default_rng(0)

    def photograph(image, label):
        label = lines(label)
        return 255 - 100 * label[..., None] - rng.integers(0, 40, image.shape, np.uint8), label

    found.change(photograph)
    found.settings = {"classes": ["ground", "wire"]}


def frames(found):
    """Frames of six recordings, each moved by a pixel, in random order."""
    pairs = [
        tuple(np.roll(part, step, 1) for part in scene(n)) for n in range(6) for step in range(4)
    ]
    order = np.random.default_rng(0).permutation(24)
    found.pairs = {"train": [pairs[k] for k in order[:16]], "val": [pairs[k] for k in order[16:]]}


def large(found):
    def enlarged(image, label):
        label = np.full((1100, 1100), label[0, 0])
        label[0, :30] = 1
        return np.resize(image, (1100, 1100, 3)), label

    found.pairs = {split: part[:2] for split, part in found.pairs.items()}
    found.change(enlarged)
    found.settings = {"classes": ["sky", "bird"]}


MISTAKES = {
    labels_resized: "labels resized bilinearly",
    three_labels_resized: "labels resized bilinearly",
    masks_resized: "labels resized bilinearly",
    off_by_one: "labels off by one",
    off_by_one_without_classes: "labels off by one",
    bgr: "colours in BGR",
    lost_palette: "palette lost",
    void_by_name: "void as a class",
    void_by_place: "void as a class",
    foreground_255: "255 as foreground",
    exchanged: "images and label maps exchanged",
    half_empty: "empty label maps",
    shifted: "label maps shifted",
    mirrored: "label maps mirrored",
    duplicates: "images in two splits",
    frames: "frames of a recording in two splits",
    absent_from_train: "classes absent from train",
}
NOTES = {
    sequences: "sequences in two splits",
    thin: "objects thinner than the output stride",
    large: "objects larger than the receptive field",
}


def kinds(root: Path) -> tuple[list[str], list[str]]:
    """The kinds of warnings, also of those in an error, and of notes."""
    try:
        report = data.audit(root)
    except data.DatasetError as error:
        lines = [line for line in str(error).splitlines() if line.startswith("probable cause: ")]
        return [line.removeprefix("probable cause: ").split(":")[0] for line in lines], []
    warnings = [one.kind for one in report.findings if one.is_warning]
    assert [f"warning: {one}" in str(report) for one in report.findings] == [
        one.is_warning for one in report.findings
    ]
    return warnings, [one.kind for one in report.findings if not one.is_warning]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda one: one.__name__)
def test_a_mistake_is_named_and_no_other(written, tmp_path, mistake):
    mistake(written)
    assert kinds(written.write(tmp_path))[0] == [MISTAKES[mistake]]


@pytest.mark.parametrize("trait", NOTES, ids=lambda one: one.__name__)
def test_traits_are_noted(written, tmp_path, trait):
    trait(written)
    warnings, notes = kinds(written.write(tmp_path))
    assert warnings == []
    assert NOTES[trait] in notes


def test_colors_are_those_of_label_maps_that_cannot_be_read(written, tmp_path):
    bgr(written)
    written.settings["colors"] = [color[::-1] for color in COLORS]  # now they can
    root = written.write(tmp_path)
    image = root / "train" / "images" / "t_0.png"
    image.write_bytes(image.read_bytes()[:500])
    evidence = Evidence()
    look_closely(evidence, data.Folder(root), "train")
    assert evidence.looked_at == 16
    assert not evidence.colors
    settings = {"classes": CLASSES, "colors": COLORS}
    (root / "dataset.json").write_text(json.dumps(settings))
    look_closely(evidence, data.Folder(root), "train")
    assert (10, 40, 200) in evidence.colors


class InMemory(data.Source):
    """A data set that is no files."""

    splits = ("train", "val")
    info = data.DatasetInfo(tuple(CLASSES))

    def names(self, split):
        return [f"{split}{n}" for n in range(12)]

    def dataset(self, split, numbers: tf.data.Dataset | None = None):
        first = 100 * self.splits.index(split)
        return decoded(lambda number: scene(first + int(number)), 12, numbers)


def binary(found):
    found.labels(lambda label: np.uint8(255) * (label > 0))
    found.settings = {"classes": ["ground", "thing"], "values": [0, 255]}


def plain(found):
    found.settings = None


@pytest.mark.parametrize(
    "make",
    [binary, plain, lambda _: InMemory(), lambda _: data.Shapes(train=60, val=24)],
    ids=["binary", "plain", "in memory", "shapes"],
)
def test_clean_data_sets_raise_no_alarm(written, tmp_path, make):
    assert kinds(make(written) or written.write(tmp_path))[0] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["camvid", "membrane"])
def test_real_data_sets(shared, tmp_path, name):
    root = shared / name
    report = data.audit(root)
    assert [one.kind for one in report.findings if one.is_warning] == []
    notes = [one.kind for one in report.findings]
    assert ("sequences in two splits" in notes) == (name == "camvid")  # one sequence validates
    if name == "membrane":
        assert report.splits["val"].images == 5
        assert "labels 0 to 1 are the mask values 0, 255" in report.warnings[0]
    # A shift of three pixels is seen on real photographs too.
    for kind, shift in (("images", 0), ("labels", 3)):
        (tmp_path / "val" / kind).mkdir(parents=True)
        for path in sorted((root / "val" / kind).iterdir())[:12] * (name == "camvid"):
            image = Image.open(path)
            moved = Image.fromarray(np.roll(np.asarray(image), shift, 1))
            moved.save(tmp_path / "val" / kind / f"{path.stem}.png")
    if name == "camvid":
        (tmp_path / "dataset.json").write_text((root / "dataset.json").read_text())
        kinds_found = {one.kind: one.text for one in data.audit(tmp_path).findings}
        assert "3 pixels to the left" in kinds_found["label maps shifted"]
