"""Draws a run, as PNG and SVG in its directory: curves, mistakes, filters.

python -m experiments.plot --run_dir=runs/cnn0
"""

from absl import flags

from mnist_jax.cli.main import (
    define_machine_flags,
    existing_folder,
    load_data,
    run_program,
    start_jax,
)
from mnist_jax.records.schema import to_dict
from mnist_jax.reporting.plots import history_figure, save_figure
from mnist_jax.reporting.predictions import make_predict, run_details
from mnist_jax.reporting.report import detail_pictures
from mnist_jax.reporting.tables import history_frame, markdown_table
from mnist_jax.training.experiment import make_scale, split_data
from mnist_jax.training.run_dir import read_model, read_record

FLAGS = flags.FLAGS


def main() -> None:
    """Plots the run that the flags name."""
    folder = existing_folder(FLAGS.run_dir, "run_dir")
    record = read_record(folder)
    history = history_frame(record)
    print(markdown_table(history.round(4)))
    print(f"\n{record['total_seconds']:.1f} s in all")
    name = f"{record['config']['model']} on {record['dataset']}"
    figures = {
        "history": history_figure(
            history, f"{name}, one run, seed {record['config']['seed']}"
        )
    }
    start_jax()
    config, model, params = read_model(folder)
    dataset = split_data(config, load_data(record["dataset"]))
    predict = make_predict(model, make_scale(config, dataset))
    details = run_details(config, params, predict, dataset.test)
    run = {"config": record["config"], **to_dict(details)}
    for picture in detail_pictures(name, [run]):
        figures[picture.name] = picture.draw(picture.heading)
        print(picture.caption)
    for stem, figure in figures.items():
        for ending in (".png", ".svg"):
            path = folder / f"{stem}{ending}"
            save_figure(figure, path)
            print(f"written: {path}")


def run() -> None:
    """Is the program."""
    define_machine_flags()
    flags.DEFINE_string("run_dir", None, "directory of a finished run", required=True)
    run_program(main)


if __name__ == "__main__":
    run()
