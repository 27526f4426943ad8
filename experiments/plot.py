"""Plots a run into its directory as PNG and SVG: curves, mistakes, filters.

python -m experiments.plot --run_dir=runs/cnn0
"""

from pathlib import Path

from absl import flags

from mnist_jax.cli.flags import define_run_flags, load_splits_of
from mnist_jax.cli.main import run_program, start_jax
from mnist_jax.reporting.pictures import detail_pictures
from mnist_jax.reporting.plots import history_figure, save_figure, set_title
from mnist_jax.reporting.predictions import run_details
from mnist_jax.reporting.tables import history_frame, markdown_table
from mnist_jax.training.run_dir import load_run

FLAGS = flags.FLAGS


def main() -> None:
    """Plots the run in --run_dir."""
    folder = Path(FLAGS.run_dir)
    start_jax()
    run = load_run(folder)
    history = history_frame(run.record)
    print(markdown_table(history.round(4)))
    print(f"\n{run.record.total_seconds:.1f} s total")
    name, seed = f"{run.config.name} on {run.record.dataset}", run.config.seed
    figures = {"history": history_figure(history)}
    set_title(figures["history"], f"{name}, one run, seed {seed}")
    dataset = load_splits_of(folder, run)
    for picture in detail_pictures(
        name, seed, [run_details(run, dataset.test)], run.shapes
    ):
        figures[picture.name] = picture.draw()
        set_title(figures[picture.name], picture.heading)
        print(picture.caption)
    for stem, figure in figures.items():
        for suffix in (".png", ".svg"):
            path = folder / f"{stem}{suffix}"
            save_figure(figure, path)
            print(f"written: {path}")


def run() -> None:
    """Entry point."""
    define_run_flags()
    run_program(main)


if __name__ == "__main__":
    run()
