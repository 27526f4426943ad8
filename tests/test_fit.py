"""The epoch loop: what ends a run before its last epoch."""

import numpy as np
import pytest

from mnist_jax.config import default_config
from mnist_jax.data import Dataset
from mnist_jax.errors import InputError
from mnist_jax.fit import check_finite, fit, prepare
from mnist_jax.records import EpochRecord


def test_a_run_that_diverges_ends_with_what_to_change(digits: Dataset):
    config = default_config(
        "mlp", hidden=(8,), learning_rate=1e30, schedule="constant", batch_size=256
    )
    told: list[EpochRecord] = []
    with pytest.raises(InputError) as error:
        fit(prepare(config, digits), 0, told.append)
    message = str(error.value)
    assert "mlp: the loss is " in message and " of 6 of epoch 1; no epoch" in message
    assert "--learning_rate below 1e+30 or --clip_norm=1" in message
    assert told == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_bad_step_and_the_last_good_epoch_are_named(bad):
    config = default_config("cnn")
    check_finite(np.ones(9), config, [])
    epochs = [EpochRecord(2, 0.25, 0.875, None, None, 1.0, 0.0)] * 2
    with pytest.raises(InputError) as error:
        check_finite(np.array([1, 2, bad, 3, np.nan]), config, epochs)
    assert str(error.value) == (
        f"cnn: the loss is {bad} at step 3 of 5 of epoch 3; epoch 2 ended with loss "
        "0.2500 and accuracy 0.8750; try a --learning_rate below 0.003 or --clip_norm=1"
    )


def test_a_bad_evaluation_is_named_as_such():
    with pytest.raises(InputError, match="nan at the evaluation of epoch 1; no epoch"):
        check_finite(float("nan"), default_config("cnn"), [])
