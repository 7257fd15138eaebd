from __future__ import annotations

import keras
import numpy as np
import pytest
from loss_references import WEIGHTS, lovasz_of_class, make_batch, pixel_mean, region_mean

from keras_deeplab import losses
from keras_deeplab.losses import LOSSES


def test_every_loss_has_its_name():
    kinds = {getattr(losses, name) for name in losses.__all__ if name[:2].istitle()}
    assert set(LOSSES.values()) == kinds - {losses.Sum}
    for name, kind in LOSSES.items():
        made = losses.parse(name)
        assert type(made) is kind
        assert {**made.get_config(), "name": ""} == {**kind().get_config(), "name": ""}


@pytest.mark.parametrize(
    "text",
    [
        "cross_entropy+0.5*lovasz_softmax",
        " cross_entropy +\n 0.5 * lovasz_softmax()",
        "0.25 * focal(gamma=0) + 0.75*cross_entropy + 5e-1 * lovasz_softmax",
    ],
)
def test_a_sum_equals_numpy(text):
    labels, logits, _ = make_batch()
    expected = pixel_mean(labels, logits) + 0.5 * region_mean(labels, logits, None, lovasz_of_class)
    np.testing.assert_allclose(losses.parse(text)(labels, logits), expected, rtol=2e-6)


def test_a_single_loss_has_its_weight():
    labels, logits, _ = make_batch()
    found = losses.parse("0.5 * cross_entropy")(labels, logits)
    np.testing.assert_allclose(found, 0.5 * pixel_mean(labels, logits), rtol=2e-6)


def test_class_weights_go_to_the_losses_that_take_them_and_have_no_own():
    text = "cross_entropy + focal(gamma=1) + hard_pixel_mining + dice + lovasz_softmax(stride=4)"
    made = losses.parse(text, class_weights=WEIGHTS).losses
    assert [getattr(loss, "class_weights", None) for loss in made] == [WEIGHTS] * 3 + [None] * 2
    assert [loss.stride for loss in made] == [1, 1, 1, 1, 4]
    text = "cross_entropy(class_weights=[1, 2], ignore_label=None, stride=3) + focal"
    own, shared = losses.parse(text, class_weights=[3, 4]).losses
    assert (own.class_weights, own.ignore_label, own.stride) == ([1, 2], None, 3)
    assert (shared.class_weights, shared.ignore_label, shared.stride) == ([3, 4], 255, 1)
    with pytest.raises(ValueError, match="None of these losses takes `class_weights`"):
        losses.parse("dice + lovasz_softmax", class_weights=[1, 2])


def test_mining_gets_the_optimizer():
    optimizer = keras.optimizers.SGD(0.1)
    loss = losses.parse("hard_pixel_mining(fraction=0.2, warmup_steps=10)", optimizer=optimizer)
    optimizer.iterations.assign(5)
    np.testing.assert_allclose(loss.current_fraction(), 0.6, rtol=1e-6)


@pytest.mark.parametrize(
    "text, message",
    [
        ("crossentropy", "Received: loss='crossentropy'.*Did you mean 'cross_entropy'?"),
        ("dice + jaccard()", "`name` must be one of 'cross_entropy', .*name='jaccard'"),
        ("", "one or more of the losses cross_entropy, dice, .* Received: loss=''"),
        ("dice +", "losses"),
        ("dice - focal", "losses"),
        ("dice + 1", "losses"),
        ("2 * (dice + focal)", "losses"),
        ("losses.dice()", "losses"),
        ("dice()()", "losses"),
        ("x = dice", "losses"),
        ("dice\0", "losses"),
        ("(" * 10_000, "losses"),
        (None, "losses .* Received: loss=None"),
        ("-1 * dice", r"Received: loss='-1 \* dice'.*`weight` must be a positive number"),
        ("0 * dice", "`weight` must be a positive number. Received: weight=0"),
        ("1e999 * dice", "weight=inf"),
        ("True * dice", "weight=True"),
        ("dice * 2", "`weight` must be a positive number"),
        ("focal(2)", r"by name, once, as in focal\(gamma=2.0\)"),
        ("focal(gamma=1, gamma=2)", "by name, once"),
        ("focal(**{'gamma': 2})", "`argument` must be one of"),
        ("focal(gamma=print('run'))", "Received: loss=.*print.*malformed node"),
        ("dice(gamma=2)", "`argument` must be one of 'classes', 'ignore_label', 'per_image', 'smo"),
        ("focal(reduction='none')", "`argument` must be one of .*argument='reduction'"),
        ("hard_pixel_mining(optimizer=1)", "`argument` must be one of .*argument='optimizer'"),
        ("hard_pixel_mining(warmup_steps=10)", "`optimizer` must be"),
        ("focal(gamma=-1)", r"Received: loss='focal\(gamma=-1\)'.*`gamma` must be .* gamma=-1"),
    ],
)
def test_errors_say_what_is_wrong(text, message, capsys):
    with pytest.raises(ValueError, match=f"(?s)`loss` must be .*{message}"):
        losses.parse(text)
    assert capsys.readouterr().out == ""
