from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from keras_deeplab.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
MESSAGE = "I0000 00:00:1 1 port.cc:1] words"


def run(*arguments: str, **more) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, **more
    )


def test_start_up_messages_are_dropped_and_errors_are_not(tmp_path):
    stand_in = tmp_path / "tensorflow.py"
    stand_in.write_text(
        "import os\n"
        f"os.write(2, b'{MESSAGE}\\n')\n"
        "os.write(2, b'E0000 00:00:1 1 x.cc:1] a real error\\n')\n"
        "class config:\n    list_physical_devices = staticmethod(lambda: [])\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import keras_deeplab_launcher\n"
        "keras_deeplab_launcher.import_tensorflow(); print('mine', file=sys.stderr)"
    )
    found = run("-c", code, cwd=ROOT)
    assert found.returncode == 0
    assert found.stderr.splitlines() == ["E0000 00:00:1 1 x.cc:1] a real error", "mine"]


@pytest.mark.parametrize("how", ["file", "module"])
def test_a_command_runs_quietly_in_a_clone(how, tmp_path):
    script = str(ROOT / "training" / "predict.py")
    arguments = [script] if how == "file" else ["-m", "training.predict"]
    found = run(*arguments, "--lr", "1", cwd=tmp_path if how == "file" else ROOT)
    assert found.returncode == 2
    assert found.stdout == ""
    assert found.stderr.splitlines()[-1].startswith("error: There is no option --lr.")
    assert "I0000" not in found.stderr
    assert "absl::InitializeLog" not in found.stderr


def test_every_command_has_a_script_in_a_clone():
    predict = (ROOT / "training" / "predict.py").read_text()
    for name in COMMANDS:
        script = ROOT / "training" / f"{name.replace('-', '_')}.py"
        assert script.read_text() == predict.replace("predict", name)
