"""What the command line says of the recipe is used, or refused before anything is trained."""

from __future__ import annotations

import importlib.util

import keras
import pytest

from keras_deeplab import data, recipes
from training import building, train

pytestmark = pytest.mark.usefixtures("small")

SHORT = ["--epochs", "1", "--batch-size", "5", "--crop-size", "48", "64"]


@pytest.mark.parametrize("policy", ["freeze", "freeze_statistics"])
def test_batch_norms_are_not_frozen_before_they_saw_anything(policy, tmp_path, capsys):
    arguments = [*SHORT, "--set", f"batch_norm={policy}", "--output", str(tmp_path / "run")]
    assert train.main(arguments) == 2
    said = capsys.readouterr()
    assert f"The recipe finetune has batch_norm '{policy}', which needs trained" in said.err
    assert "give --weights, or --set batch_norm=train." in said.err
    assert "Epoch 1" not in said.out


def test_a_network_without_batch_norms_or_with_weights_may_have_them_frozen():
    plain = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 1)])
    building.check_frozen_norms(plain, recipes.find("v2"), None)
    plain.add(keras.layers.BatchNormalization())
    building.check_frozen_norms(plain, recipes.find("v2"), "imagenet")
    building.check_frozen_norms(plain, recipes.find("v3"), None)
    with pytest.raises(ValueError, match="v2 has batch_norm 'freeze'"):
        building.check_frozen_norms(plain, recipes.find("v2"), None)


def chosen(*arguments):
    options = train.parser().parse_args(list(arguments))
    building.start(options)
    return train.chosen_recipe(options, data.audit(data.Shapes(train=2, val=0)))


def test_arguments_of_the_model_join_those_of_the_recipe():
    own = recipes.find("finetune").model
    assert chosen("--set", "model={'dropout': 0.3}").model == {**own, "dropout": 0.3}
    changed = chosen("--set", "model={'detail_layer': None, 'decoder_filters': 64}")
    assert changed.model == {"detail_layer": None, "decoder_filters": 64}
    assert chosen("--model", "deeplab_v3").model == own  # those it lacks are left out


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["model={'decoder_fliters': 64}"], r"v3_plus has no argument 'decoder_fliters'; there is"),
        (["model={'decoder_fliters': 64}"], r"decoder_filters.*\.$"),
        (["model={'decoder_filters': 8}", "--model", "unet"], "unet has no argument 'decoder_fil"),
        (["model={'xyz': 1}", "--model", "unet"], "there is filters, depth, skip_layers"),
        (["model={'output_stride': 8}"], "'output_stride' is said by --output-stride"),
        (["model={'num_classes': 8}"], "'num_classes' is said by the data"),
        (["model=8"], "`model` must be a mapping of arguments, received 8"),
    ],
)
def test_arguments_that_the_model_lacks_are_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        chosen("--set", *arguments)


def test_a_missing_tensorboard_is_said_before_anything_is_read(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert train.main(["--tensorboard", "--data", "nowhere"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert said.err.endswith("pip install keras_deeplab[tensorboard]\n")
    assert said.err.count("\n") == 1
    assert said.out == ""
