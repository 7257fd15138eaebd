"""Which module may import which, and what a plain import does."""

from __future__ import annotations

import ast
import graphlib
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import keras_deeplab
from keras_deeplab._requirements import check_backend

PACKAGE = Path(keras_deeplab.__file__).parent

# The rows of CONTRIBUTING.md, from the bottom to the top: a room imports from itself and from the
# floors below its own.
DIAGRAM = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8").split("```")[3]
FLOORS = [set(row[:49].split()) for row in reversed(DIAGRAM.strip().splitlines())]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
LIBRARIES = {"keras", "tensorflow", "numpy", "PIL", "h5py", "psutil", "scipy"}
# Extras, imported where they are needed.
EXTRAS = {"safetensors", "ai_edge_litert", "onnx", "onnxruntime", "tf2onnx"}
EXTRAS |= {"pyvips", "imageio", "imageio_ffmpeg", "matplotlib", "huggingface_hub"}
EXTRAS |= {"starlette", "anyio", "uvicorn", "optuna"}
EXTRAS |= {"flatbuffers"}  # a requirement of ai_edge_litert
# Imported where they are needed, as it takes time.
EXTRAS |= {"tensorflow_datasets", "array_record"}


def modules() -> dict[str, ast.Module]:
    """Every module of the package, by its dotted name, parsed."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
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
            names |= inner & set(MODULES)
            if not inner <= set(MODULES):
                names.add(node.module)
    return names


IMPORTS = {name: imports(tree) for name, tree in MODULES.items()}
INSIDE = {
    name: {other for other in found if other.split(".")[0] == "keras_deeplab"}
    for name, found in IMPORTS.items()
}


def room(name: str) -> str:
    return name.split(".")[1]


def may_import(name: str, other: str) -> bool:
    if other == "keras_deeplab":
        return room(name) == "cli"
    return room(name) == room(other) or FLOOR[room(other)] < FLOOR[room(name)]


def violations(inside: dict[str, set[str]]) -> list[str]:
    return [
        f"{name} -> {other}"
        for name, found in inside.items()
        for other in found
        if name != "keras_deeplab" and not may_import(name, other)
    ]


def test_every_room_has_one_floor():
    assert {room(name) for name in MODULES if name != "keras_deeplab"} == set(FLOOR)
    assert sum(map(len, FLOORS)) == len(FLOOR)


def test_rooms_import_only_from_the_floors_below():
    assert violations(INSIDE) == []


def test_no_circles_between_modules():
    list(graphlib.TopologicalSorter(INSIDE).static_order())


def test_planted_mistakes_are_seen():
    planted = {**INSIDE, "keras_deeplab.layers.aspp": {"keras_deeplab.graph.geometry"}}
    assert violations(planted) == ["keras_deeplab.layers.aspp -> keras_deeplab.graph.geometry"]
    planted = {**INSIDE, "keras_deeplab.losses": {"keras_deeplab"}}
    assert violations(planted) == ["keras_deeplab.losses -> keras_deeplab"]
    planted = {**INSIDE, "keras_deeplab.layers.resize": {"keras_deeplab.layers.aspp"}}
    with pytest.raises(graphlib.CycleError):
        list(graphlib.TopologicalSorter(planted).static_order())


def test_libraries():
    used = {i.split(".")[0] for found in IMPORTS.values() for i in found} - {"keras_deeplab"}
    assert used - set(sys.stdlib_module_names) <= LIBRARIES | EXTRAS
    internal = [name for name, found in IMPORTS.items() if any("keras.src" in i for i in found)]
    assert internal == ["keras_deeplab.graph.network"]


@pytest.mark.slow
def test_a_plain_import_is_light_and_complete(tmp_path):
    """Also where Keras' configuration file names another backend, which is not imported.

    Keras itself imports matplotlib where it is installed.
    """
    (tmp_path / "keras.json").write_text('{"backend": "jax"}')
    code = """
import sys, keras_deeplab
for name in keras_deeplab.__all__:
    getattr(keras_deeplab, name)
sys.exit(bool({"tensorflow_datasets", "albumentations", "jax"} & set(sys.modules)))
"""
    environment = {**os.environ, "KERAS_HOME": str(tmp_path), "KERAS_BACKEND": ""}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PACKAGE.parent,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_settings_of_keras_are_checked_first():
    first = next(node for node in MODULES["keras_deeplab"].body if isinstance(node, ast.ImportFrom))
    assert first.names[0].name == "_requirements"


def test_another_backend_gets_one_clear_error(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(ImportError, match="it is 'jax'. Set KERAS_BACKEND=tensorflow"):
        check_backend()
    monkeypatch.setenv("KERAS_BACKEND", "")
    monkeypatch.setattr(keras.config, "backend", lambda: "torch")  # Keras was imported before
    with pytest.raises(ImportError, match="it is 'torch'. Set KERAS_BACKEND=tensorflow"):
        check_backend()


def test_channels_first_set_after_the_import_gets_a_clear_error():
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(ValueError, match="'channels_first'. Call keras.config.set_image_data_"):
            keras_deeplab.UNet(2, input_shape=(32, 32, 3))
    finally:
        keras.config.set_image_data_format("channels_last")


def test_channels_first_gets_one_clear_error(monkeypatch):
    monkeypatch.setattr(keras.config, "image_data_format", lambda: "channels_first")
    with pytest.raises(ImportError, match="'channels_first'. Call keras.config.set_image_data_"):
        check_backend()
