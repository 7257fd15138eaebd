"""The search of a recipe's values: with a function in place of the trainings, and with them."""

from __future__ import annotations

import json
import math
import re
import signal
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
import tensorflow as tf

import keras_deeplab as kd
from keras_deeplab import data, recipes
from keras_deeplab.cli import tune as command
from keras_deeplab.files import DiskFullError
from keras_deeplab.trainer import ModelBuilder, tuning

pytest.importorskip("optuna")

RECIPE = recipes.get("shapes", "unet").replace(
    batch_size=2, model={"depth": 2, "filters": 4}, steps=2_000, class_weights="inverse"
)
SPENT = tuning._spent


@pytest.fixture
def source():
    return data.Shapes(train=10, val=3)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only trainings move: a second for each step."""

    class Clock:
        now = 0.0
        trained: list = []

    clock = Clock()
    clock.trained = []
    monkeypatch.setattr(tuning.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(tuning, "_spent", lambda study: clock.now)
    return clock


@pytest.fixture
def score(monkeypatch, clock):
    """Scores that are better the nearer the learning rate is to 0.001, and with longer training."""

    def cost(builder, source, report, recipe):
        return SimpleNamespace(seconds=1.0, steps=recipe.steps)

    def trained_score(builder, source, report, seed, recipe, steps):
        clock.now += steps
        clock.trained.append((recipe, steps))
        return math.exp(-abs(math.log(recipe.learning_rate / 0.001))) * (1 - 1 / steps)

    monkeypatch.setattr(tuning, "training_cost", cost)
    monkeypatch.setattr(tuning, "_trained_score", trained_score)
    return trained_score


def search(source, path, minutes=120, **arguments):
    return kd.tune("unet", source, RECIPE, minutes=minutes, output=path, **arguments)


def test_successive_halving_finds_better_values_in_its_time(source, tmp_path, clock, score):
    result = search(source, tmp_path / "t", minutes=60 * 8)
    seconds = 60 * 60 * 8
    lengths = [steps for _, steps in clock.trained]
    # The longest training is the recipe's length, which is shorter than an eighth of the time.
    assert set(lengths) == {222, 666, 1998}
    assert seconds - 222 < sum(lengths) <= seconds
    assert 1 < lengths.count(1998) <= lengths.count(666) < lengths.count(222)
    seen = {222: [], 666: []}  # trained longer: the best third so far, or the best of few
    for number, (recipe, steps) in enumerate(clock.trained):
        if steps in seen and sum(lengths[: number + 1]) + 3 * steps < seconds:
            seen[steps].append(score_of(recipe))
            better = sum(score > score_of(recipe) for score in seen[steps])
            is_longer = lengths[number + 1] == 3 * steps
            assert is_longer == (better < max(1, len(seen[steps]) // 3))
    first = clock.trained[0][0]
    assert first == RECIPE.replace(crop_size=first.crop_size)
    assert result.baseline.values["learning_rate"] == RECIPE.learning_rate
    best = max((recipe for recipe, n in clock.trained if n == 1998), key=lambda r: score_of(r))
    assert result.recipe.learning_rate == best.learning_rate
    assert abs(math.log(result.recipe.learning_rate / 0.001)) < 0.2
    assert result.recipe.steps == RECIPE.steps
    stored = json.loads((tmp_path / "t" / "tuning.json").read_text())
    assert stored["recipe"] == result.recipe.to_dict()
    assert recipes.get(tmp_path / "t" / "tuning.json") == result.recipe
    assert len(stored["trials"]) == len(result.trials) == lengths.count(222)
    lines = str(result).splitlines()
    assert len(lines) == 1 + len(result.trials)
    assert "222 steps" in lines[0]
    assert f"{result.recipe.learning_rate:.3g}" in lines[1]
    # All choices were drawn.
    drawn = [recipe for recipe, _ in clock.trained]
    assert {recipe.scales for recipe in drawn} == {(1.0, 1.0), *tuning.SCALES}
    assert {recipe.loss for recipe in drawn} == {RECIPE.loss, *tuning.LOSSES}
    weights = {(r.class_weights, r.class_weights and r.class_weights_power) for r in drawn}
    assert weights == {("inverse", 0.25), (None, None), ("median", 0.25), ("median", 0.5)}
    assert len({recipe.crop_size for recipe in drawn}) == 3
    rates = [recipe.learning_rate / RECIPE.learning_rate for recipe in drawn]
    assert 0.25 <= min(rates) < 0.5
    assert 2 < max(rates) <= 4


@pytest.mark.parametrize(
    "minutes, lengths",
    [(24, [60, 180]), (71, [177, 531]), (72, [60, 180, 540]), (10_000, [222, 666, 1998])],
)
def test_no_training_is_so_short_that_it_tells_nothing(minutes, lengths):
    assert tuning._lengths(1.0, RECIPE.steps, 60 * minutes) == lengths
    assert min(lengths) >= tuning.FEWEST_STEPS


def score_of(recipe):
    return -abs(math.log(recipe.learning_rate / 0.001))


@pytest.mark.slow
@pytest.mark.parametrize("stop", [2, 6])
def test_a_search_resumes_where_it_was_stopped(source, tmp_path, clock, score, monkeypatch, stop):
    path = tmp_path / "t"
    calls = []

    def stops(builder, source, report, seed, recipe, steps):
        calls.append(recipe)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return score(builder, source, report, seed, recipe, steps)

    monkeypatch.setattr(tuning, "_trained_score", stops)
    with pytest.raises(KeyboardInterrupt):
        search(source, path)
    stopped, before = calls[-1], clock.now
    monkeypatch.setattr(tuning, "_trained_score", score)
    count = len(clock.trained)
    result = search(source, path)
    assert clock.trained[count][0] == stopped  # from its shortest training
    assert before < clock.now <= 60 * 120
    assert result.baseline.values["learning_rate"] == RECIPE.learning_rate
    own = [trial for trial in result.trials if trial.values == result.baseline.values]
    assert len(own) == 1
    (path / ".DS_Store").touch()
    more = search(source, path, minutes=150)
    assert len(more.trials) > len(result.trials)
    rates = {trial.values["learning_rate"] for trial in more.trials}
    assert len(rates) == len(more.trials)  # no proposal twice
    with pytest.raises(ValueError, match="same arguments.*seed was 0, is 1"):
        search(source, path, seed=1)


@pytest.mark.slow
def test_a_trial_that_ends_the_process_is_left_out_at_last(
    source, tmp_path, clock, score, monkeypatch
):
    """As one of so large a batch does, where the system lacks memory, each time it is resumed."""
    killed = []

    def kills(builder, source, report, seed, recipe, steps):
        if recipe.loss != RECIPE.loss:
            killed.append(recipe)
            raise KeyboardInterrupt
        return score(builder, source, report, seed, recipe, steps)

    monkeypatch.setattr(tuning, "_trained_score", kills)
    for _ in range(tuning.ATTEMPTS):
        with pytest.raises(KeyboardInterrupt):
            search(source, tmp_path)
    assert all(recipe == killed[0] for recipe in killed)
    monkeypatch.setattr(tuning, "_trained_score", score)
    result = search(source, tmp_path)
    (failed,) = (trial for trial in result.trials if trial.failure)
    assert failed.failure == "It was interrupted 3 times."
    assert failed.values["loss"] == killed[0].loss
    assert result.baseline.failure is None
    assert len(result.trials) > 3


@pytest.fixture
def stopped(source, tmp_path, clock, score, monkeypatch):
    """The journal of a search that was stopped in its third training."""

    def stops(*arguments):
        if len(clock.trained) == 2:
            raise KeyboardInterrupt
        return score(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "_trained_score", stops)
        with pytest.raises(KeyboardInterrupt):
            search(source, tmp_path, minutes=24)
    clock.now = 0.0
    return tmp_path / tuning.JOURNAL


@pytest.mark.slow
def test_a_journal_that_was_cut_anywhere_is_resumed(source, stopped, clock, caplog, monkeypatch):
    """As by a full disk, also before the first trial has all of the recipe's values."""
    monkeypatch.setattr(data, "audit", cache(data.audit))
    content = stopped.read_bytes()
    own = search(source, stopped.parent, minutes=24).baseline.values
    assert own["learning_rate"] == RECIPE.learning_rate
    ends = [match.end() for match in re.finditer(b"\n", content)]
    for number, end in enumerate(ends[:14], 1):
        stopped.write_bytes(content[: end - 1])
        clock.now = 0.0
        assert search(source, stopped.parent, minutes=24).baseline.values == own
        assert f"{stopped} ends within line {number}, which is cut off." in caplog.text
        complete = content[: end - 1].rpartition(b"\n")[0]
        assert stopped.read_bytes().startswith(complete)


