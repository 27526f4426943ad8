"""Prints a data set's shapes, types and ranges, and draws its first digits.

python -m experiments.data --dataset=mnist --picture=digits.png
"""

from pathlib import Path

from absl import flags

from mnist_jax.cli.main import define_machine_flags, load_data, run_program
from mnist_jax.config import config_from_flags, define_flags
from mnist_jax.reporting.plots import digits_figure, save_figure
from mnist_jax.reporting.summary import data_frame
from mnist_jax.reporting.tables import markdown_table
from mnist_jax.training.experiment import split_data

FLAGS = flags.FLAGS


def main() -> None:
    """Shows the data that the flags choose."""
    config = config_from_flags(FLAGS)
    dataset = split_data(config, load_data(config.dataset))
    print(f"{dataset.name}, sha256 {dataset.checksum}\n")
    print(markdown_table(data_frame(dataset)))
    if FLAGS.picture:
        images, labels = (array[: FLAGS.count] for array in dataset.train)
        save_figure(digits_figure(images, labels), Path(FLAGS.picture))
        print(f"\nwritten: {FLAGS.picture}")


def run() -> None:
    """Is the program."""
    define_flags()
    define_machine_flags()
    flags.DEFINE_string("picture", None, "file for the first training digits")
    flags.DEFINE_integer(
        "count", 20, "digits in the picture", lower_bound=1, upper_bound=500
    )
    run_program(main)


if __name__ == "__main__":
    run()
