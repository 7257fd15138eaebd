from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import keras_deeplab
import keras_deeplab_launcher as launcher

ROOT = Path(__file__).resolve().parents[1]
MESSAGES = [
    "I0000 00:00:1 1 port.cc:1] words",
    "E0000 00:00:1 1 cuda.cc:1] failed call to cuInit: CUDA error: UNKNOWN ERROR (303)",
    "E0000 00:00:1 1 x.cc:1] a real error",
]


def run(*arguments: str, **more) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, **more
    )


NO_DEVICES = "class config:\n    list_physical_devices = staticmethod(lambda: [])\n"


def run_with(
    folder: Path, tensorflow: str, code: str, **environment: str
) -> subprocess.CompletedProcess:
    """Runs code with the launcher and a stand-in of TensorFlow."""
    (folder / "tensorflow.py").write_text(tensorflow)
    unset = ("TF_ENABLE_ONEDNN_OPTS", "CUDA_VISIBLE_DEVICES")
    inherited = {k: v for k, v in os.environ.items() if k not in unset}
    environment = {**inherited, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", **environment}
    code = f"import platform, sys; import keras_deeplab_launcher as launcher; {code}"
    return run("-c", code, env=environment)


def test_start_up_messages_are_dropped_and_errors_are_not(tmp_path):
    text = "".join(f"{message}\n" for message in MESSAGES)
    writing = f"import os\nos.write(2, {text.encode()!r})\n{NO_DEVICES}"
    code = "launcher.import_tensorflow(); print('mine', file=sys.stderr)"
    found = run_with(tmp_path, writing, code)
    assert found.returncode == 0
    assert found.stderr.splitlines() == [MESSAGES[-1], "mine"]


def test_an_interrupt_while_modules_are_imported_is_one_line(tmp_path):
    code = "sys.exit(launcher.main(['train', '--help']))"
    found = run_with(tmp_path, "raise KeyboardInterrupt", code)
    assert (found.returncode, found.stderr) == (130, "\nInterrupted.\n")


def test_a_terminated_command_ends_as_an_interrupted_one(tmp_path):
    """So that it removes its temporary files."""
    (tmp_path / "tensorflow.py").write_text(
        "import os, signal\n"
        "try:\n    os.kill(os.getpid(), signal.SIGTERM)\n    signal.pause()\n"
        "finally:\n    print('removed')"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import keras_deeplab_launcher\n"
        "sys.exit(keras_deeplab_launcher.main(['train', '--help']))"
    )
    found = run("-c", code, cwd=ROOT)
    assert (found.returncode, found.stdout, found.stderr) == (
        143,
        "removed\n",
        "\nInterrupted.\n",
    )


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_command_without_an_output_goes_on(tmp_path, closed):
    line = f"'{sys.executable}' -m keras_deeplab_launcher"
    line += f" analyze --model deeplab_v3 --json '{tmp_path}/a.json' {closed}"
    found = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, check=False)
    assert found.returncode == 0
    assert (tmp_path / "a.json").exists()


@pytest.mark.parametrize("second", ["INT", "TERM"])
def test_a_second_signal_does_not_stop_the_last_steps(tmp_path, second):
    (tmp_path / "tensorflow.py").write_text(
        "import atexit, os, signal\n"
        f"def last():\n    os.kill(os.getpid(), signal.SIG{second})\n    print('last')\n"
        "atexit.register(last)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\nsignal.pause()\n"
    )
    code = (
        f"import signal, sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import keras_deeplab_launcher\n"
        "before = signal.getsignal(signal.SIGINT)\n"
        "status = keras_deeplab_launcher.main(['train', '--help'])\n"
        "assert signal.getsignal(signal.SIGINT) is before\n"
        "sys.exit(status)"
    )
    found = run("-c", code, cwd=ROOT)
    assert (found.returncode, found.stdout) == (143, "last\n")
    assert found.stderr == "\nInterrupted.\n"


def test_settings_that_keras_cannot_work_with_are_one_line(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}
    arguments = ("-m", "keras_deeplab_launcher", "--version")
    found = run(*arguments, cwd=ROOT, env={**environment, "KERAS_BACKEND": "jax"})
    assert (found.returncode, found.stderr.count("\n")) == (2, 1)
    assert found.stderr.startswith("error: keras_deeplab needs the TensorFlow backend of Keras")
    (tmp_path / "keras.json").write_text('{"backend": "jax"}')  # which may not be installed
    found = run(*arguments, cwd=ROOT, env={**environment, "KERAS_HOME": str(tmp_path)})
    assert (found.returncode, found.stderr) == (0, "")


