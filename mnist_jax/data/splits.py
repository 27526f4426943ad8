"""Splits a dataset into training, validation and test sets."""

import dataclasses
import math

import numpy as np

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Dataset, Split
from mnist_jax.errors import InputError


def split_dataset(dataset: Dataset, config: TrainConfig) -> Dataset:
    """Splits a dataset into the training, validation and test sets of a config.

    With `split="shuffled"`, train and test are permuted together by
    `numpy.random.RandomState(split_seed)`, and the first images become the test set,
    whose size is unchanged (as in scikit-learn's `train_test_split`). `train_size` is
    applied before the validation set is taken from the end of the training set.

    A validation set that the dataset has already takes the place of that fraction.
    """
    train, test = dataset.train, dataset.test
    if config.split == "shuffled":
        train, test = _shuffle_split(train, test, config.split_seed)
    if (size := config.train_size) is not None:
        if size > len(train.labels):
            raise InputError(
                f"--train_size={size} is out of range; choose a number in"
                f" 1..{len(train.labels)}"
            )
        train = Split(train.images[:size], train.labels[:size])

    held_out = None
    if config.validation == "test":
        held_out = test
    elif config.validation == "fraction" and dataset.validation is not None:
        held_out = dataset.validation
        if config.validation_fraction != TrainConfig.validation_fraction:
            raise InputError(
                f"--validation_fraction={config.validation_fraction} has no effect, "
                f"since the dataset has {len(held_out.labels)} validation images of "
                "its own; leave it out, or give --validation=none or test"
            )
    elif config.validation == "fraction":
        size = len(train.labels)
        # The same arithmetic as in Keras, including rounding.
        cut = math.floor(size * (1.0 - config.validation_fraction))
        if not 1 <= cut < size:
            raise InputError(
                f"--validation_fraction={config.validation_fraction} of {size} training"
                " images leaves none for training or none for validation"
            )
        held_out = Split(train.images[cut:], train.labels[cut:])
        train = Split(train.images[:cut], train.labels[:cut])
    split = dataclasses.replace(dataset, train=train, validation=held_out, test=test)
    # Of all images, as they were loaded.
    vars(split)["known_checksum"] = dataset.checksum
    return split


def _shuffle_split(train: Split, test: Split, seed: int) -> tuple[Split, Split]:
    """Shuffles the images across two sets of the same sizes as before."""
    images = np.concatenate([train.images, test.images])
    labels = np.concatenate([train.labels, test.labels])
    order = np.random.RandomState(seed).permutation(len(labels))
    test_indices, train_indices = np.split(order, [len(test.labels)])
    return (
        Split(images[train_indices], labels[train_indices]),
        Split(images[test_indices], labels[test_indices]),
    )
