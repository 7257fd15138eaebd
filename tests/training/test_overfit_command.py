"""`train --overfit` uses what it is told, and refuses what it cannot use."""

from __future__ import annotations

import re

import pytest

import keras_deeplab
from keras_deeplab.batch_norm import all_norms
from keras_deeplab.diagnosis import LEARNING_RATE
from training import train

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture
def called(monkeypatch):
    """What the command gives to `keras_deeplab.overfit`, in place of running it."""
    arguments = {}

    class Report:
        fits = True

    def overfit(model, source, **more):
        arguments.update(more, model=model)
        return Report()

    monkeypatch.setattr(keras_deeplab, "overfit", overfit)
    return arguments


def test_it_learns_an_image_by_heart(capsys):
    mining = ["--loss", "cross_entropy + 0.1 * hard_pixel_mining(fraction=0.5, warmup_steps=50)"]
    assert train.main(["--overfit", "1", "--crop-size", "24", "32", *mining]) == 0
    said = capsys.readouterr().out
    assert re.search(r"on 1 images of 32x24 after \d+ steps, .*: the model fits them", said)


@pytest.mark.parametrize(
    "said",
    [
        "--loss dice --learning-rate 0.002 --set batch_norm=freeze",
        "--set loss=dice learning_rate=0.002 batch_norm=freeze",
    ],
)
def test_what_is_given_in_either_form_is_used(called, said):
    assert train.main(["--overfit", "3", *said.split()]) == 0
    settings = called["compile"]
    assert isinstance(settings["loss"], keras_deeplab.losses.Dice)
    assert float(settings["optimizer"].learning_rate) == pytest.approx(0.002)
    norms = all_norms(called["model"])
    assert norms
    assert not any(norm.trainable for norm in norms.values())
    assert (called["count"], called["crop_size"]) == (3, None)


def test_the_loss_counts_the_steps_of_the_optimizer_that_trains(called):
    mining = "hard_pixel_mining(fraction=0.25, warmup_steps=2000)"
    assert train.main(["--overfit", "3", "--loss", mining]) == 0
    settings = called["compile"]
    assert float(settings["optimizer"].learning_rate) < LEARNING_RATE  # it warms up
    settings["optimizer"].iterations.assign(1000)
    assert float(settings["loss"].current_fraction()) == pytest.approx(0.625)
    assert all(norm.trainable for norm in all_norms(called["model"]).values())


def test_the_recipes_own_values_are_for_a_run(called):
    assert train.main(["--overfit", "3", "--recipe", "v2", "--backbone", "mobilenet_v2"]) == 0
    assert set(called["compile"]) == {"optimizer"}
    assert called["model"].output_stride == 8
    assert all(norm.trainable for norm in all_norms(called["model"]).values())


@pytest.mark.parametrize(
    "said, name",
    [
        ("--class-weights median", "class_weights"),
        ("--set class_weights=median", "class_weights"),
        ("--steps-per-epoch 3 --epochs 2", "epochs, steps_per_epoch"),
        ("--set multi_scale=(0.5,1.0) momentum=0.8", "momentum, multi_scale"),
    ],
)
def test_what_has_no_effect_is_refused(called, said, name, capsys):
    assert train.main(["--overfit", "3", *said.split()]) == 2
    error = capsys.readouterr().err
    assert "--overfit takes batch_norm, crop_size, learning_rate, loss, model, output_" in error
    assert f"of a recipe; received {name}, which would have no effect." in error
    assert not called