def test_what_a_killed_process_leaves_is_removed(source, stopped, clock, caplog):
    """Half a line, and Optuna's lock, for which it waits 30 seconds."""
    content = stopped.read_bytes()
    stopped.write_bytes(content[:-5])
    for end in (".lock", ".lock0a-1b.rename"):
        stopped.with_name(stopped.name + end).touch()
    trials = search(source, stopped.parent, minutes=24).trials
    assert len(trials) > 3
    assert f"{stopped} ends within line" in caplog.text
    assert {path.name for path in stopped.parent.iterdir()} == {
        *(tuning.JOURNAL, tuning.RESULT),
        *(path.name for path in stopped.parent.glob(tuning.LOCK)),
    }
    caplog.clear()
    assert len(search(source, stopped.parent, minutes=24).trials) == len(trials)
    assert caplog.text == ""
    first, second, rest = content.split(b"\n", 2)
    damaged = b"\n".join([first, second[:-5], rest])
    stopped.write_bytes(damaged)
    with pytest.raises(ValueError, match=f"^{stopped}, line 2, is not readable as JSON: .*Restore"):
        search(source, stopped.parent, minutes=24)
    assert stopped.read_bytes() == damaged


def test_a_full_disk_names_the_journal_and_the_search_resumes(source, stopped, score, monkeypatch):
    resource = pytest.importorskip("resource")
    before, limits = stopped.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (before + 700, limits[1]))
    try:
        with pytest.raises(DiskFullError, match=f"^{stopped} could not be written: File too large"):
            search(source, stopped.parent, minutes=24)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert len(search(source, stopped.parent, minutes=24).trials) > 3


