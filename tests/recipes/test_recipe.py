from __future__ import annotations

import json

import pytest

from keras_deeplab import recipes


def test_the_papers_values():
    v1, v2, v3, plus = (recipes.find(name) for name in ("v1", "v2", "v3", "v3_plus"))
    shared = ("optimizer", "momentum", "learning_rate", "weight_decay", "batch_size", "steps")
    values = {
        recipe.name: [getattr(recipe, key) for key in shared] for recipe in (v1, v2, v3, plus)
    }
    assert values == {
        "v1": ["sgd", 0.9, 1e-3, 5e-4, 20, 6_000],
        "v2": ["sgd", 0.9, 2.5e-4, 5e-4, 10, 20_000],
        "v3": ["sgd", 0.9, 0.007, 1e-4, 16, 30_000],
        "v3_plus": ["sgd", 0.9, 0.007, 4e-5, 16, 30_000],
    }
    assert [recipe.crop_size for recipe in (v1, v2, v3, plus)] == [(321, 321)] * 2 + [
        (513, 513)
    ] * 2
    assert [recipe.schedule for recipe in (v1, v2, v3, plus)] == ["step", "poly", "poly", "poly"]
    for recipe in (v1, v2):
        assert recipe.classifier_learning_rate == 10
        assert recipe.classifier_bias_learning_rate == 20
        assert recipe.loss == "cross_entropy(stride=8)"
        assert recipe.output_stride == 8
        assert len(recipe.stages()) == 1
    assert v2.batch_norm == "freeze"
    assert v2.multi_scale == (0.5, 0.75, 1.0)
    for recipe in (v3, plus):
        first, fine = recipe.stages()
        assert (first.output_stride, first.batch_norm, first.learning_rate) == (16, "train", 0.007)
        assert (fine.output_stride, fine.batch_norm, fine.learning_rate) == (8, "freeze", 0.001)
        assert first.batch_norm_momentum == 0.9997
        assert fine.steps == 30_000
        assert first.classifier_learning_rate == 1
    assert v3.scale_step is None
    assert plus.scale_step == 0.25


def test_a_recipe_survives_json():
    for recipe in recipes.RECIPES.values():
        assert recipes.Recipe(**json.loads(json.dumps(recipe.to_dict()))) == recipe
        assert f"Recipe {recipe.name}:" in str(recipe)
    assert "  flip: False" in str(recipes.find("v3").replace(flip=False))


def test_what_is_kept_equals_what_comes_back_from_a_file():
    recipe = recipes.find("v3").replace(model={"aspp_rates": (6, 12, 18)})
    kept = recipe.to_dict()
    assert json.loads(json.dumps(kept)) == kept


def test_batch_norms_memory_is_for_the_recipes_steps():
    recipe = recipes.find("v3_plus")
    assert recipe.replace(steps=5_000).batch_norm_momentum == pytest.approx(1 - 6 * 0.0003)
    assert recipe.replace(steps=20).batch_norm_momentum == 0.9
    assert recipe.replace(epochs=10).batch_norm_momentum is None
    assert recipe.replace(steps=90_000).batch_norm_momentum == pytest.approx(0.9997)  # Cityscapes
    given = recipe.replace(steps=5_000, batch_norm_momentum=0.9997)
    assert given.batch_norm_momentum == 0.9997
    assert recipes.find("finetune").replace(steps=100).batch_norm_momentum is None


def test_the_second_stage_is_slower():
    for recipe in recipes.RECIPES.values():
        first, fine = recipe.replace(fine_epochs=2).stages()
        assert fine.learning_rate <= first.learning_rate / 7
        assert fine.batch_norm == "freeze"
    assert recipes.find("v3").stages()[1].learning_rate == 1e-3


def test_the_second_stage_goes_with_the_first():
    recipe = recipes.find("v3_plus")
    shorter = recipe.replace(steps=6_000, learning_rate=0.0035)
    assert (shorter.fine_steps, shorter.fine_learning_rate) == (6_000, pytest.approx(5e-4))
    by_epochs = recipe.replace(epochs=40)
    assert (by_epochs.fine_steps, by_epochs.fine_epochs) == (0, 40)
    given = recipe.replace(epochs=40, learning_rate=0.001, fine_steps=5, fine_learning_rate=2e-3)
    assert (given.fine_steps, given.fine_epochs, given.fine_learning_rate) == (5, 0, 2e-3)
    assert recipe.replace(steps=90_000, fine_steps=0).fine_steps == 0
    assert recipes.find("finetune").replace(steps=10).fine_steps == 0


