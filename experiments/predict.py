"""Prints a trained network's probabilities for test images or your own pictures.

python -m experiments.predict --run_dir=runs/cnn0 --index=20,21
python -m experiments.predict --run_dir=runs/cnn0 --image=my7.png --picture=seen.png
"""

from pathlib import Path

import numpy as np
import pandas as pd
from absl import flags

from mnist_jax.cli.flags import (
    define_list_flag,
    define_path_flag,
    define_paths_flag,
    define_run_flags,
    load_test_set,
)
from mnist_jax.cli.main import run_program, start_jax
from mnist_jax.data.types import DIGIT_SETS
from mnist_jax.data.user_images import read_digit, read_image
from mnist_jax.errors import InputError
from mnist_jax.reporting.plots import MAX_PREDICTIONS, predictions_figure, save_figure
from mnist_jax.reporting.predictions import prediction_frame
from mnist_jax.training.run_dir import TrainedRun, load_run

FLAGS = flags.FLAGS
_MAX_SHOWN = 20  # classes with a column each; of more, the most probable is printed


def main() -> None:
    """Predicts the images selected by the flags."""
    folder = Path(FLAGS.run_dir)
    start_jax()
    run = load_run(folder)
    as_digit = run.record.dataset in DIGIT_SETS
    images = [
        read_digit(path) if as_digit else read_image(path, run.shapes.image)
        for path in FLAGS.image
    ]
    truths = [np.nan] * len(images)
    if indices := list(FLAGS.index or ([] if images else [0])):
        test = load_test_set(folder, run)
        if max(indices) >= len(test.labels):
            raise InputError(
                f"--index must be below the {len(test.labels)} test images; got "
                f"{max(indices)}"
            )
        images = [*test.images[indices], *images]
        truths = [*test.labels[indices], *truths]
    labels = np.array(truths) if indices else None
    frame = prediction_frame(run.predict(np.stack(images)), labels)
    frame.index = pd.Index([*map(str, indices), *FLAGS.image])
    _print_predictions(frame, run)
    if FLAGS.image:
        how = "as digits" if as_digit else "without cropping or inverting them"
        print(f"\nread {how}; --picture draws what the network saw")
    if FLAGS.picture:
        figure = predictions_figure(np.stack(images), frame, run.record.class_names)
        save_figure(figure, Path(FLAGS.picture))
        print(f"\nwritten: {FLAGS.picture}, at most {MAX_PREDICTIONS} images")


def _print_predictions(frame: pd.DataFrame, run: TrainedRun) -> None:
    """Prints the probabilities, of many classes only the highest, and the classes."""
    classes = run.record.class_names

    def name_class(label: float) -> str:  # pandas stores labels with gaps as floats
        return classes[int(label)]

    formatters = {"predicted": name_class, "truth": name_class}
    few = len(classes) <= _MAX_SHOWN
    if not few:
        probabilities = frame.filter(regex=r"^p\d+$")
        frame = frame.drop(columns=probabilities.columns)
        frame.insert(0, "probability", probabilities.max(axis=1))
    print(
        frame.to_string(formatters=formatters, float_format="{:.4f}".format, na_rep="-")
    )
    if few and classes != tuple(map(str, range(len(classes)))):
        names = ", ".join(f"p{label} {name}" for label, name in enumerate(classes))
        print(f"\nclasses of {run.record.dataset}: {names}")


def run() -> None:
    """Entry point."""
    define_run_flags()
    define_list_flag(
        "index",
        (),
        "indices of test images, default 0, or none with --image",
        flags.IntegerParser(0).parse,
    )
    define_paths_flag(
        "image",
        [],
        "PNG or JPEG file: for networks trained on mnist or digits, a single digit on "
        "an even background, which is cropped and centred; for others, an image as in "
        "their data, which is only resized; repeat the flag for more images",
    )
    define_path_flag(
        "picture",
        None,
        f"file to draw the first {MAX_PREDICTIONS} images and their probabilities to",
    )
    run_program(main)


if __name__ == "__main__":
    run()
