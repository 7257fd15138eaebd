"""What the command line says of the recipe is used, or refused before anything is trained."""

from __future__ import annotations

import keras
import pytest

from keras_deeplab import recipes
from training import building, train

pytestmark = pytest.mark.usefixtures("small")

SHORT = ["--epochs", "1", "--batch-size", "5", "--crop-size", "48", "64"]


@pytest.mark.parametrize("policy", ["freeze", "freeze_statistics"])
def test_batch_norms_are_not_frozen_before_they_saw_anything(policy, tmp_path, capsys):
    arguments = [*SHORT, "--set", f"batch_norm={policy}", "--output", str(tmp_path / "run")]
    assert train.main(arguments) == 2
    said = capsys.readouterr()
    assert f"The recipe finetune has batch_norm '{policy}', which needs trained" in said.err
    assert "give --weights, or --set batch_norm=train." in said.err
    assert "Epoch 1" not in said.out


def test_a_network_without_batch_norms_or_with_weights_may_have_them_frozen():
    plain = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 1)])
    building.check_frozen_norms(plain, recipes.find("v2"), None)
    plain.add(keras.layers.BatchNormalization())
    building.check_frozen_norms(plain, recipes.find("v2"), "imagenet")
    building.check_frozen_norms(plain, recipes.find("v3"), None)
    with pytest.raises(ValueError, match="v2 has batch_norm 'freeze'"):
        building.check_frozen_norms(plain, recipes.find("v2"), None)
