"""Prints a trained network's ten probabilities for test images.

python -m experiments.predict --run_dir=runs/cnn0 --index=20,21
"""

from pathlib import Path

from absl import flags

from mnist_jax.errors import InputError
from mnist_jax.fit import make_scale, split_data
from mnist_jax.plots import predictions_figure, save_figure
from mnist_jax.predictions import predict_probabilities, prediction_frame
from mnist_jax.runs import read_model, read_record
from mnist_jax.startup import (
    define_machine_flags,
    existing_folder,
    load_data,
    run_program,
    start_jax,
)

FLAGS = flags.FLAGS


def _indices(words: list[str], size: int) -> list[int]:
    """Reads the places of test images."""
    for word in words:
        if not (word.isascii() and word.isdigit() and int(word) < size):
            raise InputError(
                f"--index must be places of test images, from 0 to {size - 1}; got "
                f"{word}"
            )
    return [int(word) for word in words]


def main() -> None:
    """Predicts as the flags say."""
    folder = existing_folder(FLAGS.run_dir, "run_dir")
    start_jax()
    config, model, params = read_model(folder)
    dataset = split_data(config, load_data(read_record(folder)["dataset"]))
    indices = _indices(FLAGS.index, len(dataset.test.labels))
    probabilities = predict_probabilities(
        model, params, make_scale(config, dataset), dataset.test.images[indices]
    )
    frame = prediction_frame(probabilities, dataset.test.labels[indices])
    frame.index = indices
    print(frame.to_string(float_format="{:.4f}".format))
    if FLAGS.picture:
        figure = predictions_figure(dataset.test.images[indices], frame)
        save_figure(figure, Path(FLAGS.picture))
        print(f"\nwritten: {FLAGS.picture}")


def run() -> None:
    """Is the console script."""
    define_machine_flags()
    flags.DEFINE_string("run_dir", None, "directory of a finished run", required=True)
    flags.DEFINE_list("index", ["0"], "places of test images, comma-separated")
    flags.DEFINE_string("picture", None, "file for the images and their probabilities")
    run_program(main)


if __name__ == "__main__":
    run()
