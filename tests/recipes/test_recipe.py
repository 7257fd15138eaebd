from __future__ import annotations

import json

import numpy as np
import pytest

from keras_deeplab import recipes
from keras_deeplab.batch_norm import momentum_for
from keras_deeplab.data.augmentation.augmenting import CHECKS

VALUES = (
    "learning_rate weight_decay batch_size steps schedule output_stride classifier_lr_multiplier"
)
CAFFE = {"classifier_bias_lr_multiplier": 20, "loss": "cross_entropy(stride=8)"}
BATCH_NORM = {"scale_step": None, "batch_norm": "train"}


@pytest.mark.parametrize(
    "name, values, crop, more",
    [
        ("v1", [1e-3, 5e-4, 20, 6_000, "step", 8, 10], 321, CAFFE),
        ("v2", [2.5e-4, 5e-4, 10, 20_000, "poly", 8, 10], 321, {**CAFFE, "batch_norm": "freeze"}),
        ("v3", [0.007, 1e-4, 16, 30_000, "poly", 16, 1], 513, BATCH_NORM),
        ("v3_plus", [0.007, 4e-5, 16, 30_000, "poly", 16, 1], 513, {"scale_step": 0.25}),
    ],
)
def test_the_papers_values(name, values, crop, more):
    recipe = recipes.get(name)
    assert [getattr(recipe, key) for key in VALUES.split()] == values
    assert (recipe.crop_size, recipe.optimizer, recipe.momentum) == ((crop, crop), "sgd", 0.9)
    assert {key: getattr(recipe, key) for key in more} == more
    first, *others = recipe.stages()
    assert len(others) == (name in ("v3", "v3_plus"))
    for second in others:
        assert (second.output_stride, second.batch_norm, second.steps) == (8, "freeze", 30_000)
        assert second.learning_rate == pytest.approx(0.001)
        assert momentum_for(first.steps, first.batch_norm_memory) == pytest.approx(0.9997)


def test_a_recipe_survives_json():
    for recipe in [
        *recipes.RECIPES.values(),
        recipes.get("v3").replace(model={"aspp_rates": (6, 12)}),
        recipes.get("v3").replace(rotation=[-10, 10], copy_paste=0.5, copy_paste_classes=["car"]),
        recipes.get("v3").replace(
            model={"aspp_filters": np.int64(8)}, steps=np.int32(7), color_jitter=np.float32(0.25)
        ),
    ]:
        values = recipe.to_dict()
        assert json.loads(json.dumps(values)) == values
        assert recipes.Recipe.from_dict(values).to_dict() == values


@pytest.mark.parametrize("kind", ["run.json", "tuning.json", "plain.JSON"])
def test_a_recipe_in_a_file_is_that_recipe(tmp_path, kind):
    recipe = recipes.get("finetune", "vgg16").replace(
        crop_size=(65, 97), rotation=(-10, 10), copy_paste_classes=("car",), class_weights_power=0.1
    )
    content = {"run.json": {"seed": 0}, "tuning.json": {"trials": []}}.get(kind)
    values = recipe.to_dict()
    path = tmp_path / kind
    path.write_text(json.dumps(values if content is None else content | {"recipe": values}))
    found = [recipes.get(path), recipes.get(str(path), "resnet50")]
    assert found == [recipe, recipe]
    assert (found[0].crop_size, found[0].copy_paste_classes) == ((65, 97), ("car",))


def test_what_a_file_leaves_out_is_the_default(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"epochs": 7, "scales": [1, 1]}', encoding="utf-8-sig")
    assert recipes.get(path) == recipes.Recipe(name="mine", epochs=7, scales=(1.0, 1.0))


