"""Prints the shapes, dtypes and ranges of a dataset, and draws its first digits.

python -m experiments.data --dataset=mnist --picture=digits.png
"""

from pathlib import Path

import numpy as np
from absl import flags

from mnist_jax.cli.config_flags import config_from_flags, define_config_flags
from mnist_jax.cli.flags import define_data_dir_flag, define_path_flag
from mnist_jax.cli.main import run_program
from mnist_jax.data.datasets import load_dataset
from mnist_jax.data.splits import split_dataset
from mnist_jax.reporting.plots import digits_figure, save_figure
from mnist_jax.reporting.summary import data_frame
from mnist_jax.reporting.tables import markdown_table

FLAGS = flags.FLAGS
_DRAWN = 20  # training images
# The flags that determine the splits.
_CONFIG_FLAGS = (
    *("dataset", "train_size", "split", "split_seed"),
    *("validation", "validation_fraction"),
)


def main() -> None:
    """Prints and draws the data selected by the flags."""
    config = config_from_flags(FLAGS)
    dataset = split_dataset(load_dataset(config.dataset, FLAGS.data_dir), config)
    print(f"{dataset.name}, sha256 {dataset.checksum}\n")
    print(markdown_table(data_frame(dataset)))
    if FLAGS.picture:
        images, labels = (array[:_DRAWN] for array in dataset.train)
        captions = np.array(dataset.class_names)[labels]
        save_figure(digits_figure(images, captions), Path(FLAGS.picture))
        print(f"\nwritten: {FLAGS.picture}")


def run() -> None:
    """Entry point."""
    define_config_flags(only=_CONFIG_FLAGS)
    define_data_dir_flag()
    define_path_flag("picture", None, f"file to draw the first {_DRAWN} digits to")
    run_program(main)


if __name__ == "__main__":
    run()
