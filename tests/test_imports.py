"""Which module may import which, and what a plain import does."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import keras_deeplab

PACKAGE = Path(keras_deeplab.__file__).parent

# From the bottom to the top: a room imports from itself and from the floors below its own.
FLOORS: list[set[str]] = [
    {"_version", "_requirements", "names"},
    {"files", "validation"},
    {"labels", "schedules", "distribution"},
    {"layers", "data", "losses", "metrics"},
    {"graph", "boundary"},
    {"backbones", "optimizers", "batch_norm"},
    {"models"},
    {"weights"},
    {"recipes", "inference"},
    {"evaluation", "pictures", "verification", "diagnosis"},
    {"tensorboard", "export", "prediction"},
    {"classification", "trainer"},
    {"cli"},  # may also import the package itself
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
LIBRARIES = {"keras", "tensorflow", "numpy", "PIL", "h5py"}
# Extras, imported where they are needed.
EXTRAS = {"safetensors", "ai_edge_litert"}


def modules() -> dict[str, ast.Module]:
    """Every module of the package, by its dotted name, parsed."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        found[".".join(parts)] = ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = modules()


def imports(tree: ast.Module) -> set[str]:
    """Dotted names that a module imports, anywhere in it, as far as they are modules."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            modules_in_it = inner & set(MODULES)
            names.update(modules_in_it)
            if len(modules_in_it) < len(inner):
                names.add(node.module)
    return names


def room(name: str) -> str:
    return name.split(".")[1]


IMPORTS = {name: imports(tree) for name, tree in MODULES.items()}
INSIDE = {
    name: {i for i in found if i.split(".")[0] == "keras_deeplab"}
    for name, found in IMPORTS.items()
}


def may_import(name: str, other: str) -> bool:
    if other == "keras_deeplab":
        return name == "keras_deeplab" or room(name) == "cli"
    return room(name) == room(other) or FLOOR[room(other)] < FLOOR[room(name)]


def violations(inside: dict[str, set[str]]) -> list[str]:
    return [
        f"{name} -> {other}"
        for name, found in inside.items()
        for other in found
        if name != "keras_deeplab" and not may_import(name, other)
    ]


def circles(inside: dict[str, set[str]]) -> list[str]:
    """Modules from which imports lead back to them."""

    def reachable(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            for other in inside.get(todo.pop(), ()):
                if other not in seen:
                    seen.add(other)
                    todo.append(other)
        return seen

    return [name for name in inside if name in reachable(name)]


def test_every_room_has_one_floor():
    assert {room(name) for name in MODULES if name != "keras_deeplab"} == set(FLOOR)
    assert sum(map(len, FLOORS)) == len(FLOOR)


def test_rooms_import_only_from_the_floors_below():
    assert violations(INSIDE) == []


def test_no_circles_between_modules():
    assert circles(INSIDE) == []


def test_planted_mistakes_are_seen():
    planted = {**INSIDE, "keras_deeplab.layers.aspp": {"keras_deeplab.graph.geometry"}}
    assert violations(planted) == ["keras_deeplab.layers.aspp -> keras_deeplab.graph.geometry"]
    planted = {**INSIDE, "keras_deeplab.layers.resize": {"keras_deeplab.layers.aspp"}}
    assert "keras_deeplab.layers.aspp" in circles(planted)
    planted = {**INSIDE, "keras_deeplab.losses": {"keras_deeplab"}}
    assert violations(planted) == ["keras_deeplab.losses -> keras_deeplab"]


def test_libraries():
    used = {i.split(".")[0] for found in IMPORTS.values() for i in found} - {"keras_deeplab"}
    assert used - set(sys.stdlib_module_names) <= LIBRARIES | EXTRAS


def test_keras_internals_live_in_one_file():
    users = [
        name for name, found in IMPORTS.items() if any(i.startswith("keras.src") for i in found)
    ]
    assert users == ["keras_deeplab.graph.network"]


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    paths = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_plain_import_is_light_and_complete(tmp_path):
    """Also where Keras' configuration file names another backend, which is not imported."""
    (tmp_path / "keras.json").write_text('{"backend": "jax"}')
    code = """
import sys
import keras_deeplab
for name in keras_deeplab.__all__:
    getattr(keras_deeplab, name)
print(sorted({"tensorflow_datasets", "matplotlib", "scipy", "jax"} & set(sys.modules)))
"""
    done = run(code, KERAS_HOME=str(tmp_path), KERAS_BACKEND="")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2] == "[]"


CHANNELS = "import keras; keras.config.set_image_data_format('channels_first'); "


@pytest.mark.parametrize(
    "code, backend, message",
    [
        ("", "jax", "backend of Keras .* it is 'jax'. Set KERAS_BACKEND=tensorflow"),
        (CHANNELS, "", "'channels_first'. Call keras.config.set_image_data_format"),
    ],
)
def test_other_settings_of_keras_get_one_clear_error(code, backend, message):
    done = run(code + "import keras_deeplab", KERAS_BACKEND=backend)
    assert done.returncode == 1
    assert re.search(f"^ImportError: .*{message}", done.stderr.strip().split("\n")[-1])
    assert "During handling" not in done.stderr
