"""The report of a run as one HTML page that needs no other file."""

from __future__ import annotations

import html
import os
import platform
import shlex
import statistics
from pathlib import Path
from typing import Any

import keras
import psutil
import tensorflow as tf

from keras_deeplab._version import __version__
from keras_deeplab.data import Source
from keras_deeplab.evaluation_page import evaluation_parts
from keras_deeplab.files import relative_path
from keras_deeplab.html_page import page, table
from keras_deeplab.trainer.run_data import RunData, charts, open_run
from keras_deeplab.trainer.run_folder import MONITOR, RunFolder

CHARTS = {
    "loss": {"loss": "train", "val_loss": "val"},
    "mean IoU": {"mean_iou": "train, in augmented crops", MONITOR: "val"},
    "learning rate": {"learning_rate": "after each epoch"},
}


def run_page(folder: RunFolder, scores: dict[str, Any], model: keras.Model, source: Source) -> str:
    """Returns the report of a run that has been scored.

    Args:
        folder: The files of the run.
        scores: Of `evaluate` with `calibration` and `confusion` on a split, with its `split`.
        model: The final model, which predicts the shown images again.
        source: The data set.

    Returns:
        The text of a page that needs no other file.
    """
    run = open_run(folder.path)
    totals, *parts = evaluation_parts(scores, model, source, scores["split"])
    name = folder.path.resolve().name
    return page(
        f"Run {name}",
        [
            totals,
            f"<h2>Curves</h2>{charts({'': run}, CHARTS)}",
            *parts,
            f"<h2>Settings</h2>{table((k, str(v)) for k, v in run.settings.items())}",
            f"<h2>Time and memory</h2>{table(_speed(run).items())}",
            f"<h2>Environment</h2>{table(_environment().items())}",
            _next_steps(folder, str(run.settings["data"])),
        ],
    )


def _speed(run: RunData) -> dict[str, str]:
    rows = {"epochs": f"{run.num_epochs}"}
    timed = len(run.epochs.get("seconds", ()))
    if not timed:
        return rows
    seconds = run.epochs["step_seconds"]
    step = statistics.median(seconds[1:] or seconds)  # the first epoch traces the graphs
    of = "" if timed == run.num_epochs else f" of {timed} epochs"
    return rows | {
        f"training and validation{of}": f"{run.seconds / 60:.1f} minutes",
        "step, median of the epochs": f"{step:.3f} s",
        "images per second": f"{run.settings['recipe.batch_size'] / step:.1f}",
        "peak memory of the process": f"{max(run.epochs['peak_bytes']) / 1e9:.2f} GB",
    }


def _environment() -> dict[str, str]:
    devices = tf.config.list_physical_devices("GPU")
    names = [
        tf.config.experimental.get_device_details(device).get("device_name", device.name)
        for device in devices
    ]
    return {
        "keras_deeplab": __version__,
        "TensorFlow": tf.__version__,
        "Keras": keras.__version__,
        "Python": platform.python_version(),
        "system": platform.platform(),
        "processors": f"{os.cpu_count()}, {psutil.virtual_memory().total / 1e9:.0f} GB",
        "GPUs": ", ".join(names) or "none",
    }


def _next_steps(folder: RunFolder, data: str) -> str:
    model, data = f"--model {folder.best_model.name}", shlex.quote(_seen_from(folder.path, data))
    lines = [
        f"keras-deeplab evaluate {model} --data {data} --html evaluation.html",
        f"keras-deeplab predict {model} --images photo.jpg",
        f"keras-deeplab export {model} --format litert --output model.tflite",
        f"keras-deeplab export {model} --format litert --precision int8 --data {data} "
        "--output model_int8.tflite",
        f"keras-deeplab export {model} --format onnx --output model.onnx",
        "keras-deeplab compare . ../ANOTHER_RUN --html comparison.html",
    ]
    return (
        "<h2>Next steps</h2><p>In the folder of the run, in which "
        f"{folder.saved_model.name} is the export for TensorFlow Serving:</p>"
        f"<pre>{html.escape(chr(10).join(lines))}</pre>"
    )


def _seen_from(folder: Path, data: str) -> str:
    """The `data` of a run for a command in its folder; DATA for a source without a path."""
    reader, colon, path = data.rpartition(":")
    if os.path.exists(path):
        return reader + colon + relative_path(path, folder)
    return data if data == "shapes" or colon else "DATA"
