"""Image classifiers trained at several sizes."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import tensorflow as tf

from keras_deeplab import export
from keras_deeplab.data import check_images, classification_dataset
from keras_deeplab.files import atomic_write, stored_bytes, write_json
from keras_deeplab.schedules import PolynomialDecay
from keras_deeplab.validation import error, integer, integers, positive
from keras_deeplab.weights import load_model
from keras_deeplab.weights.readers.keras_file import check_can_be_loaded


@dataclass(frozen=True)
class ClassifierResult:
    """The result of `fit_classifier`.

    Attributes:
        history: A value per epoch of each metric, as `model.fit` returns it.
        accuracy: The accuracy on the validation images at each size.
    """

    history: dict[str, list[float]]
    accuracy: dict[int, float]


def fit_classifier(
    model: keras.Model,
    root: str | os.PathLike,
    sizes: Sequence[int],
    *,
    epochs: int,
    batch_size: int = 32,
    learning_rate: float = 3e-4,
    seed: int = 0,
    test_sizes: Sequence[int] = (),
    run_dir: str | os.PathLike | None = None,
    verbose: str | int = "auto",
) -> ClassifierResult:
    """Trains a classifier of images of any size, one epoch at each of several sizes in turn.

    AdamW with weight decay 1e-4, gradients clipped to a global norm of 5, and a learning rate that
    decays to 0 after a warm-up. Validation takes all sizes.

    Args:
        model: An `SPPNet` or another classifier that returns logits.
        root: Folder with `{train,val}/CLASS/*` (see `data.classification_dataset`). All files are
            decoded before training.
        sizes: Heights and widths of the images.
        epochs: Number of epochs, over all sizes.
        batch_size: Images per batch.
        learning_rate: The highest learning rate.
        seed: Seed of the order of the images.
        test_sizes: Other sizes to compute the accuracy at.
        run_dir: New or empty folder for history.csv, the model of the lowest validation loss
            (model.keras), its SavedModel and metrics.json. Without it nothing is written.
        verbose: Of `model.fit`.

    Returns:
        A `ClassifierResult`; with `run_dir` the accuracy is that of model.keras.

    Raises:
        ValueError: If an argument is out of its range, a file cannot be decoded, or the loss is not
            finite.

    Example:

    >>> data.write_shape_images("photos", train=5, val=5)
    >>> model = keras_deeplab.SPPNet(5, "alexnet", levels=(2, 1), dense=())
    >>> result = keras_deeplab.fit_classifier(model, "photos", [32, 48], epochs=2, test_sizes=[64])
    >>> list(result.accuracy)
    [32, 48, 64]

    Reference:
        - [Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition](
          https://arxiv.org/abs/1406.4729), section 2.3: multi-size training.
    """
    sizes, test_sizes = integers("sizes", sizes), integers("test_sizes", test_sizes)
    if not sizes:
        raise error("sizes", "at least one size", sizes)
    epochs = integer("epochs", epochs)
    learning_rate = positive("learning_rate", learning_rate)
    if run_dir is not None:
        run_dir = Path(run_dir)
        if run_dir.exists() and any(run_dir.iterdir()):
            raise error("run_dir", "a new or empty folder", str(run_dir))
        check_can_be_loaded(model)
    at = functools.partial(classification_dataset, root, batch_size=batch_size, seed=seed)
    train = [at("train", size=size, training=True) for size in sizes]
    classes = train[0].class_names
    if model.output_shape[-1] != len(classes):
        rule = f"a classifier of {len(classes)} classes, as many as the folder has"
        raise error("model", rule, model.output_shape)
    validation = {size: at("val", size=size, class_names=classes) for size in (*sizes, *test_sizes)}
    for dataset in (train[0], validation[sizes[0]]):
        check_images(dataset, root)
    callbacks = [keras.callbacks.TerminateOnNaN()]
    if run_dir is not None:
        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / "model.keras"
        callbacks += [keras.callbacks.CSVLogger(run_dir / "history.csv"), _BestModel(path)]
    steps = int(train[0].cardinality())
    total, warmup = steps * epochs, min(200, steps * epochs // 10)
    schedule = PolynomialDecay(learning_rate, total_steps=total, warmup_steps=warmup)
    model.compile(
        keras.optimizers.AdamW(schedule, weight_decay=1e-4, global_clipnorm=5.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.optimizer.build(model.trainable_variables)  # else the first step is traced twice
    history = model.fit(
        _in_turn(train).repeat(),
        steps_per_epoch=steps,  # one size
        epochs=epochs,
        validation_data=_in_turn([validation[size] for size in sizes]),
        callbacks=callbacks,
        shuffle=False,
        verbose=verbose,
    ).history
    if not math.isfinite(history["loss"][-1]):
        raise ValueError(
            f"The loss became {history['loss'][-1]} in epoch {len(history['loss'])}. Use a smaller "
            "`learning_rate`."
        )
    if run_dir is not None:
        model = load_model(path)
    accuracy = {
        size: model.evaluate(dataset, return_dict=True, verbose=0)["accuracy"]
        for size, dataset in validation.items()
    }
    if run_dir is not None:
        export.classifier(model, run_dir / "saved_model")
        metrics = {"split": "val", "classes": classes, "sizes": sizes, "accuracy": accuracy}
        write_json(run_dir / "metrics.json", metrics)
    return ClassifierResult(history, accuracy)


class _BestModel(keras.callbacks.Callback):
    """Stores the model of the lowest validation loss with an atomic write."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.best = math.inf

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:  # noqa: ARG002
        trained = math.isfinite(logs["loss"])
        if logs["val_loss"] < self.best or (trained and not self.path.exists()):
            self.best = min(self.best, logs["val_loss"])
            with atomic_write(self.path, stored_bytes(self.model)) as temporary:
                self.model.save(temporary)


def _in_turn(datasets: Sequence[tf.data.Dataset]) -> tf.data.Dataset:
    return functools.reduce(lambda first, second: first.concatenate(second), datasets)
