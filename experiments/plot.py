"""Draws a run's loss and accuracy by epoch, as PNG and SVG in its directory.

python -m experiments.plot --run_dir=runs/cnn0
"""

from absl import flags

from mnist_jax.plots import history_figure, save_figure
from mnist_jax.runs import read_record
from mnist_jax.startup import existing_folder, run_program
from mnist_jax.tables import history_frame, markdown_table

FLAGS = flags.FLAGS


def main() -> None:
    """Plots the run that the flags name."""
    folder = existing_folder(FLAGS.run_dir, "run_dir")
    record = read_record(folder)
    history = history_frame(record)
    print(markdown_table(history.round(4)))
    print(f"\n{record['total_seconds']:.1f} s in all")
    title = f"{record['config']['model']} on {record['dataset']}"
    figure = history_figure(
        history, f"{title}, one run, seed {record['config']['seed']}"
    )
    for ending in (".png", ".svg"):
        path = folder / f"history{ending}"
        save_figure(figure, path)
        print(f"written: {path}")


def run() -> None:
    """Is the program."""
    flags.DEFINE_string("run_dir", None, "directory of a finished run", required=True)
    run_program(main)


if __name__ == "__main__":
    run()
