"""Prints a trained network's ten probabilities for test images and own pictures.

python -m experiments.predict --run_dir=runs/cnn0 --index=20,21
python -m experiments.predict --run_dir=runs/cnn0 --image=my7.png --picture=seen.png
"""

from pathlib import Path

import numpy as np
import pandas as pd
from absl import flags

from mnist_jax.cli.flags import (
    define_machine_flags,
    define_run_dir_flag,
    existing_folder,
    load_data,
)
from mnist_jax.cli.main import run_program, start_jax
from mnist_jax.data.splits import split_dataset
from mnist_jax.data.user_images import read_digit
from mnist_jax.errors import InputError
from mnist_jax.reporting.plots import predictions_figure, save_figure
from mnist_jax.reporting.predictions import prediction_frame
from mnist_jax.training.run_dir import load_run

FLAGS = flags.FLAGS


def _indices(words: list[str], size: int) -> list[int]:
    """Reads the indices of test images."""
    for word in words:
        if not (word.isascii() and word.isdigit() and int(word) < size):
            raise InputError(
                f"--index must be indices of test images, from 0 to {size - 1}; got "
                f"{word}"
            )
    return [int(word) for word in words]


def main() -> None:
    """Predicts as the flags say."""
    folder = existing_folder(FLAGS.run_dir, "run_dir")
    own = [read_digit(Path(path)) for path in FLAGS.image]
    start_jax()
    run = load_run(folder, FLAGS.data_dir)
    words = FLAGS.index or ([] if own else ["0"])
    images: list[np.ndarray] = []
    frames: list[pd.DataFrame] = []
    if words:
        dataset = split_dataset(load_data(run.record.dataset), run.config)
        indices = _indices(words, len(dataset.test.labels))
        chosen = dataset.test.images[indices]
        frame = prediction_frame(run.predict(chosen), dataset.test.labels[indices])
        frame.index = pd.Index(indices, dtype=object)
        images.extend(chosen)
        frames.append(frame)
    if own:
        frame = prediction_frame(run.predict(np.stack(own)))
        frame.index = pd.Index(FLAGS.image, dtype=object)
        images.extend(own)
        frames.append(frame)
    frame = pd.concat(frames)
    # Own pictures have no truth, which turns the others' into floats.
    truth = {"truth": "{:.0f}".format}
    print(frame.to_string(formatters=truth, float_format="{:.4f}".format, na_rep="-"))
    if FLAGS.picture:
        save_figure(predictions_figure(np.stack(images), frame), Path(FLAGS.picture))
        print(f"\nwritten: {FLAGS.picture}")


def run() -> None:
    """Entry point of `mnist-jax-predict`."""
    define_machine_flags()
    define_run_dir_flag()
    flags.DEFINE_list(
        "index",
        None,
        "indices of test images, comma-separated; default 0, or none with --image",
    )
    flags.DEFINE_multi_string(
        "image",
        [],
        "PNG or JPEG picture of one digit, alone on an even background; repeat the "
        "flag for more",
    )
    flags.DEFINE_string("picture", None, "file for the images and their probabilities")
    run_program(main)


if __name__ == "__main__":
    run()
