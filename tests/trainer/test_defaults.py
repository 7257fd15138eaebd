"""The values that a recipe leaves to the model and the data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from models.networks import tiny
from trainer.test_fitting import RECIPE, plain, small

from keras_deeplab import MultiScale, UNet, data, recipes
from keras_deeplab.trainer import ModelBuilder, defaults


@pytest.mark.parametrize(
    "model, network",
    [
        (small(), None),
        (UNet(6, tiny()), None),
        (UNet(6, depth=1, filters=4), "unet"),
        (MultiScale(UNet(6, depth=1, filters=4)), "unet"),
        (ModelBuilder("unet", backbone="vgg16"), "vgg16"),
        (plain(), None),
    ],
)
def test_a_recipe_by_name_is_that_for_the_network(model, network):
    found = defaults.recipe_for(model, "finetune")
    assert found == recipes.get("finetune", network)


@pytest.mark.parametrize("loss", ["dice", "cross_entropy + dice"])
def test_class_weights_that_no_loss_takes_are_left_out(loss, logs):
    recipe = recipes.get("finetune").replace(loss=loss)
    found = defaults.recipe_for(plain(), recipe)
    assert found.class_weights == ("median" if "+" in loss else None)
    assert ("dice takes no class weights" in logs.text) == ("+" not in loss)


def test_the_default_recipe_is_that_for_the_weights(tmp_path):
    model = UNet(2, depth=1, filters=4)
    model.save_weights(tmp_path / "start.weights.h5")
    started = ModelBuilder("unet", weights=tmp_path / "start.weights.h5")
    found = [defaults.recipe_for(one, None) for one in (ModelBuilder("unet"), started, model)]
    assert [recipe.name for recipe in found] == ["scratch", "finetune", "finetune"]


def test_the_crop_is_the_middle_of_the_sizes_and_never_large():
    part = data.audit(data.Shapes(train=40, val=4)).splits["train"]
    classes = data.Shapes().info.classes
    found = defaults.for_data(RECIPE.replace(crop_size=None), part, classes).crop_size
    assert all(64 <= side <= 112 for side in found)
    assert defaults.for_data(RECIPE, part, classes) is RECIPE


def test_the_rarer_half_of_the_classes_is_pasted():
    part = data.audit(data.Shapes(train=4, val=0)).splits["train"]
    part = replace(part, class_share=(0.5, 0.1, 0.0, 0.3, 0.04, 0.06))
    classes = data.Shapes().info.classes
    found = defaults.for_data(RECIPE.replace(copy_paste=0.5), part, classes)
    assert found.copy_paste_classes == (classes[4], classes[5])
    chosen = RECIPE.replace(copy_paste=0.5, copy_paste_classes=[classes[1]])
    assert defaults.for_data(chosen, part, classes) is chosen
    with pytest.raises(ValueError, match="`copy_paste_classes` .*'rnig'. Did you mean 'ring'?"):
        defaults.for_data(RECIPE.replace(copy_paste_classes=["rnig"]), part, classes)


def test_a_search_is_resumed_under_another_spelling_of_its_path():
    assert defaults.source_name("photos/") == defaults.source_name("photos") == "photos"
    assert defaults.source_name("hf://a/b/") == "hf://a/b/"
    assert defaults.source_name(data.Shapes()) == "Shapes"


def test_an_opened_folder_or_list_has_the_name_of_its_path(tmp_path, write_pair):
    write_pair(tmp_path, "train", "a", np.eye(4))
    (tmp_path / "pairs.csv").write_text("train/images/a.png,train/labels/a.png\n")
    for path in (tmp_path, tmp_path / "pairs.csv"):
        assert defaults.source_name(data.open_source(path)) == str(path)
