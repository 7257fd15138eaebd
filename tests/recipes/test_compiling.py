from __future__ import annotations

import keras
import numpy as np
import pytest
from models.networks import tiny

from keras_deeplab import DeepLabV2, DeepLabV3Plus, MultiScale, batch_norm, recipes
from keras_deeplab.graph.network import all_norms

NAMES = ["ground", "car", "sign"]


def compiled(model, recipe, total_steps=100, **more):
    recipes.compile_model(model, recipe, total_steps=total_steps, class_names=NAMES, **more)
    model.optimizer.build(model.trainable_variables)
    return model.optimizer


def multipliers(model):
    """Those of learning rate and weight decay, by the path of a variable."""
    pairs = zip(model.trainable_variables, model.optimizer._multipliers, strict=True)
    return {variable.path: (rate, decay) for variable, (_, rate, decay) in pairs}


def small(model_class=DeepLabV3Plus, **more):
    if model_class is DeepLabV3Plus:
        more = {"aspp_filters": 8, "decoder_filters": 8, "separable": True, **more}
    return model_class(3, tiny(), **more)


@pytest.fixture(scope="module")
def model():
    return small()


def rates(optimizer, steps):
    schedule = optimizer._learning_rate
    return [float(schedule(step)) for step in steps]


def test_v3_plus_decays_kernels_alone(model):
    optimizer = compiled(model, recipes.get("v3_plus"))
    assert (float(optimizer.momentum), optimizer.weight_decay) == (0.9, 4e-5)
    np.testing.assert_allclose(rates(optimizer, [0, 50, 100]), [0.007, 0.007 * 0.5**0.9, 0])
    found = multipliers(model)
    assert {rate for rate, _ in found.values()} == {1}
    decayed = {path for path, (_, decay) in found.items() if decay}
    assert all(path.endswith("kernel") and "depthwise" not in path for path in decayed)
    assert "logits/kernel" in decayed
    assert len(decayed) < len(found) / 2


def test_v1_and_v2_train_their_predictors_faster():
    recipe = recipes.get("v2")
    model = small(DeepLabV2, output_stride=8)
    compiled(model, recipe)
    found = multipliers(model)
    assert found["logits_0/kernel"] == (10, 1)
    assert found["logits_3/bias"] == (20, 0)
    assert found["stem/kernel"] == (1, 1)
    assert found["stem/bias"] == (1, 0)
    assert model.loss.stride == 8
    assert not any("norm" in path for path in found)  # batch norm is frozen
    wrapped = MultiScale(model, recipe.multi_scale)
    compiled(wrapped, recipe)
    assert max(rate for rate, _ in multipliers(wrapped).values()) == 20


@pytest.mark.parametrize("frozen", ["logits", "backbone", "norms"])
def test_groups_of_frozen_weights_are_left_out(frozen):
    model = small()
    found = {
        "logits": [model.get_layer("logits")],
        "backbone": [model.backbone],
        "norms": all_norms(model).values(),
    }[frozen]
    for layer in found:
        layer.trainable = False
    recipe = recipes.get("v3_plus").replace(classifier_lr_multiplier=10, backbone_lr_multiplier=0.5)
    compiled(model, recipe)
    rates = {path: rate for path, (rate, _) in multipliers(model).items()}
    assert len(rates) == len(model.trainable_variables)
    assert set(rates.values()) <= {1, 0.5, 10}
    assert (10 in rates.values()) == (frozen != "logits")


@pytest.mark.parametrize("multiplier", [0.25, 0])
def test_the_backbone_may_be_slower(model, multiplier):
    compiled(model, recipes.get("v3").replace(backbone_lr_multiplier=multiplier))
    of_backbone = {variable.path for variable in model.backbone.trainable_variables}
    for path, (rate, _) in multipliers(model).items():
        assert rate == (multiplier if path in of_backbone else 1)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_backbone_of_multiplier_0_keeps_its_weights(optimizer):
    model, values = small(), {"backbone_lr_multiplier": 0, "warmup_share": 0.0}
    compiled(model, recipes.get("finetune").replace(optimizer=optimizer, **values))
    model.run_eagerly = True
    before = {variable.path: np.array(variable) for variable in model.trainable_variables}
    images = np.random.default_rng(0).uniform(0, 255, (2, 33, 33, 3)).astype("float32")
    model.train_on_batch(images, (images[..., 0] > 127).astype("int32"))
    of_backbone = {variable.path for variable in model.backbone.trainable_variables}
    changed = {v.path for v in model.trainable_variables if np.any(np.array(v) != before[v.path])}
    assert of_backbone
    assert not changed & of_backbone
    assert "logits/kernel" in changed


def test_v1_steps_down_twice(model):
    optimizer = compiled(model, recipes.get("v1").replace(steps=90), total_steps=90)
    np.testing.assert_allclose(
        rates(optimizer, [0, 29, 30, 59, 60, 89]), [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5], rtol=1e-6
    )


def test_batch_norm_follows_the_length_and_the_stage():
    model = small()
    compiled(model, recipes.get("finetune"), total_steps=2_000)
    norms = [layer for layer in model.backbone.layers if "norm" in layer.name]
    assert norms
    assert {round(norm.momentum, 6) for norm in norms} == {0.985}
    assert not model.optimizer.use_ema
    compiled(model, recipes.get("v3"), total_steps=30_000)
    assert {round(norm.momentum, 6) for norm in norms} == {0.9997}
    compiled(model, recipes.get("v3").stages()[1])
    assert not any(norm.trainable for norm in norms)
    assert batch_norm.set_policy(model, "freeze") == 0


def test_norms_that_were_frozen_one_by_one_stay_frozen():
    """As users of Keras freeze the first layers; the recipe trains the others."""
    model = small()
    first = model.backbone.layers[: len(model.backbone.layers) // 2]
    for layer in first:
        layer.trainable = False
    compiled(model, recipes.get("finetune"))
    norms = all_norms(model).values()
    frozen = [norm for norm in norms if norm in first]
    assert frozen
    assert [norm for norm in norms if not norm.trainable] == frozen
    assert not {id(v) for layer in first for v in layer.weights} & {
        id(v) for v in model.trainable_variables
    }


def test_the_learning_rate_warms_up_in_a_share_of_the_steps(model):
    recipe = recipes.get("finetune")
    optimizer = compiled(model, recipe, total_steps=2_400)
    np.testing.assert_allclose(rates(optimizer, [0, 50, 100]), [0, 3e-4, 6e-4], rtol=1e-6)
    compiled(model, recipe.replace(warmup_share=0.9), total_steps=1)


def test_the_loss_is_the_recipes(model):
    recipe = recipes.get("finetune").replace(loss="focal(gamma=1.0)")
    compiled(model, recipe, class_weights=[1.0, 2.0, 3.0])
    assert type(model.loss).__name__ == "Focal"
    assert model.loss.class_weights == [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="cross_entropy"):
        compiled(model, recipe.replace(loss="entropy"))


@pytest.mark.slow
def test_a_recipe_learns(model):
    """A few steps on one batch lower the loss."""
    keras.utils.set_random_seed(0)
    compiled(model, recipes.get("finetune").replace(warmup_share=0), total_steps=10_000)
    model.run_eagerly = True
    random = np.random.default_rng(0)
    labels = np.kron(random.integers(0, 3, (4, 2, 2)), np.ones((16, 16))).astype("int32")
    images = (80.0 * labels[..., None] + random.uniform(0, 60, (4, 32, 32, 3))).astype("float32")
    losses = [float(model.train_on_batch(images, labels)[0]) for _ in range(6)]
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.95 * losses[0]
