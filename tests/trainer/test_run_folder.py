"""Resuming a run where files are missing, damaged or of another run."""

from __future__ import annotations

import csv
import itertools
import json
import math
import shutil
import zipfile
from collections import namedtuple

import keras
import numpy as np
import pytest

from keras_deeplab.files import DiskFullError, stored_bytes
from keras_deeplab.folder_lock import FolderLock
from keras_deeplab.trainer import callbacks, finishing
from keras_deeplab.trainer.run_folder import MONITOR, Record, RunFolder, next_free

ARGUMENTS = {"seed": 0}


def store(path, run, epochs, score, best):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}" * 1000)
    Record(run, epochs, score, best).write(path)


def unfinished(path, arguments=ARGUMENTS):
    """A run that has done three epochs, the second one the best."""
    folder = RunFolder(path)
    folder.begin(arguments)
    store(folder.last_model, folder.run, 3, score=0.6, best=0.7)
    store(folder.best_model, folder.run, 2, score=0.7, best=0.7)
    folder.history.write_text(f"epoch,{MONITOR}\n0,0.5\n1,0.7\n2,0.6\n")
    folder.lock.release()
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.path.iterdir()}


def again(folder, arguments=ARGUMENTS):
    """Starts once more; gives the epochs that were done and the score to beat."""
    folder = RunFolder(folder.path)
    try:
        return folder.begin(arguments), folder.best_score()
    finally:
        folder.lock.release()


def test_a_run_resumes_from_its_last_model(tmp_path, logs):
    folder = unfinished(tmp_path / "run")
    folder.epochs.write_text("epoch,seconds\n0,9\n1,8\n2,7\n3,6\n4,")
    folder.history.write_text(folder.history.read_text() + "3,0.9\n4,0.")  # killed while it wrote
    assert again(folder) == (3, 0.7)
    assert folder.history.read_text() == f"epoch,{MONITOR}\n0,0.5\n1,0.7\n2,0.6\n"
    assert folder.epochs.read_text() == "epoch,seconds\n0,9\n1,8\n2,7\n"
    assert logs.messages == []


def test_the_best_score_is_that_of_the_model_that_is_there(tmp_path, logs):
    folder = unfinished(tmp_path / "run")
    folder.best_model.write_bytes(folder.last_model.read_bytes())
    assert again(folder) == (3, 0.6)
    assert f"{folder.best_model} is not the best model, with a mean IoU of 0.700" in logs.text
    logs.clear()
    store(folder.last_model, folder.run, 3, score=None, best=None)  # without a validation
    folder.best_model.unlink()
    assert again(folder) == (3, -np.inf)
    assert logs.messages == []


NAMES = ("run.json", "last.keras", "model.keras", "history.csv")


@pytest.mark.parametrize(
    "missing", [*itertools.combinations(NAMES, 1), *itertools.combinations(NAMES, 2)]
)
def test_whatever_is_missing_a_worse_model_replaces_none(tmp_path, logs, missing):
    folder = unfinished(tmp_path / "run")
    for name in missing:
        (folder.path / name).unlink()
    before = contents(folder)
    try:
        assert again(folder) == (3, 0.7 if "model.keras" not in missing else -np.inf)
        messages = logs.messages
    except ValueError as error:
        messages = [str(error)]
        assert contents(folder) == before
    refused = "run.json" in missing or "last.keras" in missing
    assert ("another folder" in " ".join(messages)) == refused
    assert len(messages) == (1 if refused else len(missing))
    named = [name for name in missing if name in " ".join(messages)]
    assert named if refused else named == list(missing)


def test_a_run_whose_state_is_lost_is_not_begun_again(tmp_path):
    folder = unfinished(tmp_path / "run")
    folder.last_model.unlink()
    message = f"last.keras is missing, .* epoch 3. Restore it.*from {folder.best_model}"
    with pytest.raises(ValueError, match=message):
        again(folder)
    # Killed in its first epoch before the last model had its name, a run has lost nothing.
    store(folder.best_model, Record.read(folder.best_model).run, 1, score=0.5, best=0.5)
    folder.history.write_text(f"epoch,{MONITOR}\n0,0.5\n")
    assert again(folder) == (0, 0.5)
    assert folder.history.read_text() == ""
    folder.best_model.unlink()  # two epochs are more
    folder.history.write_text(f"epoch,{MONITOR}\n0,0.5\n1,0.7\n")
    with pytest.raises(ValueError, match="last.keras is missing, .* epoch 2. Restore it"):
        again(folder)