@pytest.mark.parametrize(
    "text, message",
    [
        (
            None,
            r"`name` must be an existing file. Received: name='.*/r\.json'. It must be run.json",
        ),
        ("{", r"r\.json is not readable as JSON: .*It must be run.json of a run"),
        ("[1]", r"r\.json must hold a JSON object. Received: \[1\]. It must be run.json"),
        ('{"recipe": 5}', r"r\.json: `recipe` must be an object of values. Received: recipe=5"),
        ('{"steps": 1, "lr": 1}', r"r\.json: A recipe has no value `lr`. .* 'learning_rate'\?"),
        ('{"steps": true}', r"r\.json: `steps` must be a positive integer. Received: steps=True"),
        ('{"steps": 1, "crop_size": [1]}', r"r\.json: `crop_size` must be a positive integer, or"),
        ('{"steps": 1, "learning_rate": NaN}', r"r\.json: `learning_rate` must be a positive n"),
        ('{"steps": 1, "loss": null}', r"r\.json: `loss` must be a string. Received: loss=None"),
        ('{"flip": true}', r"r\.json: `steps` must be given where `epochs` is None"),
    ],
)
def test_a_bad_file_is_named_with_its_fault(tmp_path, text, message):
    if text is not None:
        (tmp_path / "r.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        recipes.get(tmp_path / "r.json")


def test_texts_of_a_file_are_escaped(tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"name": "a\n\x1b[31m", "loss": "\x1b[2J", "steps": 1}))
    lines = str(recipes.get(path)).splitlines()
    assert lines[0] == r"Recipe a\n\x1b[31m:"
    assert r"  loss: \x1b[2J" in lines
    path.write_text(json.dumps({"\x1b[2J": 1}))
    with pytest.raises(ValueError, match=r"A recipe has no value `\\x1b\[2J`"):
        recipes.get(path)


def test_what_json_cannot_store_is_named():
    with pytest.raises(ValueError, match="`recipe` must be of numbers, strings, lists and dicts"):
        recipes.get("v3").replace(model={"aspp_rates": {6, 12}}).to_dict()


@pytest.mark.parametrize("recipe", recipes.RECIPES.values(), ids=recipes.RECIPES)
def test_no_recipe_has_the_augmentation_that_is_off_by_default(recipe):
    assert not any(getattr(recipe, name) for name in CHECKS)


def test_values_without_effect_are_not_printed():
    def shown(**changes):
        lines = str(recipes.get("v3").replace(flip=False, epochs=7, **changes)).splitlines()
        assert lines[0] == "Recipe v3:"
        return dict(line.strip().split(": ") for line in lines[1:])

    one = shown()
    assert (one["flip"], one["epochs"], one["momentum"]) == ("False", "7", "0.9")
    assert not {"name", "steps", "class_weights_power"} & set(one)
    other = shown(optimizer="adamw", schedule="step", stage2_share=0, batch_norm="freeze")
    stage2 = {"stage2_share", "stage2_output_stride", "stage2_lr_multiplier"}
    assert set(one) - set(other) == {"momentum", "power", "batch_norm_memory", *stage2}


def test_what_depends_on_the_length_is_a_share_of_it():
    recipe = recipes.get("v3_plus")
    assert recipe.replace(epochs=7).num_epochs(10) == 7
    assert recipe.replace(steps=95).num_epochs(10) == 10  # whole epochs
    assert recipe.replace(steps=95, batch_size=4).steps_per_epoch(30) == 8
    assert recipe.replace(steps=95, batch_size=4).steps_per_epoch(118_287) == 95
    assert recipe.replace(epochs=1, batch_size=4).steps_per_epoch(118_287) == 29_572
    shorter = recipe.replace(steps=6_000, learning_rate=0.0035)
    first, second = shorter.stages()
    assert (first.steps, second.steps) == (6_000, 6_000)
    assert second.learning_rate == pytest.approx(5e-4)
    assert [stage.epochs for stage in recipe.replace(epochs=40).stages()] == [40, 40]
    half = recipe.replace(epochs=5, stage2_share=0.5, stage2_lr_multiplier=0.2)
    assert [stage.epochs for stage in half.stages()] == [5, 2]
    assert half.stages()[1].learning_rate == pytest.approx(0.0014)
    assert [stage.steps for stage in recipe.replace(stage2_share=1e-9).stages()] == [30_000, 1]
    assert len(recipe.replace(stage2_share=0).stages()) == 1
    assert momentum_for(5_000, recipe.batch_norm_memory) == pytest.approx(1 - 6 * 0.0003)
    assert momentum_for(20, recipe.batch_norm_memory) == 0.9
    assert momentum_for(90_000, recipe.batch_norm_memory) == 0.9997  # Cityscapes


