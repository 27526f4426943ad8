"""Prints a network's layers: names, settings, shapes, parameters, multiply-adds.

python -m experiments.summary --preset=ml10_cnn
"""

from absl import flags

from mnist_jax.cli.config_flags import config_from_flags, define_config_flags
from mnist_jax.cli.flags import (
    define_data_dir_flag,
    define_path_flag,
    define_preset_flag,
)
from mnist_jax.cli.main import run_program, start_jax
from mnist_jax.data.datasets import load_dataset
from mnist_jax.data.types import MNIST
from mnist_jax.reporting.summary import format_totals, layer_frame
from mnist_jax.reporting.tables import markdown_table

FLAGS = flags.FLAGS


def main() -> None:
    """Prints the layers of the network selected by the flags."""
    config = config_from_flags(FLAGS)
    start_jax(platform="cpu", compile_cache=False)  # shapes need no other device
    shapes = MNIST
    if config.dataset == "idx":  # the only images with a shape of their own
        shapes = load_dataset("idx", FLAGS.data_dir).shapes
    layers = layer_frame(config, shapes)
    counts = layers.select_dtypes("integer").map("{:,}".format)
    unneeded = [] if config.freeze else ["frozen"]
    print(markdown_table(layers.assign(**counts).drop(columns=unneeded)))
    print(format_totals(config, layers, shapes))


def run() -> None:
    """Entry point."""
    define_config_flags()
    define_data_dir_flag()
    define_preset_flag()
    define_path_flag("init_from", None, "set by presets; has no effect here")
    run_program(main)


if __name__ == "__main__":
    run()