def test_without_a_folder_for_temporary_files_messages_are_shown(tmp_path, monkeypatch, capfd):
    def refuse():
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(launcher.tempfile, "TemporaryFile", refuse)
    launcher.import_tensorflow()  # which is imported already
    assert "error" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "machine, given, expected",
    [
        ("x86_64", {}, "1"),
        ("AMD64", {}, "1"),
        ("x86_64", {"TF_ENABLE_ONEDNN_OPTS": "0"}, "0"),
        ("aarch64", {}, "None"),
    ],
)
def test_commands_compute_with_onednn_on_x86_unless_it_is_set(machine, given, expected, tmp_path):
    printing = f"import os\nprint(os.environ.get('TF_ENABLE_ONEDNN_OPTS'))\n{NO_DEVICES}"
    code = f"platform.machine = lambda: {machine!r}; launcher.import_tensorflow()"
    found = run_with(tmp_path, printing, code, **given)
    assert found.stdout == f"{expected}\n", found.stderr


@pytest.mark.parametrize(
    "node, seen, visible, warned",
    [
        ("nvidia0", "CPU", {}, True),
        ("nvidia3", "CPU", {"CUDA_VISIBLE_DEVICES": "0"}, True),
        ("nvidia0", "GPU", {}, False),
        ("nvidia0", "CPU", {"CUDA_VISIBLE_DEVICES": "-1"}, False),
        ("nvidiactl", "CPU", {}, False),
    ],
)
def test_a_gpu_that_tensorflow_does_not_use_is_a_warning(node, seen, visible, warned, tmp_path):
    (tmp_path / node).touch()
    one = f"class device:\n    device_type = {seen!r}\n" + NO_DEVICES.replace("[]", "[device]")
    nodes = str(tmp_path / "nvidia[0-9]*")
    code = f"launcher.NVIDIA_GPUS = {nodes!r}; launcher.import_tensorflow()"
    found = run_with(tmp_path, one, code, **visible)
    warning = "warning: TensorFlow does not use the GPU of this machine: "
    expected = f"{warning}pip install 'tensorflow[and-cuda]'\n"
    assert found.stderr == (expected if warned else "")
    assert found.returncode == 0


@pytest.mark.slow
def test_a_command_runs_quietly_in_a_clone():
    found = run("-m", "training.train", "--lr", "1", cwd=ROOT)
    assert (found.returncode, found.stdout) == (2, "")
    message = "error: There is no option --lr. Did you mean '--learning-rate'? See --help.\n"
    assert found.stderr == message


def test_every_command_has_a_script_in_a_clone():
    for name in launcher.COMMANDS:
        script = ROOT / "training" / f"{name.replace('-', '_')}.py"
        assert f'main(["{name}", *sys.argv[1:]])' in script.read_text()


@pytest.mark.parametrize("arguments", [[], ["--help"], ["evalute", "--model", "a.keras"]])
def test_help_and_a_wrong_command_do_not_import_tensorflow(arguments, monkeypatch, capsys):
    monkeypatch.setattr(launcher, "import_tensorflow", lambda: pytest.fail("imported"))
    wrong = len(arguments) > 1
    assert launcher.main(arguments) == (2 if wrong else 0)
    printed = capsys.readouterr()
    assert ("predict label maps of images" in printed.out) != wrong
    meant = "error: There is no command 'evalute'. Did you mean 'evaluate'? See --help.\n"
    assert printed.err == (meant if wrong else "")


def test_the_first_argument_names_the_command(monkeypatch, capsys):
    modules = [
        importlib.import_module(f"keras_deeplab.cli.{n.replace('-', '_')}")
        for n in launcher.COMMANDS
    ]
    assert all(module.parser() for module in modules)
    monkeypatch.setattr(launcher, "import_tensorflow", lambda: None)
    monkeypatch.setattr(modules[-1], "main", lambda argv: print("classifier", *argv) or 3)
    assert launcher.main(["train-classifier", "--epochs", "1"]) == 3
    assert launcher.main(["--version"]) == 0
    assert capsys.readouterr().out == f"classifier --epochs 1\n{keras_deeplab.__version__}\n"