@pytest.mark.parametrize("recipe", recipes.RECIPES.values(), ids=recipes.RECIPES)
def test_a_replaced_value_changes_no_other(recipe):
    changes = {"learning_rate": 0.5, "class_weights": "inverse", "stage2_share": 0.5}
    changed = recipe.replace(**changes)
    assert changed.to_dict() == {**recipe.to_dict(), **changes}
    first, second = changed.stages()
    assert second.learning_rate <= first.learning_rate / 6.99
    assert (second.batch_norm, second.warmup_share) == ("freeze", 0)


def test_new_steps_take_the_place_of_epochs_and_epochs_that_of_steps():
    recipe = recipes.get("shapes").replace(epochs=5)
    assert recipe.steps is None
    assert recipe.replace(steps=100).num_epochs(10) == 10
    assert recipe.replace(steps=100, epochs=3).num_epochs(10) == 3
    assert recipe.replace(batch_size=2).num_epochs(10) == 5


def test_some_networks_have_values_of_their_own():
    assert recipes.get("v2", "vgg16").learning_rate == 1e-3
    assert recipes.get("v2", "resnet101") == recipes.get("v2")
    for name in ("resnet50", "resnet101_beta"):
        assert recipes.get("v3_plus", name).weight_decay == 1e-4
    assert recipes.get("v3_plus", "xception65") == recipes.get("v3_plus", None)
    for name in ("finetune", "scratch", "shapes"):
        for network in ("vgg16", "unet"):
            assert recipes.get(name, network).learning_rate == 3e-4
    assert recipes.get("shapes", "mobilenet_v2").learning_rate == 6e-3
    assert recipes.get("scratch", "mobilenet_v2").learning_rate == 3e-3


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"optimizer": "adam"}, r"`optimizer` must be one of .* Received: optimizer='adam'"),
        ({"learning_rate": 0}, "`learning_rate` must be a positive number. Received: .*=0"),
        ({"learning_rate": None}, "`learning_rate` must be a positive number"),
        ({"batch_size": 2.5}, "`batch_size` must be a positive integer. Received: .*=2.5"),
        ({"weight_decay": float("nan")}, "`weight_decay` must be a non-negative number"),
        ({"steps": None}, "`steps` must be given where `epochs` is None. Received: steps=None"),
        ({"warm_up": 5}, "A recipe has no value `warm_up`"),
        ({"scales": "0.5 2"}, r"`scales` must be \(lowest, highest\) .* scales='0.5 2'"),
        (
            {"scales": (2, 1)},
            r"`scales` must be .*0.01 <= lowest <= highest. Received: scales=\(2, 1\)",
        ),
        ({"crop_size": 321.0}, "`crop_size` must be a positive integer, or "),
        *(
            ({"multi_scale": scales}, "`multi_scale` must be two or more distinct positive numbers")
            for scales in ((0.5,), (0, 1), (0.5, 0.5))
        ),
        ({"class_focus": "x"}, "`class_focus` must be .* Received: class_focus='x'"),
        ({"color_jitter": {"hue": 1}}, "`color_jitter` must be"),
        ({"warmup_share": 1}, r"`warmup_share` must be a number in \[0, 1\)"),
        (
            {"flip": "Vertical"},
            "`flip` must be one of True, False, 'horizontal', 'vertical', "
            "'horizontal_and_vertical'. Received: flip='Vertical'. Did you mean 'vertical'?",
        ),
        ({"rotation": 10}, r"`rotation` must be \(lowest, highest\) .* Received: rotation=10"),
        ({"blur": (-1, 2)}, "`blur` must be .*0 <= lowest"),
        ({"copy_paste": 2}, "`copy_paste` must be"),
        ({"copy_paste_classes": "pole"}, "`copy_paste_classes` must be a list of strings"),
        ({"cut_out": 0.1}, "A recipe has no value `cut_out`. Did you mean 'cutout'?"),
        ({"model": 5}, "`model` must be a mapping of arguments. Received: model=5"),
        ({"name": 5}, "`name` must be a string. Received: name=5"),
    ],
)
def test_bad_values_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        recipes.get("v3").replace(**changes)
    with pytest.raises(
        ValueError, match=r"one of .*v3_plus.*finetune.*'FILE.json'.*Received: name='v4'"
    ):
        recipes.get("v4")
