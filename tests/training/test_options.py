"""The command lines: what is misspelt gets one line with what may be meant."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import training
from keras_deeplab.cli import (
    audit,
    convert,
    evaluate,
    export,
    main,
    options,
    predict,
    train,
    train_classifier,
)
from training import model_table
from training.benchmark import __main__ as benchmark

COMMANDS = (
    audit,
    benchmark,
    convert,
    evaluate,
    export,
    model_table,
    predict,
    train,
    train_classifier,
)


def refused(command, arguments, capsys):
    """The one line that a command ends with."""
    with pytest.raises(SystemExit) as ended:
        command.main(arguments.split())
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.endswith(" See --help.\n")
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_an_unknown_option_is_one_line_in_every_command(command, capsys):
    assert isinstance(command.parser(), options.Parser)
    assert "There is no option --zzz. See" in refused(command, "--zzz 3", capsys)


@pytest.mark.parametrize(
    "command, arguments, said",
    [
        (train, "--lr 0.1", "no option --lr. Did you mean --learning-rate?"),
        (train, "--lr=0.1", "no option --lr. Did you mean --learning-rate?"),
        (train, "-lr 0.1", "no option -lr. Did you mean --learning-rate?"),
        (train, "--bs 4", "Did you mean --batch-size?"),
        (train, "--crop_size 64", "Did you mean --crop-size?"),
        (train, "--Model unet", "Did you mean --model?"),
        (train, "--num-classes 3", "The number of classes is that of the data set"),
        (train, "--classes 3", "The number of classes is that of the data set"),
        (train_classifier, "--num_classes 3", "The number of classes is that of the data set"),
        (evaluate, "--num-classes 3", "The number of classes is that of the data set or the model"),
        (convert, "a.pth --output b.keras --num-classes 3", "Did you mean --classes?"),
        (train, "--weight-decay 0", "Give it as --set weight_decay=VALUE."),
        (train, "--optimiser sgd", "Give it as --set optimizer=VALUE."),
        (train, "--resume", "The same command resumes a run that was stopped."),
        (evaluate, "--modle a.keras", "no option --modle. Did you mean --model?"),
        (predict, "", "the following arguments are required: --model, --images."),
        (train, "unet", "unrecognized arguments: unet."),
        (train, "--epochs", "argument --epochs: expected one argument."),
        (train, "--o 3", "--o could match --output, --overfit, --output-stride."),
    ],
)
def test_an_option_of_another_name(command, arguments, said, capsys):
    assert said in refused(command, arguments, capsys)


@pytest.mark.parametrize(
    "command, arguments, said",
    [
        (train, "--model deeplabv5", "Received: 'deeplabv5'. Did you mean 'deeplab_v3'?"),
        (train, "--backbone ResNet51", "Received: 'ResNet51'. Did you mean 'resnet50'?"),
        (train_classifier, "--backbone vgg", "Did you mean 'vgg16'?"),
        (train, "--recipe finetuning", "must be one of v1, v2, v3, v3_plus, finetune, shapes."),
        (train, "--mixed-precision float61", "Did you mean 'float16'?"),
        (train, "--distribute multi", "must be one of none, mirrored, multi_worker."),
        (train, "--class-weights mean", "must be one of median, inverse."),
        (benchmark, "--models resnet-51", "Did you mean 'resnet50'?"),
        (train, "--epochs 1.5", "must be an integer of at least 1. Received: '1.5'."),
        (train, "--epochs 0", "must be an integer of at least 1. Received: '0'."),
        (train, "--learning-rate -1", "must be a positive number. Received: '-1'."),
        (train, "--learning-rate fast", "must be a positive number. Received: 'fast'."),
        (train, "--learning-rate nan", "must be a positive number. Received: 'nan'."),
        (train, "--crop-size 512x512", "must be an integer of at least 1. Received: '512x512'."),
        (train, "--crop-size 1 2 3", "must be one or two numbers. Received: [1, 2, 3]."),
        (benchmark, "--size 0", "must be an integer of at least 1. Received: '0'."),
        (evaluate, "--model a.keras --scales 0", "must be a positive number. Received: '0'."),
    ],
)
def test_a_value_that_there_is_not(command, arguments, said, capsys):
    assert said in refused(command, arguments, capsys)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ("--model DeepLabV3+", "deeplab_v3_plus"),
        ("--model deeplabv3plus", "deeplab_v3_plus"),
        ("--model DeepLabV3Plus", "deeplab_v3_plus"),
        ("--model DEEPLAB-V2", "deeplab_v2"),
        ("--model U-Net", "unet"),
        ("--backbone ResNet50", "resnet50"),
        ("--backbone mobilenetv2", "mobilenet_v2"),
        ("--backbone MobileNet-V2", "mobilenet_v2"),
        ("--recipe V3+", "v3_plus"),
        ("--mixed-precision BFloat16", "bfloat16"),
        ("--distribute multi-worker", "multi_worker"),
        ("--class-weights Median", "median"),
        ("--crop-size 512", [512, 512]),
        ("--crop-size 384 512", [384, 512]),
    ],
)
def test_spellings_of_values(arguments, expected):
    parsed = vars(train.parser().parse_args(arguments.split()))
    assert parsed[arguments.split()[0].strip("-").replace("-", "_")] == expected


def test_sizes_of_the_benchmark():
    assert benchmark.parser().parse_args(["--size", "64"]).size == [64, 64]
    assert benchmark.parser().parse_args([]).size == (512, 512)


def test_what_follows_two_dashes_is_no_option():
    parsed = convert.parser().parse_args(["--output", "b.keras", "--", "--lr"])
    assert parsed.weights == "--lr"


def test_the_first_argument_names_the_command(monkeypatch, capsys):
    assert {module for module, _ in main.COMMANDS.values()} <= {c.__name__ for c in COMMANDS}
    monkeypatch.setattr(evaluate, "main", lambda argv: print("evaluate", *argv) or 0)
    assert main.main(["evaluate", "--model", "a.keras"]) == 0
    assert capsys.readouterr().out == "evaluate --model a.keras\n"
    assert "Did you mean 'evaluate'?" in refused(main, "evalute --model a.keras", capsys)
    for arguments in ([], ["--help"]):
        with pytest.raises(SystemExit, match="0"):
            main.main(arguments)
        assert "predict label maps of images" in capsys.readouterr().out


FILES = ("predict", "audit", "convert", "evaluate", "export", "train", "train_classifier")


@pytest.mark.parametrize("how", ["file", "module"])
@pytest.mark.parametrize(
    "name", [FILES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in FILES[1:])]
)
def test_a_command_runs_in_a_clone(name, how, tmp_path):
    path = Path(training.__file__).with_name(f"{name}.py")
    run = [str(path)] if how == "file" else ["-m", f"training.{name}"]
    done = subprocess.run(
        [sys.executable, *run, "--lr", "1"],
        cwd=tmp_path if how == "file" else path.parents[1],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("error: There is no option --lr.")
    assert "Error" not in done.stderr.replace("cuInit: INTERNAL: CUDA error", "")
