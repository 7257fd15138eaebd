from __future__ import annotations

import json

import pytest

from keras_deeplab import recipes
from keras_deeplab.batch_norm import momentum_for


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
        first, second = recipe.stages()
        assert (first.output_stride, first.batch_norm, first.learning_rate) == (16, "train", 0.007)
        assert (second.output_stride, second.batch_norm) == (8, "freeze")
        assert second.learning_rate == pytest.approx(0.001)
        assert momentum_for(first.steps, first.batch_norm_memory) == pytest.approx(0.9997)
        assert second.steps == 30_000
        assert first.classifier_learning_rate == 1
    assert v3.scale_step is None
    assert plus.scale_step == 0.25


def test_a_recipe_survives_json():
    for recipe in [*recipes.RECIPES.values(), recipes.V3.replace(model={"aspp_rates": (6, 12)})]:
        values = recipe.to_dict()
        assert json.loads(json.dumps(values)) == values
        assert recipes.Recipe(**values).to_dict() == values
    shown = str(recipes.V3.replace(flip=False, epochs=7))
    assert shown.startswith("Recipe v3:\n")
    assert "  flip: False" in shown
    assert "  epochs: 7" in shown
    assert "  steps" not in shown


def test_what_depends_on_the_length_is_a_share_of_it():
    recipe = recipes.find("v3_plus")
    shorter = recipe.replace(steps=6_000, learning_rate=0.0035)
    first, second = shorter.stages()
    assert (first.steps, second.steps) == (6_000, 6_000)
    assert second.learning_rate == pytest.approx(5e-4)
    assert [stage.epochs for stage in recipe.replace(epochs=40).stages()] == [40, 40]
    half = recipe.replace(epochs=5, stage2_share=0.5, stage2_learning_rate=0.2)
    assert [stage.epochs for stage in half.stages()] == [5, 2]
    assert half.stages()[1].learning_rate == pytest.approx(0.0014)
    assert [stage.steps for stage in recipe.replace(stage2_share=1e-9).stages()] == [30_000, 1]
    assert len(recipe.replace(stage2_share=0).stages()) == 1
    assert momentum_for(5_000, recipe.batch_norm_memory) == pytest.approx(1 - 6 * 0.0003)
    assert momentum_for(20, recipe.batch_norm_memory) == 0.9
    assert momentum_for(90_000, recipe.batch_norm_memory) == 0.9997  # Cityscapes


def test_a_replaced_value_changes_no_other():
    for recipe in recipes.RECIPES.values():
        for changes in (
            {"epochs": 7},
            {"learning_rate": 0.5},
            {"class_weights": "inverse"},
            {"stage2_share": 0.5},
        ):
            found = recipe.replace(**changes).to_dict()
            assert found == {**recipe.to_dict(), **changes}
        first, second = recipe.replace(stage2_share=0.5).stages()
        assert second.learning_rate <= first.learning_rate / 6.99
        assert (second.batch_norm, second.warmup_share) == ("freeze", 0)


def test_some_networks_have_values_of_their_own():
    assert recipes.find("v2", "vgg16").learning_rate == 1e-3
    assert recipes.find("v2", "resnet101") == recipes.find("v2")
    for name in ("resnet50", "resnet101_beta"):
        assert recipes.find("v3_plus", name).weight_decay == 1e-4
    assert recipes.find("v3_plus", "xception65") == recipes.find("v3_plus", None)
    for name in ("finetune", "shapes"):
        for network in ("vgg16", "unet"):
            assert recipes.find(name, network).learning_rate == 3e-4
    assert recipes.find("shapes", "mobilenet_v2").learning_rate == 6e-3


def test_steps_and_epochs():
    recipe = recipes.find("v3")
    assert recipe.replace(epochs=7).num_epochs(10) == 7
    assert recipe.replace(steps=95).num_epochs(10) == 10  # whole epochs


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"optimizer": "adam"}, r"`optimizer` must be one of .* Received: optimizer='adam'"),
        ({"batch_norm": "off"}, r"`batch_norm` must be one of .* Received: batch_norm='off'"),
        ({"learning_rate": 0}, "`learning_rate` must be a positive number. Received: .*=0"),
        ({"learning_rate": None}, "`learning_rate` must be a positive number"),
        ({"batch_size": 2.5}, "`batch_size` must be a positive integer. Received: .*=2.5"),
        ({"weight_decay": float("nan")}, "`weight_decay` must be a non-negative number"),
        ({"steps": None}, "`steps` must be given where `epochs` is None. Received: steps=None"),
        ({"warm_up": 5}, "A recipe has no value `warm_up`"),
        ({"scales": "0.5 2"}, "`scales` must be a list of numbers. Received: scales='0.5 2'"),
        ({"scales": (2, 1)}, r"`scales` must be two positive .* scales=\(2.0, 1.0\)"),
        ({"crop_size": 321}, "`crop_size` must be a list of positive integers"),
        ({"class_focus": "x"}, "`class_focus` must be .* Received: class_focus='x'"),
        ({"color_jitter": {"hue": 1}}, "`color_jitter` must be"),
        ({"warmup_share": 1}, r"`warmup_share` must be a number in \[0, 1\)"),
        ({"flip": "no"}, "`flip` must be one of True, False. Received: flip='no'"),
        ({"model": 5}, "`model` must be a mapping of arguments. Received: model=5"),
    ],
)
def test_bad_values_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        recipes.find("v3").replace(**changes)


def test_an_unknown_recipe_lists_those_there_are():
    with pytest.raises(ValueError, match=r"one of .*v3_plus.*finetune.*Received: name='v4'"):
        recipes.find("v4")