@pytest.mark.parametrize(
    "name, how",
    [
        ("last.keras", "text"),
        ("last.keras", "cut off"),
        ("last.keras", "changed"),
        ("last.keras", "another run"),
        ("model.keras", "another run"),
    ],
)
def test_a_model_that_is_not_the_runs_is_refused(tmp_path, name, how):
    folder = unfinished(tmp_path / "run")
    path, other = folder.path / name, unfinished(tmp_path / "other", {"seed": 1})
    content = path.read_bytes()
    damaged = {
        "text": b"hours of work",
        "cut off": content[: len(content) // 2],
        "changed": content.replace(b"{}{}", b"{}[]", 1),
        "another run": (other.path / name).read_bytes(),
    }
    path.write_bytes(damaged[how])
    rule = "belongs to a different run" if how == "another run" else "is damaged, or was not"
    message = rf"^{path} {rule}.* Restore it, or choose another folder\."
    with pytest.raises(ValueError, match=message) as caught:
        again(folder)
    assert path.read_bytes() == damaged[how]
    if how != "another run":
        advice = f" A new run can start from {folder.best_model}: pass it as `weights`."
        assert str(caught.value).count("start from") == 1
        assert str(caught.value).endswith(advice)
        folder.best_model.write_bytes(b"")
        with pytest.raises(ValueError, match=f"^{path} {rule}.* another folder.$"):
            again(folder)


@pytest.mark.parametrize("content", [b"", b"hours of work", None])
@pytest.mark.parametrize("validated", [True, False])
def test_a_damaged_best_model_is_as_a_missing_one(tmp_path, logs, content, validated):
    folder = unfinished(tmp_path / "run")
    if not validated:
        store(folder.last_model, folder.run, 3, score=None, best=None)
    if content is None:
        content = folder.best_model.read_bytes().replace(b"{}{}", b"{}[]", 1)
    folder.best_model.write_bytes(content)
    assert again(folder) == (3, -np.inf)
    aside = folder.path / "model-damaged-1.keras"
    assert aside.read_bytes() == content  # which may be a file of the user
    assert not folder.best_model.exists()
    rule = "is damaged, or was not written by a run of this version; it is now"
    warnings = [f"{folder.best_model} {rule} {aside.name}."]
    assert logs.messages[:1] == warnings
    assert len(logs.messages) == 1 + validated
    assert ("is not the best model, with a mean IoU of 0.700" in logs.text) == validated
    folder.best_model.write_bytes(b"again")
    again(folder)
    assert aside.read_bytes() == content
    assert (folder.path / "model-damaged-2.keras").read_bytes() == b"again"
    logs.clear()
    folder.last_model.unlink()  # without it, a damaged best model tells nothing
    folder.best_model.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{folder.best_model} is damaged.* another folder.$"):
        again(folder)
    assert folder.best_model.read_bytes() == content


def outcome(path):
    try:
        return Record.read(path)
    except ValueError as error:
        return str(error)


def test_one_byte_of_an_archives_directory_is_an_error_of_one_line(tmp_path):
    """Each module that reads an archive has its own errors, and which one depends on the byte."""
    path, refused = tmp_path / "last.keras", 0
    store(path, "a1b2", 3, 0.6, 0.7)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    random = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(content)
        damaged[random.integers(start, len(content))] = random.integers(256)
        path.write_bytes(damaged)
        found = outcome(path)
        if isinstance(found, str):
            refused += 1
            assert found.startswith(f"{path} is damaged")
            assert "\n" not in found
    assert refused > 80


def test_a_compressed_archive_is_not_unpacked(tmp_path):
    path = tmp_path / "last.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", bytes(1_000_000))
    Record("a1b2", 3, 0.6, 0.7).write(path)
    assert outcome(path).startswith(f"{path} is damaged, or was not written by a run")


