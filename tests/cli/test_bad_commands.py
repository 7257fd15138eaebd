"""A mistake in a command is one line that names it, before anything is written."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from models.networks import tiny
from PIL import Image

import keras_deeplab
import keras_deeplab_launcher as launcher
from keras_deeplab.cli import (
    analyze,
    audit,
    compare,
    convert,
    demo,
    evaluate,
    export,
    options,
    predict,
    train,
    train_classifier,
    tune,
)
from training import model_table
from training.benchmark import __main__ as benchmark

NAMES = (name.replace("-", "_") for name in launcher.COMMANDS)
COMMANDS = [importlib.import_module(f"keras_deeplab.cli.{name}") for name in NAMES]
COMMANDS += [benchmark, model_table]


def refused(command, arguments, capsys):
    """The message that a command ends with."""
    try:
        status = command.main(arguments.split())
    except SystemExit as ended:
        status = ended.code
    printed = capsys.readouterr()
    assert status == 2
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1 or " fault" in printed.err  # of a data set
    return printed.err


@pytest.mark.parametrize("propagate", [True, False])
def test_a_command_leaves_the_log_as_it_was(capsys, monkeypatch, propagate):
    log = logging.getLogger("keras_deeplab")
    for name, value in (("level", logging.ERROR), ("propagate", propagate), ("handlers", [])):
        monkeypatch.setattr(log, name, value)
    refused(audit, "--data missing", capsys)
    assert (log.level, log.propagate, log.handlers) == (logging.ERROR, propagate, [])


def test_an_export_that_exists_is_named_before_anything_is_read(tmp_path, capsys):
    for name, ends in (("a.onnx", "onnx"), ("a.tflite", "litert")):
        (tmp_path / name).touch()
        arguments = f"--model missing.keras --data missing --output {tmp_path / name}"
        assert "overwrite=True" in refused(export, arguments, capsys)
        other = {"onnx": "litert", "litert": "onnx"}[ends]
        message = refused(export, f"{arguments} --overwrite --format {other}", capsys)
        assert "`path` must be a file name that ends in" in message


def test_paths_after_an_equals_sign_may_begin_with_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    found = predict.parser().parse_args("--model=~/a.keras --images=~/b --output=~/c".split())
    assert (str(found.model), str(found.output)) == ("/home/me/a.keras", "/home/me/c")
    assert [str(path) for path in found.images] == ["/home/me/b"]


@pytest.mark.slow
def test_a_command_whose_output_nobody_reads_goes_on(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import logging, pathlib, sys, keras\n"
        "from keras_deeplab.cli.options import Parser, command\n"
        "@command(lambda: Parser())\n"
        "def main(options):\n"
        "    for number in range(50_000):\n"
        "        logging.getLogger('keras_deeplab').info('line %d', number)\n"
        "    print('text')\n"
        "    keras.utils.Progbar(1).update(1)\n"
        "    pathlib.Path(sys.argv[1]).touch()\n"
        "    print('end')\n"
        "sys.exit(main([]))\n"
    )
    done = tmp_path / "done"
    line = f"set -o pipefail; '{sys.executable}' {script} {done} | head -1"
    found = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "line 0\n")
    assert "Broken pipe" not in found.stderr
    assert "Logging error" not in found.stderr
    assert done.exists()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_an_unknown_option_of_every_command(command, capsys):
    assert isinstance(command.parser(), options.Parser)
    assert "There is no option --zzz. See --help." in refused(command, "--zzz 3", capsys)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_defaults_that_are_not_set_are_not_shown(command):
    shown = command.parser().format_help()
    assert not [value for value in ("None", "False", "[]") if f"(default: {value})" in shown]


BAD = [
    # Options
    (train, "--lr 0.1", "no option --lr. Did you mean '--learning-rate'?"),
    (train, "-bs=4", "Did you mean '--batch-size'?"),
    (train, "--set lr=1", "with a value of the recipe. Received: 'lr=1'. Did you mean 'learning_r"),
    (train, "--set zzz=1", "NAME=VALUE with one of backbone_lr_multiplier, batch"),
    (train, "--crop_size 64", "Did you mean '--crop-size'?"),
    (train, "--num-classes 3", "The number of classes is that of the data set or the model."),
    (train, "--weight-decay 0", "Give it as --set weight_decay=VALUE."),
    (train, "--resume", "The same command resumes a run that was stopped."),
    (evaluate, "--modle a.keras", "no option --modle. Did you mean '--model'?"),
    (predict, "", "the following arguments are required: --model, --images."),
    (train, "unet", "unrecognized arguments: unet."),
    (train, "--o 3", "--o could match --output, --overfit, --output-stride."),
    # Values
    (analyze, "--model unet --memory inf", "`--memory` must be a positive number."),
    (analyze, "--model unet --memory 0", "`--memory` must be a positive number."),
    (train, "--model deeplabv5", "Received: 'deeplabv5'. Did you mean 'deeplab_v3'?"),
    (
        train,
        "--recipe finetuning",
        "must be one of v1, v2, v3, v3_plus, finetune, scratch, shapes, FILE.json.",
    ),
    (train, "--recipe nowhere.json", "`name` must be an existing file. Received: name='nowhere."),
    (train, "--epochs 1.5", "must be an integer of at least 1. Received: '1.5'."),
    (train, "--epochs 0", "must be an integer of at least 1. Received: '0'."),
    (train, "--learning-rate nan", "`learning_rate` must be a positive number"),
    (train, "--crop-size 1 2 3", "must be one or two numbers. Received: [1, 2, 3]"),
    (train, "--scales 1 1.5", "Give --test-scales for the final model, or --set scales=VALUE for"),
    (train, "--flip", "Give --test-flip for the final model, or --set flip=VALUE for the training"),
    (
        tune,
        "--minutes 9 --scales 1 1.5",
        "There is no option --scales. Give it as --set scales=VAL",
    ),
    (train, "--test-scales 1 1.0", "`test_scales` must be a list of distinct"),
    # Recipes
    (train, "--set powr=1", "Received: 'powr=1'. Did you mean 'power'?"),
    (train, "--epochs 2 --set epochs=3", "`epochs` is set twice: 2 and 3"),
    (train, "--epochs 2 --steps 3", "One of `steps` and `epochs` must be set"),
    (train, "--set model=8", "`model` must be a mapping of arguments. Received: model=8"),
    (train, "--set model={'decoder_fliters':64}", "Did you mean 'decoder_filters'?"),
    (train, "--model unet --set model={'num_classes':8}", "Received: model='num_classes'"),
    (
        train,
        "--weights own.keras --set model={'dropout':0.3}",
        "left out: own.keras is a whole deeplab_v3",
    ),
    (train, "--model unet --output-stride 8", "unet has no output stride to choose"),
    (train, "--overfit 3 --set momentum=0.8 --steps-per-epoch 3", "momentum, steps_per_epoch."),
    (
        train,
        "--overfit 3 --output x --test-scales 1 --test-flip",
        "output, test_flip, test_scales.",
    ),
    (train, "--overfit 3 --distribute multi_worker", "Received: distribute."),
    (tune, "--minutes 9 --steps-per-epoch 3", "There is no option --steps-per-epoch."),
    (audit, "--data two", "no option --data. Give the data alone: keras-deeplab audit DATA."),
    (audit, "two --backbone vgg16", "`--backbone` must be left out without --model. Received: --b"),
    (audit, "two --crop-size 8", "`--crop-size` must be left out without --model. Received: --cro"),
    (audit, "two --batch-size 2", "`--batch-size` must be left out without --model. Received: --b"),
    # Files
    (train, "--weights nowhere.keras", "nowhere.keras: there is no such file"),
    (train, "--data bad", "there is no readable label map"),
    (train, "--overfit 3 --data untrained", "`split` must be one of ('val',). Received: split='tr"),
    (audit, "untrained --model unet", "`--model` must be left out without train. Received"),
    (audit, "two --splits val --model unet", "`--model` must be left out without train. Received"),
    (train_classifier, "--data damaged", "train/x/a.png"),
    (train_classifier, "--data classes --dropout 1", "`dropout`"),
    (train_classifier, "--data two", "`fit` and `keras-deeplab train` take label maps"),
    (evaluate, "--model own.keras --crf v3", "must be v1, v2 or a JSON file of constants"),
    (evaluate, "--model own.keras --data two --split test", "test"),
    (evaluate, "--model own.keras --data two", "own.keras predicts 3 classes, but two has 2: "),
    (evaluate, "--model pixels.keras --data two --output-stride 8", "`--output-stride` must be le"),
    (evaluate, "--model spp.keras --data two --output-stride 8", "`--output-stride` must be left"),
    (predict, "--model own.keras --images none.png", "`images` must be existing regular files"),
    (predict, "--model own.keras --images two --window 0", "must be an integer of at least 1."),
    (
        predict,
        "--model own.keras --images two/val/images --window 8 --overlap 8",
        "`overlap` must be below the window's sides, 8",
    ),
    (predict, "--model own.keras --images broken.mp4", "`images` must be videos that can be dec"),
    (export, "--model own.keras --output x --data two", "predicts 3 classes, but two has 2: "),
    (export, "--model own.keras --output two", "a new folder or a SavedModel"),
    (export, "--model cut.keras --output x", "error: cut.keras: it is damaged or cut off"),
    (export, "--model run --output x", "run: it is the folder of a run: give run/model.keras"),
    (compare, "", "the following arguments are required: runs."),
    (compare, "two", "two is not the folder of a run: it has no run.json."),
    (compare, "nowhere", "nowhere is not the folder of a run: it has no run.json."),
    (compare, "cut", "run.json is not readable as JSON"),
    (compare, "scoreless", "metrics.json must hold the scores of a run. Restore it, "),
    (demo, "", "the following arguments are required: --model."),
    (demo, "--model own.keras --port 70000", "an integer from 0 to 65535. Received: '70000'."),
    (demo, "--model own.keras --host 203.0.113.7", "an address and a port of this machine"),
    (demo, "--model cut.keras --port 0", "error: cut.keras: it is damaged or cut off"),
    (demo, "--model nowhere.keras --port 0", "nowhere.keras: there is no such file"),
    (convert, "own.keras --output x.h5", "`--output` must be a path that ends in .keras"),
    (convert, "own.keras --output own.keras", "Use --overwrite"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_pair):
    """Files that the commands in the table name."""
    root = tmp_path_factory.mktemp("bad")
    for split in ("train", "val"):
        for name in "xy":
            (root / "damaged" / split / name).mkdir(parents=True)
            (root / "damaged" / split / name / "a.png").write_bytes(b"no picture")
            (root / "classes" / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(root / "classes" / split / name / "a.png")
        write_pair(root / "two", split, "a", np.eye(8), np.zeros((8, 8, 3), np.uint8))
    shutil.copytree(root / "two" / "val", root / "untrained" / "val")
    (root / "bad" / "train" / "images").mkdir(parents=True)
    (root / "bad" / "train" / "images" / "a.png").write_bytes(b"no picture")
    small = {"aspp_filters": 8, "head_filters": None, "aspp_rates": ()}
    model = keras_deeplab.DeepLabV3(3, tiny(), **small)
    model.save(root / "own.keras")
    inputs = keras.Input((None, None, 3))
    keras.Model(inputs, keras.layers.Conv2D(2, 1)(inputs)).save(root / "pixels.keras")
    spp = {"backbone": tiny(), "levels": (1,), "dense": (4,), "input_shape": (None, None, 3)}
    keras_deeplab.SPPNet(2, **spp).save(root / "spp.keras")
    (root / "cut.keras").write_bytes((root / "own.keras").read_bytes()[:5000])
    (root / "broken.mp4").write_bytes(b"no video")
    for name, text in (("cut", '{"seed": '), ("scoreless", "{}")):
        (root / name).mkdir()
        (root / name / "run.json").write_text(text)
    (root / "scoreless" / "metrics.json").write_text("{}")
    (root / "run").mkdir()
    (root / "run" / "model.keras").write_bytes(b"")
    return root


@pytest.mark.parametrize("command, arguments, message", BAD)
def test_a_mistake_is_one_line(command, arguments, message, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    assert message in refused(command, arguments, capsys)
    assert sorted(folder.rglob("*")) == before


def test_a_file_that_breaks_after_the_audit_is_one_line(
    folder, tmp_path, write_pair, monkeypatch, capsys
):
    _, label = write_pair(tmp_path / "data", "val", "a", np.eye(8))
    source = keras_deeplab.data.open_source(tmp_path / "data")
    keras_deeplab.data.audit(source)
    label.write_bytes(b"no picture")
    monkeypatch.setattr(keras_deeplab.data, "open_source", lambda _: source)
    monkeypatch.setattr(keras_deeplab.data, "audit", lambda *_: None)
    arguments = f"--model {folder / 'pixels.keras'} --data data --output {tmp_path / 'scores'}"
    message = refused(evaluate, arguments, capsys)
    assert "val/labels/a.png: unreadable file: " in message


def test_a_missing_tensorboard_is_an_error_before_the_data_is_read(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = refused(train, "--tensorboard --data nowhere", capsys)
    assert message.endswith("pip install keras_deeplab[tensorboard]\n")
    message = refused(demo, "--model nowhere.keras", capsys)
    assert message.endswith(
        "the demo needs starlette and uvicorn: pip install keras_deeplab[demo]\n"
    )


@pytest.mark.parametrize(
    "fault", [MemoryError("too large"), tf.errors.ResourceExhaustedError(None, None, "too large")]
)
def test_memory_that_does_not_suffice(fault, capsys):
    @options.command(options.Parser)
    def main(_):
        raise fault

    assert main([]) == 2
    assert re.fullmatch("error: .*too large.*\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ("--model DeepLabV3+", "deeplab_v3_plus"),
        ("--recipe V3+", "v3_plus"),
        ("--distribute multi-worker", "multi_worker"),
    ],
)
def test_spellings_of_values(arguments, expected):
    parsed = vars(train.parser().parse_args(arguments.split()))
    assert parsed[arguments.split()[0].strip("-").replace("-", "_")] == expected


def test_what_follows_two_dashes_is_no_option():
    parsed = convert.parser().parse_args(["--output", "b.keras", "--", "--lr"])
    assert parsed.weights == "--lr"


def test_analyze_names_options_that_do_not_fit_the_model(tmp_path, capsys):
    inputs = keras.Input((32, 32, 3))
    keras.Model(inputs, keras.layers.Conv2D(2, 3)(inputs)).save(tmp_path / "fixed.keras")
    vectors = keras.Input((7,))
    keras.Model(vectors, keras.layers.Dense(2)(vectors)).save(tmp_path / "vectors.keras")
    for arguments, message in (
        ("fixed.keras --size 99", "`--size` must be left out, or the model's own 32x32."),
        ("fixed.keras --backbone resnet50", "`--backbone` must be left out: "),
        ("vectors.keras", "`--model` must be a network on images."),
    ):
        found = refused(analyze, f"--model {tmp_path}/{arguments}", capsys)
        assert message in found


def test_an_interrupted_command_is_one_line(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(keras_deeplab.data, "open_source", interrupted)
    assert audit.main([str(tmp_path)]) == 130
    assert capsys.readouterr().err == "\nInterrupted.\n"
