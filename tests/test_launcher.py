from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


def test_the_command_lists_all_commands_quietly():
    found = run("-c", "from keras_deeplab_launcher import main; main(['--help'])", cwd=ROOT)
    assert found.returncode == 0
    for name in ("train", "evaluate", "predict", "export", "convert", "audit", "train-classifier"):
        assert f"\n  {name} " in found.stdout
    assert "I0000" not in found.stderr
    assert "absl::InitializeLog" not in found.stderr
