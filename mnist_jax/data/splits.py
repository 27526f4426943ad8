"""Training, validation and test sets, cut as a config says."""

import dataclasses
import math

import numpy as np

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Dataset, Split
from mnist_jax.errors import InputError


def split_dataset(dataset: Dataset, config: TrainConfig) -> Dataset:
    """Splits a data set into the training, validation and test sets of a config.

    With `split="shuffled"` train and test are permuted together by
    `numpy.random.RandomState(split_seed)` and the first images become the test set, as
    many as before (as scikit-learn's `train_test_split` does it). `train_size` counts
    before the validation set is cut off the end of the training set.

    Args:
        dataset: as `load_dataset` returns it, without a validation set.
        config: its fields `split`, `split_seed`, `validation`, `validation_fraction`
            and `train_size` are used.

    Raises:
        InputError: more images are asked for than there are, or a set would be empty.
    """
    if dataset.validation is not None:
        raise InputError(
            f"{dataset.name} was given with a validation set of"
            f" {len(dataset.validation.labels)} images, which a new split would lose:"
            " split the data set that load_dataset returned."
        )
    train, test = dataset.train, dataset.test
    if config.split == "shuffled":
        train, test = _shuffle_split(train, test, config.split_seed)
    if (size := config.train_size) is not None:
        if size > len(train.labels):
            raise InputError(
                f"--train_size={size} is out of range: 1..{len(train.labels)} is"
                " allowed; choose a number in that range."
            )
        train = Split(train.images[:size], train.labels[:size])

    held_out = None
    if config.validation == "test":
        held_out = test
    elif config.validation == "fraction":
        size = len(train.labels)
        # Keras's arithmetic, rounding included.
        cut = int(math.floor(size * (1.0 - config.validation_fraction)))
        if not 1 <= cut < size:
            raise InputError(
                f"--validation_fraction={config.validation_fraction} of {size} training"
                " images leaves no image to train on or none to validate with: a number"
                " between 0 and 1 that leaves both is allowed, such as 0.2."
            )
        held_out = Split(train.images[cut:], train.labels[cut:])
        train = Split(train.images[:cut], train.labels[:cut])
    return dataclasses.replace(dataset, train=train, validation=held_out, test=test)


def _shuffle_split(train: Split, test: Split, seed: int) -> tuple[Split, Split]:
    """Redistributes the images over sets of the same sizes."""
    images = np.concatenate([train.images, test.images])
    labels = np.concatenate([train.labels, test.labels])
    order = np.random.RandomState(seed).permutation(len(labels))
    for_test, for_train = np.split(order, [len(test.labels)])
    return (
        Split(images[for_train], labels[for_train]),
        Split(images[for_test], labels[for_test]),
    )