@pytest.mark.parametrize(
    "comment",
    [
        *(b"", b"[]", b'{"a":' * 10_000, b"\xff"),
        b'{"run": "a", "epochs": -3, "score": null, "best": null}',
        b'{"run": 1, "epochs": 3, "score": null, "best": null}',
        b'{"run": "a", "epochs": 3, "score": "x", "best": 0.5}',
    ],
)
def test_odd_records(tmp_path, comment):
    path = tmp_path / "last.keras"
    store(path, "a1b2", 3, 0.6, 0.7)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = comment
    found = outcome(path)
    assert found.startswith(f"{path} is damaged, or was not written by a run of")
    assert found.endswith(f"A new run can start from {path}: pass it as `weights`.")


def test_a_file_that_the_system_refuses_is_not_called_damaged(tmp_path):
    with pytest.raises(OSError, match="nowhere.keras"):
        Record.read(tmp_path / "nowhere.keras")


@pytest.mark.parametrize("content", [b"", b"[]"])
def test_odd_arguments_are_named(tmp_path, content):
    folder = unfinished(tmp_path / "run")
    folder.arguments.write_bytes(content)
    message = f"^{folder.arguments} (must hold a JSON object|is not readable).*another folder"
    with pytest.raises(ValueError, match=message):
        again(folder)
    assert folder.arguments.read_bytes() == content
    folder.last_model.unlink()
    folder.best_model.unlink()
    folder.history.write_text("")
    assert again(folder) == (0, -np.inf)  # nothing was trained
    assert json.loads(folder.arguments.read_text()) == ARGUMENTS


@pytest.mark.parametrize(
    "content",
    [b"\0\xff" * 100, b"epoch\n" + b"\0" * 200_000 + b"\n", b"0,0.5\n1,0.7\n2,0.6\n", b"epoch"],
)
def test_an_odd_history_begins_again(tmp_path, content, logs):
    folder = unfinished(tmp_path / "run")
    folder.history.write_bytes(content)
    assert again(folder) == (3, 0.7)
    assert f"{folder.history} lacks 3 of the 3 completed epochs" in logs.text
    assert folder.history.read_text() == ""


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_rows_that_were_cut_are_not_kept(tmp_path, logs, end):
    """By a full disk or a killed process; a value of several numbers is one cell."""
    lines = [f"epoch,loss,{MONITOR}", '0,0.25,"""[1, 2]"""', "1,0.25,0.7", "2,0.25,0.6"]
    folder = unfinished(tmp_path / "run")
    written = "".join(line + end for line in lines).encode()
    for cut in range(len(lines[0]) + len(end), len(written) + 1):
        folder.history.write_bytes(written[:cut])
        logs.clear()
        assert again(folder) == (3, 0.7)
        whole = written[:cut].count(end[0].encode()) - 1
        kept = "".join(line + end for line in lines[: 1 + whole] if whole).encode()
        assert folder.history.read_bytes() == kept
        lost = f"{folder.history} lacks {3 - whole} of the 3 completed epochs"
        assert (lost in logs.text) == (whole < 3)
    folder.history.write_bytes(written.replace(b"1,0.25,0.7", b"1,0.25"))  # and then a new row
    logs.clear()
    assert again(folder) == (3, 0.7)
    assert folder.history.read_bytes() == written.replace(f"1,0.25,0.7{end}".encode(), b"")
    assert f"{folder.history} lacks 1 of the 3 completed epochs" in logs.text