def test_class_weights_that_are_asked_for_are_whole():
    recipe = recipes.find("finetune")
    assert (recipe.class_weights, recipe.class_weights_power) == ("median", 0.25)
    assert recipe.replace(class_weights="inverse").class_weights_power == 1
    given = recipe.replace(class_weights="inverse", class_weights_power=0.5)
    assert given.class_weights_power == 0.5
    assert recipe.replace(class_weights=None).class_weights_power == 0.25


def test_some_backbones_are_trained_otherwise():
    assert recipes.find("v2", "vgg16").learning_rate == 1e-3
    assert recipes.find("v2", "resnet101") == recipes.find("v2")
    for name in ("resnet50", "resnet101_beta"):
        assert recipes.find("v3_plus", name).weight_decay == 1e-4
    assert recipes.find("v3_plus", "xception65") == recipes.find("v3_plus", None)


def test_steps_and_epochs_take_each_others_place():
    recipe = recipes.find("v3")
    by_epochs = recipe.replace(epochs=7, fine_epochs=2)
    assert (by_epochs.steps, by_epochs.fine_steps) == (None, 0)
    assert by_epochs.total_steps(10) == 70
    assert [stage.total_steps(10) for stage in by_epochs.stages()] == [70, 20]
    assert by_epochs.replace(steps=95).total_steps(10) == 100  # whole epochs
    assert by_epochs.replace(steps=95).epochs is None
    assert len(recipe.replace(fine_steps=0).stages()) == 1


@pytest.mark.parametrize(
    "changes,said",
    [
        ({"optimizer": "adam"}, r"`optimizer` must be one of .* received 'adam'"),
        ({"batch_norm": "off"}, r"`batch_norm` must be one of .* received 'off'"),
        ({"learning_rate": 0}, "`learning_rate` must be above 0, received 0"),
        ({"batch_size": 2.5}, "`batch_size` must be an integer from 1, received 2.5"),
        ({"weight_decay": float("nan")}, "`weight_decay` must be at least 0, received nan"),
        ({"steps": None}, "One of `steps` and `epochs` must be given, received None and None"),
        ({"steps": 5, "epochs": 5}, "One of `steps` and `epochs`"),
        ({"warm_up": 5}, "A recipe has no `warm_up`"),
        ({"scales": 0.5}, "`scales` must be a list of numbers, received 0.5"),
        ({"scales": "0.5 2"}, "`scales` must be a list of numbers, received '0.5 2'"),
        ({"scales": (2, 1)}, r"`scales` must be two positive numbers.*received \(2, 1\)"),
        ({"crop_size": 321}, "`crop_size` must be a list of numbers, received 321"),
        ({"class_focus": "x"}, "`class_focus` must be .*. Received: class_focus='x'"),
        ({"color_jitter": {"hue": 1}}, "`color_jitter` must be"),
        ({"batch_norm_momentum": 1}, r"`batch_norm_momentum` must be in \[0, 1\), received 1"),
        ({"learning_rate": "fast"}, "`learning_rate` must be above 0, received 'fast'"),
        ({"steps": "many"}, "`steps` must be an integer from 1, received 'many'"),
        ({"flip": "no"}, r"`flip` must be one of \(True, False\), received 'no'"),
        ({"class_weights_power": 0}, "`class_weights_power` must be above 0, received 0"),
        ({"fine_output_stride": 0}, "`fine_output_stride` must be an integer from 1, received 0"),
        ({"model": 5}, "`model` must be a mapping of arguments, received 5"),
    ],
)
def test_bad_values_are_named(changes, said):
    with pytest.raises(ValueError, match=said):
        recipes.find("v3").replace(**changes)


def test_an_unknown_recipe_lists_those_there_are():
    with pytest.raises(ValueError, match=r"one of .*v3_plus.*finetune.*received 'v4'"):
        recipes.find("v4")
