from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for its version

import gc
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    import tensorflow as tf


def make_two_processors() -> None:
    """For tests of strategies; TensorFlow takes the devices before its first operation only."""
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )


# The process of pytest-xdist that only distributes the tests starts faster without TensorFlow.
if "PYTEST_XDIST_WORKER" in os.environ:
    make_two_processors()


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("numprocesses", 0):
        make_two_processors()


def pytest_collection_finish() -> None:
    """Later garbage collections leave out the modules of the libraries."""
    gc.freeze()


@pytest.fixture(scope="session")
def mirrored() -> tf.distribute.Strategy:
    """Two replicas on two logical processors, without collectives.

    TensorFlow numbers the collectives of each strategy from the same number, so that those of two
    strategies in one process are taken for one another.
    """
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strategies that an example makes have a single replica."""
    import tensorflow as tf

    strategy = tf.distribute.MirroredStrategy
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", lambda: strategy(["CPU:0"]))


@pytest.fixture
def eager() -> Iterator[None]:
    """A test whose steps are not traced."""
    from eagerly import eagerly

    with eagerly():
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the project; tests that need it skip without it."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("requires the reference data in the folder `shared` beside the project")
    return folder


@pytest.fixture
def logs(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What the library logs."""
    caplog.set_level(logging.INFO, logger="keras_deeplab")
    return caplog


@pytest.fixture(scope="session")
def write_pair() -> Callable:
    """Writes images/NAME.png and labels/NAME.png below root/split and returns both paths."""

    def write(root: Path, split: str, name: str, label: np.ndarray, image=None, palette=None):
        if image is None:
            image = np.random.default_rng(0).integers(0, 256, (*label.shape, 3), np.uint8)
        paths = [root / split / folder / f"{name}.png" for folder in ("images", "labels")]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(paths[0])
        mask = Image.fromarray(np.asarray(label, np.uint8))
        if palette is not None:
            mask.putpalette([part for color in palette for part in color])
        mask.save(paths[1])
        return paths

    return write
