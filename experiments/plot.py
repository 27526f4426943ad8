"""Plots a run into its directory as PNG and SVG: curves, mistakes, filters.

python -m experiments.plot --run_dir=runs/cnn0
"""

from pathlib import Path

from absl import flags

from mnist_jax.cli.flags import define_run_flags, load_test_set
from mnist_jax.cli.main import run_program, start_jax
from mnist_jax.reporting.pictures import run_pictures, save_picture
from mnist_jax.reporting.predictions import run_details
from mnist_jax.reporting.tables import history_frame, markdown_table
from mnist_jax.training.run_dir import load_run

FLAGS = flags.FLAGS


def main() -> None:
    """Plots the run in --run_dir."""
    folder = Path(FLAGS.run_dir)
    start_jax()
    run = load_run(folder)
    print(markdown_table(history_frame(run.record).round(4)))
    print(f"\n{run.record.total_seconds:.1f} s total")
    details = {run.config.seed: run_details(run, load_test_set(folder, run))}
    name = f"{run.config.name} on {run.record.dataset}"
    for picture in run_pictures(name, [run.record], details):
        print(picture.caption)
        for path in save_picture(picture, folder):
            print(f"written: {path}")


def run() -> None:
    """Entry point."""
    define_run_flags()
    run_program(main)


if __name__ == "__main__":
    run()
