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
        assert made.get_config() == kind().get_config()
        assert made.name == name


@pytest.mark.parametrize(
    "text",
    [
        "cross_entropy+0.5*lovasz_softmax",
        " cross_entropy +\n 0.5 * lovasz_softmax()",
        "0.5 * lovasz_softmax + 1 * cross_entropy",
        "0.25 * cross_entropy + 0.75*cross_entropy + 5e-1 * lovasz_softmax",
    ],
)
def test_a_sum_equals_numpy(text):
    labels, logits, _ = make_batch()
    expected = pixel_mean(labels, logits) + 0.5 * region_mean(labels, logits, None, lovasz_of_class)
    np.testing.assert_allclose(losses.parse(text)(labels, logits), expected, rtol=2e-6)


def test_one_loss_with_a_weight():
    labels, logits, _ = make_batch()
    expected = 3 * pixel_mean(labels, logits, gamma=0.5)
    found = losses.parse("3 * focal(gamma=0.5)")(labels, logits)
    np.testing.assert_allclose(found, expected, rtol=2e-6)


def test_what_all_share_goes_to_those_that_take_it():
    text = "cross_entropy + focal(gamma=1) + hard_pixel_mining + dice + lovasz_softmax(stride=4)"
    made = losses.parse(text, class_weights=WEIGHTS, ignore_label=7, stride=2).losses
    assert [loss.ignore_label for loss in made] == [7] * 5
    assert [loss.stride for loss in made] == [2, 2, 2, 2, 4]
    assert [loss.class_weights for loss in made[:3]] == [WEIGHTS] * 3
    labels, logits, _ = make_batch()
    made = losses.parse("cross_entropy(label_smoothing=0.2)", class_weights=WEIGHTS)
    expected = pixel_mean(labels, logits, class_weights=WEIGHTS, smoothing=0.2)
    np.testing.assert_allclose(made(labels, logits), expected, rtol=2e-6)


def test_what_a_loss_says_itself_goes_first():
    text = "cross_entropy(class_weights=[1, 2], ignore_label=None, stride=3) + focal"
    own, shared = losses.parse(text, class_weights=[3, 4], stride=8).losses
    assert (own.class_weights, own.ignore_label, own.stride) == ([1, 2], None, 3)
    assert (shared.class_weights, shared.ignore_label, shared.stride) == ([3, 4], 255, 8)


def test_mining_gets_the_optimizer():
    optimizer = keras.optimizers.SGD(0.1)
    loss = losses.parse("hard_pixel_mining(fraction=0.2, warmup_steps=10)", optimizer=optimizer)
    optimizer.iterations.assign(5)
    np.testing.assert_allclose(loss.current_fraction(), 0.6, rtol=1e-6)
    with pytest.raises(ValueError, match=r"`optimizer` must be"):
        losses.parse("hard_pixel_mining(warmup_steps=10)")


NAMES = "cross_entropy, dice, focal, hard_pixel_mining, lovasz_softmax"


@pytest.mark.parametrize(
    "text, message",
    [
        ("crossentropy", f"Received: loss='crossentropy'.*'crossentropy' is not one of {NAMES}"),
        ("dice + jaccard()", f"'jaccard' is not one of {NAMES}"),
        ("", f"Received: loss=''. Losses: {NAMES}"),
        ("dice +", f"Losses: {NAMES}"),
        ("dice - focal", "losses joined by"),
        ("dice + 1", "losses joined by"),
        ("(dice + focal) * 2", "finite numbers above 0"),
        ("2 * (dice + focal)", "losses joined by"),
        ("losses.dice", "losses joined by"),
        ("losses.dice()", "losses joined by"),
        ("dice()()", "losses joined by"),
        ("x = dice", "losses joined by"),
        ("dice\0", "losses joined by"),
        ("(" * 10_000, "losses joined by"),
        ("-1 * dice", r"Received: loss='-1 \* dice'.*finite numbers above 0"),
        ("0 * dice", "finite numbers above 0"),
        ("1e999 * dice", "finite numbers above 0"),
        ("True * dice", "finite numbers above 0"),
        ("'a' * dice", "finite numbers above 0"),
        ("dice * 2", "finite numbers above 0"),
        ("focal(2)", r"by name, once, as in focal\(gamma=2.0\)"),
        ("focal(**{'gamma': 2})", "by name"),
        ("focal(gamma=print('run'))", r"Received: .*focal\(gamma=print.*are numbers, strings"),
        ("focal(gamma=[i for i in (2,)])", "are numbers, strings"),
        ("dice(gamma=2)", "of dice are classes, per_image, smooth, ignore_label, stride"),
        ("focal(reduction='none')", "Received.*reduction.*arguments of focal are "),
        ("focal(gamma=-1)", r"Received: loss='focal\(gamma=-1\)'.*`gamma` must be .* gamma=-1"),
        ("focal(gamma='much')", "`gamma` must be "),
        ("focal(gamma=1, gamma=2)", "losses joined by"),
        (None, "losses joined by .* Received: loss=None"),
    ],
)
def test_errors_say_what_is_known(text, message, capsys):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        losses.parse(text)
    assert capsys.readouterr().out == ""


def test_class_weights_without_a_loss_that_takes_them():
    message = (
        "Received: loss='dice.*`class_weights` require cross_entropy, focal, hard_pixel_mining"
    )
    with pytest.raises(ValueError, match=message):
        losses.parse("dice + lovasz_softmax", class_weights=[1, 2])


def test_it_comes_back_from_a_compiled_model(tmp_path):
    labels, logits, _ = make_batch()
    model = keras.Sequential([keras.Input((None, None, 4)), keras.layers.Conv2D(4, 1)])
    model.compile("sgd", losses.parse("focal + 2 * dice", class_weights=WEIGHTS))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        again.evaluate(logits, labels, verbose=0), model.evaluate(logits, labels, verbose=0)
    )
