from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHATTER = "I0000 00:00:1 1 port.cc:1] words"


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )


def test_start_up_messages_are_dropped_and_others_are_not(tmp_path):
    stand_in = tmp_path / "tensorflow.py"
    stand_in.write_text(
        "import os\n"
        f"os.write(2, b'{CHATTER}\\n')\n"
        "os.write(2, b'E0000 00:00:1 1 x.cc:1] a real error\\n')\n"
        "class config:\n    list_physical_devices = staticmethod(lambda: [])\n"
    )
    code = (
        f"import importlib.util, sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "spec = importlib.util.spec_from_file_location('quiet', 'training/quiet.py')\n"
        "quiet = importlib.util.module_from_spec(spec); spec.loader.exec_module(quiet)\n"
        "quiet.import_tensorflow(); print('mine', file=sys.stderr)"
    )
    found = run(code)
    assert found.returncode == 0
    assert found.stderr.splitlines() == ["E0000 00:00:1 1 x.cc:1] a real error", "mine"]


def test_the_commands_start_quietly():
    found = run("import training.train")
    assert found.returncode == 0
    assert "I0000" not in found.stderr
    assert "absl::InitializeLog" not in found.stderr