def test_arguments_may_change_until_something_was_trained(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.begin({"batch_size": 512})  # and then the memory ran out in the first epoch
    folder.history.write_text("")
    folder.lock.release()
    assert again(folder, {"batch_size": 8}) == (0, -np.inf)
    assert json.loads(folder.arguments.read_text()) == {"batch_size": 8}
    with pytest.raises(ValueError, match="seed was 0, is 1"):
        again(unfinished(tmp_path / "other"), {"seed": 1})


def test_the_next_run_gets_a_number(tmp_path):
    first = RunFolder(tmp_path / "shapes")
    for _ in range(2):
        assert next_free(first.path) == next_free(first.path, resumes=False) == first.path
        first.path.mkdir(exist_ok=True)  # an empty folder is free
    first.begin({})
    assert next_free(first.path) == first.path  # unfinished: it is resumed
    assert next_free(first.path, resumes=False) == tmp_path / "shapes-2"
    first.metrics.write_text("{}")
    assert next_free(first.path) == tmp_path / "shapes-2"


Usage = namedtuple("Usage", "total, used, free")


def test_a_folder_in_use_is_refused_until_its_process_ends(tmp_path):
    pytest.importorskip("fcntl")
    folder = unfinished(tmp_path / "run")
    folder.begin(ARGUMENTS)
    before = contents(folder)
    message = f"^{folder.path} is in use by another process.*another folder"
    with pytest.raises(ValueError, match=message):
        again(folder)
    assert contents(folder) == before
    folder.lock.release()
    assert again(folder) == (3, 0.7)


def test_a_run_that_ended_before_the_lock_is_not_resumed(tmp_path, monkeypatch):
    first, acquire = unfinished(tmp_path / "run"), FolderLock.acquire

    def acquire_too_late(lock):
        first.metrics.write_text("{}")
        acquire(lock)

    monkeypatch.setattr(FolderLock, "acquire", acquire_too_late)
    with pytest.raises(ValueError, match="holds a finished run"):
        again(first)
    assert Record.read(first.last_model).epochs == 3


def test_without_a_best_model_the_last_one_is_scored(tmp_path, logs):
    folder = trained(RunFolder(tmp_path / "run"), 2)
    folder.best_model.unlink()
    _, record = finishing._best_model(folder)
    assert record == Record.read(folder.last_model)
    assert f"{folder.best_model} is missing. Using {folder.last_model} instead." in logs.messages


def test_folders_of_others_are_left_alone(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds files, but no run"):
        folder.begin(ARGUMENTS)
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a finished run"):
        folder.begin(ARGUMENTS)
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.txt", "metrics.json"}
    with pytest.raises(ValueError, match="is a file. Choose another folder"):
        RunFolder(tmp_path / "thesis.txt").begin(ARGUMENTS)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_what_a_file_manager_writes_into_a_new_folder_is_no_obstacle(tmp_path):
    for name in (".DS_Store", "desktop.ini", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"")
    assert RunFolder(tmp_path).begin(ARGUMENTS) == 0


class Scores(keras.callbacks.Callback):
    """Gives each epoch a score."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def on_epoch_end(self, epoch, logs=None):
        logs[MONITOR] = self.scores[epoch]


PAIR = np.ones((1, 2)), np.ones((1, 1))


def trained(folder, epochs, scores=(0.9, 0.2, 0.9, 0.4)):
    """Trains a small network up to so many epochs, from those on that were done."""
    folder = RunFolder(folder.path)
    done = folder.begin(ARGUMENTS)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(), "mse")
    model.optimizer.build(model.trainable_variables)
    made = [Scores(scores), keras.callbacks.CSVLogger(folder.history, append=done > 0)]
    made += [callbacks.Checkpoint(folder, restore=done > 0, epochs=range(1, epochs + 1))]
    model.fit(*PAIR, initial_epoch=done, epochs=epochs, verbose=0, callbacks=made)
    folder.lock.release()
    assert int(model.optimizer.iterations) == epochs
    return folder


@pytest.mark.slow
def test_no_worse_model_replaces_the_best_one(tmp_path):
    folder = trained(RunFolder(tmp_path / "run"), 1)
    best = folder.best_model.read_bytes()
    trained(folder, 3)
    assert folder.best_model.read_bytes() == best
    folder.best_model.unlink()
    trained(folder, 4)
    assert Record.read(folder.best_model) == Record.read(folder.last_model)
    assert Record.read(folder.best_model)[1:] == (4, 0.4, 0.4)
    model = keras.models.load_model(folder.best_model)
    assert int(model.optimizer.iterations) == 4


@pytest.mark.slow
def test_epochs_of_few_images_are_not_all_saved(tmp_path, monkeypatch):
    """But the first, those of validations and after a minute, and one at which a callback stops."""
    clock, saved = [0.0], []
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: clock[0])

    class Ends(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            clock[0] += 25
            self.model.stop_training = epoch + 1 == last
            if folder.last_model.exists():
                saved.append(Record.read(folder.last_model).epochs)

    for validated, last in ((True, 10), (False, 10), (True, 8)):
        folder = RunFolder(tmp_path / f"{validated}{last}")
        folder.begin(ARGUMENTS)
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        checkpoint = callbacks.Checkpoint(folder, validated, epochs=[8, 16])
        saved.clear()
        made = [Scores([0.1 + 0.01 * k for k in range(16)]), checkpoint, Ends()]
        model.fit(*PAIR, epochs=16, verbose=0, callbacks=made)
        assert list(dict.fromkeys(saved)) == [1, 4, 7, 8]
        assert Record.read(folder.last_model).epochs == last
        assert Record.read(folder.best_model).epochs == (8 if validated else 10)
        folder.lock.release()


def test_a_run_killed_between_two_saves_resumes(tmp_path):
    class Killed(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 5:
                raise KeyboardInterrupt

    folder = RunFolder(tmp_path)
    folder.begin(ARGUMENTS)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    made = [callbacks.History(folder.history), callbacks.Checkpoint(folder, epochs=[8]), Killed()]
    with pytest.raises(KeyboardInterrupt):
        model.fit(*PAIR, epochs=8, verbose=0, callbacks=made)
    folder.lock.release()
    assert len(folder.history.read_text().splitlines()) == 1 + 5
    again = RunFolder(tmp_path)
    assert again.begin(ARGUMENTS) == 1
    again.lock.release()
    assert len(folder.history.read_text().splitlines()) == 1 + 1


def test_a_resumed_history_has_the_columns_of_its_file(tmp_path):
    """Other than those of the first epoch that is logged then, without a validation."""
    path = tmp_path / "history.csv"
    rows = [{"loss": 1.0, "val_loss": 2.0}, {"loss": 3.0, "norm": 4.0}]
    rows += [{"loss": 5.0, "val_loss": 6}]
    for epoch, logs in enumerate(rows):
        history = callbacks.History(path, append=epoch > 0)
        history.set_model(keras.Sequential())
        history.on_train_begin()
        history.on_epoch_end(epoch, logs)
        history.on_train_end()
    with path.open() as file:
        found = list(csv.DictReader(file))
    assert [row["loss"] for row in found] == ["1.0", "3.0", "5.0"]
    assert [row["val_loss"] for row in found] == ["2.0", "NA", "6"]
    assert None not in found[1]


def test_a_score_that_is_no_number_is_beaten_by_any(tmp_path):
    scores = [math.nan, math.nan, 0.1, 0.0]
    folder = trained(RunFolder(tmp_path / "run"), 2, scores)
    records = [Record.read(path)[1:] for path in (folder.best_model, folder.last_model)]
    assert records == [(1, None, None), (2, None, None)]
    trained(folder, 4, scores)
    assert Record.read(folder.best_model)[1:] == (3, 0.1, 0.1)


@pytest.mark.slow
def test_without_space_the_models_there_stay_and_the_run_goes_on(tmp_path, monkeypatch):
    folder = trained(RunFolder(tmp_path / "run"), 1)
    before = [path.read_bytes() for path in (folder.last_model, folder.best_model)]
    space = 2 * stored_bytes(keras.saving.load_model(folder.last_model)) - 1
    # The second has space for the weights, the third for one of the two models.
    for usage in (Usage(100, 92, 8), Usage(100, 70, 30), Usage(2 * space, space, space)):
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
            with pytest.raises(DiskFullError, match=r"last\.keras could not be written"):
                trained(folder, 2, scores=[0.9, 0.95])
        assert [path.read_bytes() for path in (folder.last_model, folder.best_model)] == before
    trained(folder, 2, scores=[0.9, 0.95])
    assert Record.read(folder.best_model)[1:] == (2, 0.95, 0.95)
    with folder.history.open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1"]
