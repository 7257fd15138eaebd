"""The code of README.md, docs/ and docstrings runs, commands parse and links exist."""

from __future__ import annotations

import doctest
import functools
import importlib
import pkgutil
import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

import keras_deeplab as kd

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *ROOT.glob("examples/*/*.md"), *sorted(ROOT.glob("docs/*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
# A block that follows this comment needs a download or several devices.
SKIPPED = "<!-- not run"
SHORTER = {  # smaller images, batches and data sets, and fewer steps
    "(384, 384)": "(32, 32)",
    "(97, 97)": "(33, 33)",
    "batch_size=8": "batch_size=2",
    "data.Shapes()": "data.Shapes(4, 2)",
    "train=200": "train=2",
    "images=30": "images=1",
    "train=20": "train=5",
    "steps=800": "steps=1, batch_size=2",
    "minutes=120": "minutes=0.01",
    ', weights="imagenet"': "",
    "crf.search(samples)": "crf.search(samples, {'appearance_weight': [5.0]}, 1)",
}


def shorter(code: str) -> str:
    for long, short in SHORTER.items():
        code = code.replace(long, short)
    return code


def small_network(input_shape=(None, None, 3), **_):
    """A network with the strides of MobileNetV2 and little else."""
    inputs = x = keras.Input(input_shape)
    for index in range(5):
        x = keras.layers.Conv2D(8, 3, 2, padding="same", name=f"block{index}_conv")(x)
        x = keras.layers.BatchNormalization(name=f"block{index}_norm")(x)
    return keras.Model(inputs, keras.layers.ReLU()(x), name="small")


@pytest.fixture
def small_networks(monkeypatch):
    """In place of the backbones and of `keras.applications.MobileNetV2`, without a download."""
    for name in ("mobilenet_v2", "resnet50", "vgg16", "alexnet"):
        options_of = functools.wraps(kd.backbones.BACKBONES[name].builder)
        small = kd.backbones.Backbone(options_of(lambda **options: small_network(**options)), "tf")
        monkeypatch.setitem(kd.backbones.BACKBONES, name, small)
    monkeypatch.setattr(keras.applications, "MobileNetV2", lambda **_: small_network())


@pytest.fixture
def short_runs(monkeypatch, eager):
    """One step of training, not compiled, and no export."""
    fit = keras.Model.fit

    def one_step(self, *args, **settings):
        short = {"epochs": 1, "steps_per_epoch": 1, "validation_steps": 1}
        return fit(self, *args, **{**settings, **short})

    monkeypatch.setattr(keras.Model, "fit", one_step)
    for name in ("saved_model", "litert", "onnx", "classifier"):
        monkeypatch.setattr(kd.export, name, lambda *arguments, **settings: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the files that the pages mention."""
    root = tmp_path_factory.mktemp("docs")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / "mydata" / split / kind).mkdir(parents=True)
        for number in range(2):
            labels = rng.integers(0, 2, (12, 12), np.uint8).repeat(4, 0).repeat(4, 1)
            PIL.Image.fromarray(labels).save(root / f"mydata/{split}/labels/{number}.png")
            pixels = np.stack([labels * 200] * 3, -1)
            PIL.Image.fromarray(pixels).save(root / f"mydata/{split}/images/{number}.jpg")
    PIL.Image.fromarray(pixels).save(root / "photo.jpg")
    model = kd.DeepLabV3(2, small_network(), aspp_filters=8, aspp_rates=(2,))
    model.save(root / "model.keras")
    kd.export.saved_model(model, root / "saved_model")
    (root / "runs").mkdir()
    (root / "runs" / "mine").symlink_to("..")
    kd.files.write_json(root / "dataset.json", {"classes": ["a", "road"]})
    scores = {"split": "val", "images": 2, "mean_iou": 0.5, "pixel_accuracy": 0.75}
    kd.files.write_json(root / "metrics.json", scores | {"per_class": {"a": 0.5, "road": 0.5}})
    kd.export.litert(model, root / "model.tflite")
    kd.export.onnx(model, root / "model.onnx")
    return root


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


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(name, marks=() if name == "README.md" else pytest.mark.slow)
        for name in TEXTS
        if blocks(TEXTS[name], "python")
    ],
)
@pytest.mark.usefixtures("one_device", "short_runs", "small_networks")
def test_code_of_a_page_runs(page, folder, tmp_path, monkeypatch):
    copy = tmp_path / "docs"  # as a page writes files too
    shutil.copytree(folder, copy, symlinks=True)
    monkeypatch.chdir(copy)
    names: dict[str, object] = {}
    for code in blocks(TEXTS[page], "python"):
        exec(compile(shorter(code), page, "exec"), names)


COMMANDS = [
    line
    for text in TEXTS.values()
    for code in blocks(text, "")
    for line in code.replace("\\\n", " ").splitlines()
    if "keras-deeplab " in line or "python -m training." in line
]


@pytest.mark.parametrize("line", COMMANDS)
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


def test_links_exist():
    links = []
    for page, text in zip(PAGES, TEXTS.values(), strict=True):
        prose = "".join(text.split("```")[::2])
        links += [page.parent / link for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", prose)]
    own = [link for link in links if "http" not in str(link)]
    assert [link for link in own if not link.exists()] == []
    assert len(own) > 10
    assert len(COMMANDS) > 15


SCOPE = {"keras": keras, "keras_deeplab": kd, "data": kd.data, "np": np, "tf": tf, "PIL": PIL}
# Examples about the reader's own model, photographs or folder: they run on stand-ins, and the
# numbers they print are not compared.
OWN = {
    "crf.refined.RefinedModel",
    "crf.search.search",
    "calibration.calibrate",
    "calibration.fit_temperature",
    "data.folder.Folder",
    "data.pipeline.evaluation_dataset",
    "data.pipeline.training_dataset",
    "export.litert.litert",
    "export.onnx.onnx",
    "export.saved_model.saved_model",
    "evaluation.evaluate",
    "evaluation.scores_table",
    "evaluation.search_crf",
    "inference.predicting.predict",
    "metrics.SegmentationMetrics",
    "model_card.card",
    "pictures.comparison_picture",
    "pictures.overlay",
    "prediction.predict_files",
    "runtimes.open_exported",
    "tensorboard.TensorBoard",
    "trainer.run_comparison.compare",
    "trainer.fitting.fit",
    "trainer.run_data.open_run",
    "trainer.tuning.tune",
}
# Examples that print numbers or names of layers of a backbone.
OF_A_BACKBONE = {
    "batch_norm.reestimate_batch_norm",
    "batch_norm.set_policy",
    "models.unet.UNet",
    "weights.loading.load",
}


class Checker(doctest.OutputChecker):
    """A result that the example does not show may be anything."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return not want or super().check_output(want, got, optionflags)


def examples() -> dict[str, doctest.DocTest]:
    """Each docstring that has an example, by the name of what it describes."""
    finder, found = doctest.DocTestFinder(exclude_empty=True), {}
    for info in pkgutil.walk_packages(kd.__path__, "keras_deeplab."):
        module = importlib.import_module(info.name)
        for test in finder.find(module, info.name, module, extraglobs=SCOPE):
            if test.examples:
                found[test.name.removeprefix("keras_deeplab.")] = test
    return found


EXAMPLES = examples()


def readers_own(num_classes: int) -> dict[str, Any]:
    """A model and images, as a reader of the examples has them."""
    random = np.random.default_rng(0)
    images = random.integers(0, 255, (2, 36, 48, 3)).astype("uint8")
    labels = random.integers(0, num_classes, (2, 36, 48)).astype("uint8")
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(num_classes, 1)(inputs))
    model.compile("sgd", kd.losses.CrossEntropy(), run_eagerly=True)
    pairs = (images.astype("float32"), labels.astype("int32"))
    return {
        "model": model,
        "CrossEntropy": kd.losses.CrossEntropy,
        "dataset": tf.data.Dataset.from_tensors(pairs),
        "image": images[0],
        "images": tf.constant(images),
        "truths": labels,
        "predictions": labels,
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_example_of_a_docstring(name, folder, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)  # an example may write files
    test = EXAMPLES[name]
    if name not in OF_A_BACKBONE:
        request.getfixturevalue("small_networks")
    if "export" not in name:
        request.getfixturevalue("short_runs")
    if name in OWN:
        Path("photos").symlink_to(folder / "mydata")
        Path("street.jpg").symlink_to(folder / "photo.jpg")
        if name == "model_card.card":
            Path("runs").symlink_to(folder / "runs")
        test.globs.update(readers_own(6 if name.startswith("data.pipeline") else 2))
        for run in ("photos", "photos-2"):
            Path("runs", run).mkdir(parents=True)
            Path("runs", run, "run.json").write_text("{}")
        if name == "trainer.fitting.fit":
            shutil.rmtree("runs")
        if name == "trainer.tuning.tune":
            cost = SimpleNamespace(seconds=1e-6, steps=400)
            monkeypatch.setattr(kd.trainer.tuning, "FOLDS", 2)
            monkeypatch.setattr(kd.trainer.tuning, "training_cost", lambda *_: cost)
            monkeypatch.setattr(kd.trainer.tuning, "_trained_score", lambda *_: 0.5)
            monkeypatch.setattr(kd, "fit", lambda *arguments, **settings: None)
        if name == "runtimes.open_exported":
            Path("saved_model").symlink_to(folder / "saved_model")
    for example in test.examples:
        example.source = shorter(example.source)
        example.want = "" if name in OWN else example.want
    printed: list[str] = []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.DocTestRunner(Checker(), optionflags=flags).run(test, out=printed.append)
    assert result.failed == 0, "".join(printed)


def test_no_stand_ins_for_nothing():
    assert set(EXAMPLES) >= OWN | OF_A_BACKBONE


@pytest.mark.parametrize("module", ["layers", "graph"])
def test_public_functions_and_layers_have_an_example(module):
    public = set(importlib.import_module(f"keras_deeplab.{module}").__all__)
    not_called_by_users = {"CompositeLayer", "Geometry", "TensorGeometry", "tensor_of"}
    not_called_by_users |= {"AtrousPadding2D", "AtrousPooling2D", "CropLike", "PadToMinimum"}
    assert public - not_called_by_users <= {name.rpartition(".")[2] for name in EXAMPLES}
