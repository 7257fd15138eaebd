from __future__ import annotations

import keras
import pytest


@pytest.fixture(autouse=True, scope="module")
def seeded_module() -> None:
    """Fixtures of a module start from the same weights in every run."""
    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True)
def seeded_test() -> None:
    """So does each test, whichever others run."""
    keras.utils.set_random_seed(0)
