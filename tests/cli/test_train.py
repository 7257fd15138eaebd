"""The command `train`: what its options become, and what it prints."""

from __future__ import annotations

import inspect
import json

import pytest
from models.networks import calibrated
from trainer import tiny_run

import keras_deeplab
from keras_deeplab import recipes
from keras_deeplab.cli import train
from keras_deeplab.diagnosis import LEARNING_RATE, OverfitReport
from keras_deeplab.graph.network import all_norms


@pytest.fixture(autouse=True, scope="module")
def small():
    """A few images and a small network."""
    with pytest.MonkeyPatch.context() as patch:
        tiny_run.small(patch)
        yield


@pytest.fixture
def fitted(monkeypatch):
    """The arguments that the command gives to `fit`, in place of training."""

    def call(text):
        arguments = {}

        def fit(model, source, recipe, **more):
            arguments.update(more, model=model, source=source, recipe=recipe)
            raise KeyboardInterrupt

        monkeypatch.setattr(keras_deeplab, "fit", fit)
        assert train.main(text.split()) == 130
        return arguments

    return call


@pytest.mark.slow
def test_defaults(fitted, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = fitted("")
    assert (found["source"], found["recipe"]) == ("shapes", recipes.get("shapes"))
    assert (found["model"].name, found["model"].backbone) == ("deeplab_v3_plus", "mobilenet_v2")
    path = "runs/shapes-deeplab_v3_plus-mobilenet_v2"
    assert str(found["run_dir"]) == path
    assert f"Interrupted: run the same command again to resume {path}." in capsys.readouterr().out
    assert (found["test_scales"], found["test_flip"], found["seed"]) == (None, False, 0)
    (tmp_path / path).mkdir(parents=True)
    (tmp_path / path / "metrics.json").write_text("{}")
    assert str(fitted("")["run_dir"]) == f"{path}-2"
    found = fitted("--data photos --model unet")
    assert found["recipe"] == recipes.get("scratch", "unet")
    calibrated("v3_plus").save(tmp_path / "pretrained.keras")
    assert fitted("--data photos --weights pretrained.keras")["recipe"].name == "finetune"
    assert str(found["run_dir"]) == "runs/photos-unet-own"
    assert fitted("--recipe v3_plus --backbone resnet50")["recipe"].weight_decay == 1e-4
    model = fitted("--set model={'dropout':0.3}")["recipe"].model
    assert model == {**recipes.get("shapes").model, "dropout": 0.3}


def test_options_of_the_recipe(fitted):
    found = fitted(
        "--recipe v3_plus --steps 70 --stage2-share 0.2 --crop-size 65 97 --batch-size 4 "
        "--learning-rate 0.01 --loss lovasz_softmax --class-weights median --output run "
        "--set power=0.5 color_jitter={'gamma':0.3} --set momentum=0.95 "
        "model={'dropout':0.3,'decoder_filters':64} --test-scales 1 1.5 --test-flip "
        "--steps-per-epoch 7"
    )
    changes = {"steps": 70, "stage2_share": 0.2, "crop_size": (65, 97), "batch_size": 4}
    changes |= {"learning_rate": 0.01, "loss": "lovasz_softmax", "class_weights": "median"}
    changes |= {"power": 0.5, "color_jitter": {"gamma": 0.3}, "momentum": 0.95}
    changes["model"] = {"dropout": 0.3, "decoder_filters": 64}
    assert found["recipe"] == recipes.get("v3_plus").replace(**changes)
    assert (found["test_scales"], found["test_flip"]) == ([1.0, 1.5], True)
    assert found["steps_per_epoch"] == 7


def test_options_change_the_recipe_of_a_file(fitted, tmp_path):
    stored = recipes.get("v3").replace(steps=70, model={"dropout": 0.3})
    (tmp_path / "run.json").write_text(json.dumps({"seed": 3, "recipe": stored.to_dict()}))
    found = fitted(f"--recipe {tmp_path}/run.json --epochs 2 --set model={{'aspp_filters':8}}")
    model = {"dropout": 0.3, "aspp_filters": 8}
    assert found["recipe"] == stored.replace(epochs=2, model=model)


@pytest.fixture
def overfitted(monkeypatch):
    """The arguments that the command gives to `overfit`, in place of running it."""
    arguments = {}
    signature = inspect.signature(keras_deeplab.overfit)

    def overfit(*given, **named):
        arguments.update(signature.bind(*given, **named).arguments)
        return OverfitReport(None, "", (3, 32, 24), {})

    monkeypatch.setattr(keras_deeplab, "overfit", overfit)
    return arguments


def test_overfitting_uses_what_is_set(overfitted, capsys):
    arguments = "--overfit 3 --loss dice --set learning_rate=0.002 batch_norm=freeze"
    assert train.main([*arguments.split(), "--image-scale", "0.5"]) == 0
    assert isinstance(overfitted["source"], keras_deeplab.data.Resized)
    assert "3 images of 24x32" in capsys.readouterr().out
    assert isinstance(overfitted["loss"], keras_deeplab.losses.Dice)
    assert float(overfitted["optimizer"].learning_rate) == pytest.approx(0.002)
    norms = all_norms(overfitted["model"])
    assert norms
    assert not any(norm.trainable for norm in norms.values())
    assert (overfitted["count"], overfitted["crop_size"]) == (3, None)


@pytest.mark.slow
def test_the_loss_counts_the_steps_of_the_optimizer_that_trains(overfitted):
    mining = "hard_pixel_mining(fraction=0.25, warmup_steps=2000)"
    assert train.main(["--overfit", "3", "--loss", mining]) == 0
    assert float(overfitted["optimizer"].learning_rate) < LEARNING_RATE  # it warms up
    overfitted["optimizer"].iterations.assign(1000)
    assert float(overfitted["loss"].current_fraction()) == pytest.approx(0.625)


@pytest.mark.slow
def test_overfitting_does_not_use_the_recipes_own_values(overfitted):
    assert train.main(["--overfit", "3", "--recipe", "v2", "--backbone", "mobilenet_v2"]) == 0
    assert overfitted["loss"] is None
    assert overfitted["model"].output_stride == 8
    assert all(norm.trainable for norm in all_norms(overfitted["model"]).values())
