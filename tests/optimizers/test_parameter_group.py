from __future__ import annotations

import dataclasses

import pytest
from optimizers.references import small_model

from keras_deeplab.optimizers import SGD, ParameterGroup
from keras_deeplab.optimizers.groups import multipliers


@pytest.mark.parametrize(
    "pattern, path, is_in",
    [
        ("a/kernel", "a/kernel", True),
        ("a/kernel", "aa/kernel", False),
        ("a/kernel", "a/kernel_2", False),
        ("*/kernel", "block/unit/kernel", True),
        ("block[12]/bias", "block3/bias", False),
        ("A/kernel", "a/kernel", False),
        (("x", "*/bias"), "a/bias", True),
        (["x", "y"], "a/bias", False),
    ],
)
def test_matches(pattern, path, is_in):
    assert ParameterGroup(pattern).matches(path) is is_in


def test_is_plain_data():
    group = ParameterGroup(["a", "b"], lr_multiplier=10)
    assert group == ParameterGroup(("a", "b"), 10.0, 1.0) == ParameterGroup(**group.get_config())
    assert hash(group) == hash(ParameterGroup(("a", "b"), 10.0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        group.learning_rate = 2.0


def test_multipliers_of_several_groups_are_multiplied():
    groups = [
        ParameterGroup("logits/*", lr_multiplier=10),
        ParameterGroup("*/bias", lr_multiplier=2, weight_decay_multiplier=0),
        ParameterGroup("logits/kernel", weight_decay_multiplier=0.5),
    ]
    variables = small_model().trainable_variables
    expected = [(1.0, 1.0), (2.0, 0.0), (10.0, 0.5), (20.0, 0.0)]
    assert multipliers(groups, variables) == expected == multipliers(groups[::-1], variables)
    assert multipliers((), variables) == [(1.0, 1.0)] * 4


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"lr_multiplier": -1}, "`lr_multiplier` must be .* Received: lr_multiplier=-1"),
        (
            {"weight_decay_multiplier": float("inf")},
            "`weight_decay_multiplier` must be .* Received: weight_decay_multiplier=inf",
        ),
        *(
            ({"pattern": pattern}, "`pattern` must be a path")
            for pattern in ("", (), ("a", ""), 3, None, [1])
        ),
    ],
)
def test_arguments_are_checked(arguments, words):
    with pytest.raises(ValueError, match=words):
        ParameterGroup(**{"pattern": "*", **arguments})


@pytest.mark.parametrize("groups", [ParameterGroup("*"), ["*"], {"*": 1}, "*", None])
def test_groups_are_checked(groups):
    with pytest.raises(ValueError, match="`groups` must be a list of ParameterGroup. Received: "):
        SGD(0.1, groups=groups)


def test_a_group_that_matches_nothing_is_an_error_that_helps():
    model = small_model()
    optimizer = SGD(0.1, groups=[ParameterGroup("*"), ParameterGroup("logit/kernel")])
    rule = r"one of the 4 trainable.* groups=\('logit/kernel',\). Did you mean 'logits/kernel'\?"
    with pytest.raises(ValueError, match=rule):
        optimizer.build(model.trainable_variables)
    assert not optimizer.built
    many = SGD(0.1, groups=[ParameterGroup([f"x{i}" for i in range(500)])])
    with pytest.raises(ValueError, match="'x5'") as error:
        many.build(model.trainable_variables)
    assert len(str(error.value)) < 400
    model.get_layer("a").trainable = False
    with pytest.raises(ValueError, match=r"`groups` must be .* of the 2 trainable.*'a/\*'"):
        SGD(0.1, groups=[ParameterGroup("a/*")]).build(model.trainable_variables)