@pytest.mark.slow
def test_an_interrupted_trial_is_not_search_time(source, tmp_path, clock, score, monkeypatch):
    path = tmp_path / "t"
    monkeypatch.setattr(tuning, "_spent", SPENT)

    def stops(builder, source, report, seed, recipe, steps):
        if steps > 100:
            raise KeyboardInterrupt
        return score(builder, source, report, seed, recipe, steps)

    monkeypatch.setattr(tuning, "_trained_score", stops)
    with pytest.raises(KeyboardInterrupt):
        search(source, path)
    journal = path / tuning.JOURNAL  # a pause of years
    started = re.sub(r'("datetime_start": ?")\d{4}', r"\g<1>2020", journal.read_text())
    journal.write_text(started)
    assert "2020-" in started
    with pytest.raises(ValueError, match="`minutes` must be enough for a training of 100 steps"):
        search(source, path, minutes=1)
    monkeypatch.setattr(tuning, "_trained_score", score)
    assert len(search(source, path).trials) > 3


@pytest.mark.slow
def test_a_trial_that_fails_is_shown_and_the_recipe_that_fails_is_an_error(
    source, tmp_path, clock, score, monkeypatch
):
    def always(*_):
        clock.now += 500
        raise ValueError("a recipe that cannot be")

    monkeypatch.setattr(tuning, "_trained_score", always)
    for _ in range(2):  # also when it is resumed
        with pytest.raises(ValueError, match="cannot be"):
            search(source, tmp_path / "other")

    def fails(builder, source, report, seed, recipe, steps):
        if recipe.learning_rate > RECIPE.learning_rate:
            clock.now += 500
            raise ValueError("the loss became nan")
        return score(builder, source, report, seed, recipe, steps)

    monkeypatch.setattr(tuning, "_trained_score", fails)
    result = search(source, tmp_path / "t")
    failed = [trial for trial in result.trials if trial.failure]
    assert {trial.failure for trial in failed} == {"the loss became nan"}
    assert result.trials[-1] is failed[-1]
    assert result.trials[0].failure is None
    assert "failed" in str(result)


