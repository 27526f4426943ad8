"""Splits: the official one, scikit-learn's, Keras's validation set, and errors."""

import dataclasses

import numpy as np
import pytest

from mnist_jax.config import TrainConfig
from mnist_jax.data.splits import split_dataset
from mnist_jax.data.types import Dataset, Split
from mnist_jax.errors import InputError


@pytest.fixture
def small():
    """A dataset of 60 training and 10 test images, filled with their indices."""
    images = np.repeat(np.arange(70, dtype=np.uint8), 784).reshape(70, 28, 28)
    labels = np.arange(70, dtype=np.int32) % 10
    return Dataset(
        name="mnist",
        train=Split(images[:60], labels[:60]),
        test=Split(images[60:], labels[60:]),
        note="n",
    )


def cut(dataset, **fields):
    """Splits a dataset with the given config fields, by default no validation."""
    return split_dataset(dataset, TrainConfig(**{"validation": "none", **fields}))


def indices(split):
    """Returns the indices of a split's images; checks its labels against them."""
    found = split.images[:, 0, 0].astype(int)
    np.testing.assert_array_equal(found % 10, split.labels)
    return found.tolist()


FIFTH = {"validation": "fraction", "validation_fraction": 0.2}


@pytest.mark.parametrize(
    "fields, train, validation",
    [
        ({}, range(60), None),
        ({"validation": "test"}, range(60), range(60, 70)),
        (FIFTH, range(48), range(48, 60)),
        ({**FIFTH, "train_size": 20}, range(16), range(16, 20)),
    ],
)
def test_the_end_of_the_training_set_is_held_out(small, fields, train, validation):
    got = cut(small, **fields)
    assert indices(got.train) == list(train)
    assert indices(got.test) == list(range(60, 70))
    held_out = got.validation and indices(got.validation)
    assert held_out == (validation and list(validation))
    assert (got.name, got.note) == ("mnist", "n") and got.checksum == small.checksum


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_the_shuffled_split_equals_scikit_learn(small, seed):
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(
        np.arange(70), test_size=1 / 7, random_state=np.random.RandomState(seed)
    )
    for size in (None, 20):
        got = cut(small, split="shuffled", split_seed=seed, train_size=size)
        assert indices(got.train) == train.tolist()[:size]
        assert indices(got.test) == test.tolist()


@pytest.mark.parametrize(
    ("fields", "phrase"),
    [
        ({"train_size": 61}, "61 is out of range; choose a number in 1"),
        ({"validation": "fraction", "validation_fraction": 0.999}, "=0.999 of 60"),
        ({"validation": "fraction", "train_size": 1}, "of 1 training images"),
    ],
)
def test_invalid_splits_are_rejected(small, fields, phrase):
    with pytest.raises(InputError, match=phrase):
        cut(small, **fields)


def test_a_validation_set_of_the_data_takes_the_place_of_a_fraction(small):
    own = dataclasses.replace(small, validation=Split(*(a[50:60] for a in small.train)))
    got = cut(own, validation="fraction", train_size=20, split="shuffled")
    assert indices(got.validation) == list(range(50, 60))
    assert indices(got.train) == indices(cut(small, split="shuffled").train)[:20]
    assert cut(own).validation is None
    assert indices(cut(own, validation="test").validation) == list(range(60, 70))
    with pytest.raises(InputError, match="=0.2 has no effect, .* 10 validation images"):
        cut(own, validation="fraction", validation_fraction=0.2)
