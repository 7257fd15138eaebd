"""A search of a recipe's values on images held out of the training split."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from keras_deeplab import data, validation
from keras_deeplab.analysis.table import text_table
from keras_deeplab.extras import require
from keras_deeplab.files import full_disk_named, write_json
from keras_deeplab.folder_lock import FolderLock
from keras_deeplab.losses.summing import takes_class_weights
from keras_deeplab.recipes import Recipe
from keras_deeplab.trainer.building import ModelBuilder
from keras_deeplab.trainer.cost import training_cost
from keras_deeplab.trainer.defaults import for_data, recipe_for, resized, source_name
from keras_deeplab.trainer.run_folder import MONITOR, RESTORE, differences
from keras_deeplab.trainer.stages import Training

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)

FACTOR = 3  # between the lengths, and of the trials of a length that get the next one
MOST_LENGTHS = 3
LONGEST_SHARE = 1 / 8  # of the time, for the longest training
FEWEST_STEPS = 60  # after 28 steps, two trials on CamVid predicted a single class everywhere
FOLDS = 5
ATTEMPTS = 3  # as a system without memory ends the process
MOST_FAILURES = 10  # one after the other
LEARNING_RATES = 4  # times and divided by the recipe's
CROPS = (1, 0.75, 0.5)  # of the recipe's crop
SCALES = ((0.5, 2.0), (0.75, 1.5))
LOSSES = (
    "cross_entropy",
    "cross_entropy + 0.5 * lovasz_softmax(stride=2)",
    "cross_entropy + dice",
)
WEIGHT_POWERS = (0.25, 0.5)
# For each thing that is varied the changes of the recipe by their text, its own first.
Choices = Mapping[str, Mapping[str, Mapping[str, Any]]]
JOURNAL, RESULT, LOCK = "trials.log", "tuning.json", "tuning.lock"
OPTUNA_LOCK = f"{JOURNAL}.lock"  # and names that begin so


@dataclass(frozen=True)
class Trial:
    """One set of values.

    Attributes:
        values: The values of the recipe.
        scores: Mean IoU on the images held out, after trainings of so many steps.
        failure: Why the training failed, or None.
    """

    values: Mapping[str, Any]
    scores: Mapping[int, float]
    failure: str | None = None


@dataclass(frozen=True)
class TuningResult:
    """The result of `tune`; `print` shows it as a table.

    Attributes:
        recipe: The recipe with the values found, in its own length.
        trials: All trials, the best first: those that were trained longest, by mean IoU.
        baseline: The trial with the recipe's own values.
    """

    recipe: Recipe
    trials: Sequence[Trial]
    baseline: Trial

    def __str__(self) -> str:
        lengths = sorted({length for trial in self.trials for length in trial.scores})
        names = list(self.baseline.values)
        rows = [["mean IoU after", *(f"{length} steps" for length in lengths), *names]]
        for trial in self.trials:
            label = "failed" if trial.failure else "recipe" if trial is self.baseline else ""
            scores = [f"{trial.scores[n]:.3f}" if n in trial.scores else "" for n in lengths]
            rows.append([label, *scores, *map(_text, trial.values.values())])
        return text_table(rows)


def tune(
    model: ModelBuilder | str,
    source: data.Source | str | os.PathLike,
    recipe: Recipe | str | os.PathLike | None = None,
    *,
    minutes: float,
    output: str | os.PathLike,
    seed: int = 0,
) -> TuningResult:
    """Searches learning rate, crop size, scales, class weights and loss of a recipe.

    A fifth of the training images is held out (see `data.HeldOut`); `val` is not used, so that it
    can judge the result. Optuna proposes values (the first are the recipe's own). Each trial is a
    whole short training. Of three trials one is trained again three times as long, and of three
    such trials, if the minutes are enough, one nine times as long: asynchronous successive halving.
    The same call resumes a search that was stopped, also with more minutes.

    The values are those for short trainings. A learning rate that is best there can be too large
    for a longer one.

    Args:
        model: A `ModelBuilder`, or the name of a model.
        source: The data, or its path (see `data.open_source`).
        recipe: As of `fit`. A second stage is left out in trials.
        minutes: Time of the whole search, on all calls together.
        output: New folder for the files of the search, or that of an unfinished one.
        seed: Seed of the proposals and of every training.

    Returns:
        A `TuningResult`, which is also written to `tuning.json`, a file of a recipe for `fit`.

    Raises:
        ImportError: If Optuna is not installed (`pip install keras_deeplab[tune]`).
        ValueError: If an argument is out of its range, the minutes are too few, or `output` has
            another search.
        data.DatasetError: If the audit finds faults in the data.

    Example:

    >>> result = keras_deeplab.tune("deeplab_v3_plus", "photos", minutes=120, output="tuning")
    >>> keras_deeplab.fit("deeplab_v3_plus", "photos", result.recipe, run_dir="runs/tuned")

    Reference:
        [Li et al., 2018](https://arxiv.org/abs/1810.05934), section 3.
    """
    require("tune", "tune", "optuna")
    seconds = 60 * validation.positive("minutes", minutes)
    seed = validation.integer("seed", seed, minimum=0)
    name = source_name(source)
    source = data.open_source(source)
    builder = ModelBuilder(model) if isinstance(model, str) else model
    if not isinstance(builder, ModelBuilder):
        raise validation.error("model", "a ModelBuilder or the name of a model", model)
    recipe = recipe_for(builder, recipe)
    builder.check(recipe)
    held_out = resized(data.HeldOut(source, folds=FOLDS), recipe)
    folder = Path(output)
    arguments = {
        **builder.to_dict(),
        "data": name,
        "data_files": source.fingerprint(),
        "recipe": recipe.to_dict(),
        "seed": seed,
    }
    _check_folder(folder)  # before the lock, so that a refused folder is left as it is
    lock = FolderLock(folder, LOCK)
    lock.acquire()
    try:
        _mend_journal(folder)
        with full_disk_named(folder / JOURNAL):
            study = _open_study(folder, arguments, seed)
            report = data.audit(held_out)
            filled = for_data(recipe, report.splits["train"], source.info.classes)
            choices = _choices(filled)
            if "lengths" not in study.user_attrs:
                first = filled.replace(stage2_share=0.0)  # as in the trials
                cost = training_cost(builder, held_out, report, first)
                logger.info("%s", cost)
                study.set_user_attr("lengths", _lengths(cost.seconds, cost.steps, seconds))
            if not study.get_trials():
                study.enqueue_trial(_own_values(filled, choices))
            train = partial(_trained_score, builder, held_out, report, seed)
            _search(study, filled, choices, train, seconds)
        result = _result(study, recipe, choices)
        content = {
            "recipe": result.recipe.to_dict(),
            "trials": [asdict(trial) for trial in result.trials],
        }
        write_json(folder / RESULT, content)
    finally:
        lock.release()
    return result


def _check_folder(folder: Path) -> None:
    paths = folder.iterdir() if folder.exists() else ()
    hidden = (".", OPTUNA_LOCK)  # of the system, and of a process that was killed
    present = {path.name for path in paths if not path.name.startswith(hidden)}
    others = sorted(present - {JOURNAL, RESULT, LOCK})
    if others:
        rule = "a new folder, or that of a search"
        raise validation.error("output", rule, str(folder), f"It has {', '.join(others)}")


def _mend_journal(folder: Path) -> None:
    """Makes the journal of a locked folder one that Optuna can open and append to.

    A process that was killed leaves Optuna's own lock, for which the next one would wait, and it or
    a full disk half a line, to which the next one would append.
    """
    for lock in folder.glob(f"{OPTUNA_LOCK}*"):
        lock.unlink()
    journal = folder / JOURNAL
    *lines, rest = journal.read_bytes().split(b"\n") if journal.exists() else [b""]
    for number, line in enumerate(lines, 1):
        try:
            if not isinstance(json.loads(line), dict):
                raise ValueError("it is not an object")
        except ValueError as error:
            place = f"{journal}, line {number}"
            raise ValueError(f"{place}, is not readable as JSON: {error}. {RESTORE}") from error
    if rest:
        logger.warning("%s ends within line %d, which is cut off.", journal, len(lines) + 1)
        os.truncate(journal, journal.stat().st_size - len(rest))


def _open_study(folder: Path, arguments: dict[str, Any], seed: int) -> optuna.Study:
    """Opens the search of a folder, or begins one; interrupted trials are run again."""
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = str(folder / JOURNAL)
    # Optuna's default lock is a symbolic link, which some systems refuse.
    backend = JournalFileBackend(journal, JournalFileOpenLock(journal))
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        study_name="tuning",
        direction="maximize",
        load_if_exists=True,
    )
    if "arguments" not in study.user_attrs:
        study.set_user_attr("arguments", arguments)
    elif changes := differences(study.user_attrs["arguments"], arguments):
        rule = "a new folder, or that of a search with the same arguments"
        raise validation.error("output", rule, str(folder), changes)
    # Not the same proposals again when a search is resumed.
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.get_trials()))
    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        attempt = trial.user_attrs.get("attempt", 1)
        if attempt < ATTEMPTS:
            # Those it was enqueued with, as it may have been interrupted before it took them all.
            values = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
            study.enqueue_trial(values, user_attrs={"attempt": attempt + 1})
        else:
            failed = optuna.trial.create_trial(
                state=optuna.trial.TrialState.FAIL,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={"failure": f"It was interrupted {attempt} times."},
            )
            study.add_trial(failed)
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study


def _lengths(step_seconds: float, recipe_steps: int, seconds: float) -> list[int]:
    """The steps of the trainings, two lengths or three: the longest take a share of the time."""
    least = FEWEST_STEPS * FACTOR
    if recipe_steps < least:
        raise validation.error("recipe", f"a recipe of at least {least} steps", recipe_steps)
    longest = min(recipe_steps, int(LONGEST_SHARE * seconds / step_seconds))
    if longest < least:
        needed = math.ceil(least * step_seconds / LONGEST_SHARE / 60)
        raise validation.error("minutes", f"at least {needed}", round(seconds / 60, 1))
    count = MOST_LENGTHS if longest >= least * FACTOR else MOST_LENGTHS - 1
    return [longest // FACTOR ** (count - 1) * FACTOR**power for power in range(count)]


def _choices(recipe: Recipe) -> Choices:
    """What is tried for a recipe that has a crop size."""
    height, width = recipe.crop_size
    crops = [(round(share * height), round(share * width)) for share in CROPS]
    own = {"class_weights": recipe.class_weights, "class_weights_power": recipe.class_weights_power}
    weights = [own, {**own, "class_weights": None}]
    weights += [
        {"class_weights": "median", "class_weights_power": power} for power in WEIGHT_POWERS
    ]
    own_loss = {"loss": recipe.loss}
    if not takes_class_weights(recipe.loss):
        own_loss["class_weights"] = None
    return {
        "crop_size": {f"{w}x{h}": {"crop_size": (h, w)} for h, w in crops},
        "scales": {f"{a:g}..{b:g}": {"scales": (a, b)} for a, b in (recipe.scales, *SCALES)},
        "class_weights": {_weights_text(**each): each for each in weights},
        "loss": {recipe.loss: own_loss} | {loss: {"loss": loss} for loss in LOSSES},
    }


def _weights_text(class_weights: str | None, class_weights_power: float) -> str:
    return "none" if class_weights is None else f"{class_weights} ** {class_weights_power:g}"


def _own_values(recipe: Recipe, choices: Choices) -> dict[str, Any]:
    own = {name: next(iter(options)) for name, options in choices.items()}
    return {"learning_rate": recipe.learning_rate, **own}


def _search(
    study: optuna.Study,
    recipe: Recipe,
    choices: Choices,
    train: Callable[[Recipe, int], float],
    seconds: float,
) -> None:
    """Runs trials until the time is over; `train(recipe, steps)` returns a mean IoU."""
    import optuna

    shortest, rate = study.user_attrs["lengths"][0], recipe.learning_rate
    study.pruner = optuna.pruners.SuccessiveHalvingPruner(shortest, FACTOR)
    rates = (rate / LEARNING_RATES, rate * LEARNING_RATES)
    varied = {"learning_rate": optuna.distributions.FloatDistribution(*rates, log=True)}
    for name, options in choices.items():
        varied[name] = optuna.distributions.CategoricalDistribution(list(options))
    end = time.monotonic() + seconds - _spent(study)

    def has_time(steps: int) -> bool:
        step_seconds = study.user_attrs.get("step_seconds", 0.0)
        return time.monotonic() + steps * step_seconds < end

    failures = 0
    while has_time(shortest):
        trial = study.ask(varied)
        changed = recipe.replace(**_changes(trial.params, choices), stage2_share=0.0)
        try:
            values = _values(trial.params, choices)
            score = _train_longer(study, trial, values, partial(train, changed), has_time)
        # Such as a loss that is not finite, or a loss or crop that takes more memory.
        except (ValueError, MemoryError, tf.errors.ResourceExhaustedError) as error:
            if not _finished(study):
                raise
            logger.warning("Trial %d failed: %s", trial.number, error)
            trial.set_user_attr("failure", str(error))
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            failures += 1
            if failures == MOST_FAILURES:
                logger.warning("The search ends: its last %d trials failed.", failures)
                break
        else:
            study.tell(trial, score)
            failures = 0
    if not _finished(study):
        rule = f"enough for a training of {shortest} steps"
        raise validation.error("minutes", rule, round(seconds / 60, 1))


def _changes(values: Mapping[str, Any], choices: Choices) -> dict[str, Any]:
    """From the values of a trial to changes of the recipe."""
    changes = {"learning_rate": values["learning_rate"]}
    for name, options in choices.items():
        changes |= options[values[name]]
    return changes


def _values(params: Mapping[str, Any], choices: Choices) -> dict[str, Any]:
    """The values of a trial as they act: a loss may take no class weights."""
    changes = _changes(params, choices)
    weights = _weights_text(changes["class_weights"], changes["class_weights_power"])
    return {**params, "class_weights": weights}


def _train_longer(
    study: optuna.Study,
    trial: optuna.Trial,
    values: Mapping[str, Any],
    train: Callable[[int], float],
    has_time: Callable[[int], bool],
) -> float:
    """Trains longer and longer while a trial is among the best; returns the last mean IoU."""
    for number, steps in enumerate(study.user_attrs["lengths"]):
        if number and not has_time(steps):
            break
        begin = time.monotonic()
        score = train(steps)
        study.set_user_attr("step_seconds", (time.monotonic() - begin) / steps)
        trial.report(score, steps)
        text = ", ".join(f"{name} {_text(value)}" for name, value in values.items())
        logger.info("Trial %d, %d steps: mean IoU %.3f (%s)", *(trial.number, steps, score, text))
        if trial.should_prune():
            break
    return score


def _trained_score(
    builder: ModelBuilder,
    source: data.Source,
    report: data.Report,
    seed: int,
    recipe: Recipe,
    steps: int,
) -> float:
    """Trains by a recipe that is shortened to some steps; returns the mean IoU after the last."""
    keras.utils.set_random_seed(seed)
    recipe = recipe.replace(steps=steps, epochs=None)
    training = Training(
        builder, recipe, source, report, tf.distribute.get_strategy(), steps, seed, None
    )
    _, history = training.train()
    return history[MONITOR][-1]


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials with a score or a failure, not the interrupted ones."""
    trials = study.get_trials()
    return [t for t in trials if t.value is not None or "failure" in t.user_attrs]


def _spent(study: optuna.Study) -> float:
    """Seconds of all finished trials."""
    return sum(trial.duration.total_seconds() for trial in _finished(study))


def _result(study: optuna.Study, recipe: Recipe, choices: Choices) -> TuningResult:
    trials = []
    for trial in _finished(study):
        scores = dict(sorted(trial.intermediate_values.items()))
        values = _values(trial.params, choices)
        trials.append(Trial(values, scores, trial.user_attrs.get("failure")))
    baseline = trials[0]
    # Only trials of one length are compared, the longest.
    trials.sort(
        key=lambda trial: (trial.failure is None, sorted(trial.scores.items(), reverse=True)),
        reverse=True,
    )
    found = recipe.replace(**_changes(trials[0].values, choices))
    return TuningResult(found, tuple(trials), baseline)


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