def test_a_trial_that_fails_when_it_is_longer_is_not_the_best(
    source, tmp_path, clock, score, monkeypatch
):
    def fails(builder, source, report, seed, recipe, steps):
        found = score(builder, source, report, seed, recipe, steps)
        if steps > 100 and recipe.learning_rate > RECIPE.learning_rate:
            raise ValueError("the loss became nan")
        return 2.0 if recipe.learning_rate > RECIPE.learning_rate else found

    monkeypatch.setattr(tuning, "_trained_score", fails)
    result = search(source, tmp_path)
    assert any(trial.failure for trial in result.trials)
    assert result.trials[0].failure is None
    assert result.recipe.learning_rate <= RECIPE.learning_rate


def test_trials_that_fail_at_once_end_the_search(
    source, tmp_path, clock, score, monkeypatch, caplog
):
    calls = []

    def fails(*arguments):
        calls.append(arguments)
        if len(calls) > 1 and calls[-1][-1] == calls[0][-1]:
            raise ValueError("a file is gone")
        return score(*arguments)

    monkeypatch.setattr(tuning, "_trained_score", fails)
    result = search(source, tmp_path / "t")
    assert [bool(trial.failure) for trial in result.trials] == [False] + [True] * 10
    assert result.trials[0] is result.baseline
    assert "The search ends: its last 10 trials failed." in caplog.text


def test_a_trial_that_takes_too_much_memory_fails_alone(
    source, tmp_path, clock, score, monkeypatch
):
    def fails(builder, source, report, seed, recipe, steps):
        if recipe.loss != RECIPE.loss:
            clock.now += 500
            raise tf.errors.ResourceExhaustedError(None, None, "out of memory")
        return score(builder, source, report, seed, recipe, steps)

    monkeypatch.setattr(tuning, "_trained_score", fails)
    trials = search(source, tmp_path / "t", minutes=600).trials
    # Not one after the other, which would end the search.
    assert sum(trial.failure is not None for trial in trials) > tuning.MOST_FAILURES
    assert {"out of memory" in trial.failure for trial in trials if trial.failure} == {True}
    assert trials[0].failure is None


def test_the_second_stage_that_trials_leave_out_is_not_counted(source, tmp_path, score):
    recipe = RECIPE.replace(steps=100, stage2_share=1.0)
    with pytest.raises(ValueError, match="a recipe of at least 180 steps"):
        kd.tune("deeplab_v3", source, recipe.replace(model={}), minutes=600, output=tmp_path / "t")


def test_every_choice_is_a_recipe_that_trains():
    for loss in ("dice", "cross_entropy + dice", "dice + 0.5 * lovasz_softmax"):
        recipe = RECIPE.replace(loss=loss, class_weights=None, crop_size=(32, 48))
        choices = tuning._choices(recipe)
        crops = [change["crop_size"] for change in choices["crop_size"].values()]
        assert crops == [(32, 48), (24, 36), (16, 24)]
        weighted = set()
        for weights in choices["class_weights"]:
            for chosen in choices["loss"]:
                own = tuning._own_values(recipe, choices)
                values = {**own, "class_weights": weights, "loss": chosen}
                changed = recipe.replace(**tuning._changes(values, choices))
                given = None if changed.class_weights is None else [1.0] * 6
                kd.losses.parse(changed.loss, given)
                weighted |= {changed.loss} if given else set()
        assert (loss in weighted) == ("cross_entropy" in loss)
        other = {**own, "class_weights": "median ** 0.5"}
        shown = tuning._values(other, choices)["class_weights"]
        assert shown == ("median ** 0.5" if "cross_entropy" in loss else "none")


def test_trials_are_on_images_at_the_scale_of_the_recipe(source, tmp_path, monkeypatch, score):
    seen = []

    def trained_score(builder, source, report, *more):
        seen.append((source, report))
        return score(builder, source, report, *more)

    monkeypatch.setattr(tuning, "_trained_score", trained_score)
    recipe = RECIPE.replace(image_scale=0.5)
    result = kd.tune("unet", source, recipe, minutes=30, output=tmp_path / "t")
    assert result.recipe.image_scale == 0.5
    (images, report), held_out = seen[0], data.HeldOut(source)
    assert images.fingerprint() == data.Resized(held_out, 0.5).fingerprint()
    whole = data.audit(held_out).splits["train"].largest
    assert report.splits["train"].largest == images.size(whole) != whole


