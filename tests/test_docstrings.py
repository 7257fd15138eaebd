"""Every example in a docstring of the package runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

import keras_deeplab

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
SCOPE = {
    "keras": keras,
    "keras_deeplab": keras_deeplab,
    "data": keras_deeplab.data,
    "np": np,
    "tf": tf,
    "PIL": PIL,
}
# Examples about the reader's own model, photographs or folder: they run on stand-ins, and the
# numbers they print are not compared.
OWN = {
    "data.folder.Folder": 2,
    "data.pipeline.evaluation_dataset": 6,
    "data.pipeline.training_dataset": 6,
    "export.saved_model": 2,
    "evaluation.evaluate": 2,
    "evaluation.scores_table": 2,
    "inference.predict": 2,
    "metrics.SegmentationMetrics": 2,
    "pictures.comparison_picture": 2,
    "pictures.overlay": 2,
    "prediction.predict_files": 2,
    "tensorboard.TensorBoard": 2,
    "trainer.fitting.fit": 2,
    "verification.verify": 2,
}
SHORTER = {
    "epochs=20": "epochs=1, steps_per_epoch=2",
    "steps=800": "steps=1, batch_size=2",
}


class Checker(doctest.OutputChecker):
    """A result that the example does not show may be anything."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return not want or super().check_output(want, got, optionflags)


class RunsOnly(doctest.OutputChecker):
    """Only exceptions count."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return True


def examples() -> dict[str, doctest.DocTest]:
    """Each docstring that has an example, by the name of what it describes."""
    finder, found = doctest.DocTestFinder(exclude_empty=True), {}
    for info in pkgutil.walk_packages(keras_deeplab.__path__, "keras_deeplab."):
        module = importlib.import_module(info.name)
        for test in finder.find(module, info.name, module, extraglobs=SCOPE):
            if test.examples:
                found[test.name.removeprefix("keras_deeplab.")] = test
    return found


EXAMPLES = examples()


def readers_own(folder: Path, num_classes: int) -> dict[str, Any]:
    """A model, photographs and a folder, as a reader of the examples has them."""
    random = np.random.default_rng(0)
    images = random.integers(0, 255, (2, 36, 48, 3)).astype("uint8")
    labels = random.integers(0, num_classes, (2, 36, 48)).astype("uint8")
    for split in ("train", "val"):
        for kind, arrays in (("images", images), ("labels", labels)):
            (folder / "photos" / split / kind).mkdir(parents=True)
            for index, array in enumerate(arrays):
                name = folder / "photos" / split / kind / f"{index}.png"
                PIL.Image.fromarray(array).save(name)
    PIL.Image.fromarray(images[0]).save(folder / "street.jpg")
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(num_classes, 1)(inputs))
    model.compile("sgd", keras_deeplab.losses.CrossEntropy())
    pairs = (images.astype("float32"), labels.astype("int32"))
    return {
        "model": model,
        "CrossEntropy": keras_deeplab.losses.CrossEntropy,
        "dataset": tf.data.Dataset.from_tensors(pairs),
        "image": images[0],
        "images": images,
        "photographs": tf.constant(images),
        "truths": labels,
        "predictions": labels,
    }


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # an example may write files
    test = EXAMPLES[name]
    if name in OWN:
        test.globs.update(readers_own(tmp_path, OWN[name]))
        if name == "verification.verify":
            keras_deeplab.export.saved_model(test.globs["model"], "saved_model")
    for example in test.examples:
        for long, short in SHORTER.items():
            example.source = example.source.replace(long, short)
    printed: list[str] = []
    runner = doctest.DocTestRunner(RunsOnly() if name in OWN else Checker(), optionflags=FLAGS)
    result = runner.run(test, out=printed.append)
    assert result.failed == 0, "".join(printed)


def test_no_stand_ins_for_nothing():
    assert set(OWN) <= set(EXAMPLES)


@pytest.mark.parametrize("module", ["layers", "graph"])
def test_public_functions_and_layers_have_an_example(module: str):
    public = set(importlib.import_module(f"keras_deeplab.{module}").__all__)
    not_called_by_users = {"CompositeLayer", "Geometry", "TensorGeometry", "tensor_of"}
    not_called_by_users |= {"AtrousPadding2D", "AtrousPooling2D", "CropLike", "PadToMinimum"}
    assert public - not_called_by_users <= {name.rpartition(".")[2] for name in EXAMPLES}