@pytest.mark.parametrize("better", [False, True])
def test_the_command_prints_what_was_better(source, tmp_path, capsys, monkeypatch, better):
    own = {"learning_rate": 0.001, "crop_size": "48x48", "class_weights": "none"}
    best = own | ({"class_weights": "median ** 0.5"} if better else {})
    trials = [tuning.Trial(best, {9: 0.5}), tuning.Trial(own, {9: 0.4})]

    def tune(builder, source, recipe, **_):
        return tuning.TuningResult(recipe, trials, trials[1])

    monkeypatch.setattr(kd, "tune", tune)
    arguments = ["--data", "shapes", "--minutes", "2", "--output", str(tmp_path)]
    assert command.main(arguments) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    expected = f"Train with --recipe {tmp_path / 'tuning.json'}"
    assert last == (expected if better else "No values were better than those of the recipe.")


def test_bad_arguments(source, tmp_path, score):
    with pytest.raises(ValueError, match="`minutes` must be at least 24"):
        search(source, tmp_path / "t", minutes=5)
    with pytest.raises(ValueError, match="a recipe of at least 180 steps"):
        kd.tune("unet", source, RECIPE.replace(steps=90), minutes=60, output=tmp_path / "u")
    with pytest.raises(ValueError, match="`minutes` must be a positive number"):
        search(source, tmp_path / "t", minutes=0)
    (tmp_path / "thesis.txt").write_text("mine")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match="new folder.*thesis.txt"):
        search(source, tmp_path)
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(ValueError, match="`model` must be a ModelBuilder"):
        kd.tune(kd.UNet(3, depth=1), source, minutes=5, output=tmp_path / "t")


@pytest.mark.slow
def test_the_command_with_real_trainings(source, tmp_path, capsys, monkeypatch, clock, eager):
    """All of them change the held-out score; a step takes a second, whatever the machine."""
    monkeypatch.setattr(tuning, "FEWEST_STEPS", 2)
    real_cost, real_score = tuning.training_cost, tuning._trained_score

    def cost(*arguments):
        measured = real_cost(*arguments)
        assert measured.seconds > 0
        return replace(measured, seconds=1.0)

    def trained_score(*arguments):
        clock.now += 11 + arguments[-1]  # so long until it begins
        return real_score(*arguments)

    monkeypatch.setattr(tuning, "training_cost", cost)
    monkeypatch.setattr(tuning, "_trained_score", trained_score)
    monkeypatch.setattr(data, "open_source", lambda name: source)
    path = tmp_path / "t"
    arguments = ["--data", "shapes", "--model", "unet", "--minutes", "1", "--output", str(path)]
    arguments += ["--batch-size", "2", "--set", "model={'depth': 1, 'filters': 4}"]
    arguments += ["crop_size=(32, 32)", "--learning-rate", "0.01"]
    assert command.main(arguments) == 0
    printed = capsys.readouterr().out
    stored = json.loads((path / "tuning.json").read_text())
    scores = [score for trial in stored["trials"] for score in trial["scores"].values()]
    assert len(set(scores)) > 3
    assert (
        f"Train with --recipe {path / 'tuning.json'}" in printed
        or "No values were better" in printed
    )
    assert "mean IoU after" in printed


@pytest.mark.slow
def test_trained_score_is_that_of_the_images_held_out(source, eager):
    held_out = data.HeldOut(source)
    report = data.audit(held_out)
    changes = {"crop_size": (32, 32), "learning_rate": 0.01, "loss": "cross_entropy"}
    recipe = RECIPE.replace(**changes, class_weights=None, model={"depth": 1, "filters": 4})
    builder = ModelBuilder("unet")
    scores = [
        tuning._trained_score(builder, held_out, report, 0, recipe, steps) for steps in (1, 20)
    ]
    assert 0 <= scores[0] < scores[1]
