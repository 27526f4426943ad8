"""Prints a trained network's probabilities for test images or your own pictures.

python -m experiments.predict --run_dir=runs/cnn0 --index=20,21
python -m experiments.predict --run_dir=runs/cnn0 --image=my7.png --picture=seen.png
"""

from pathlib import Path

import numpy as np
import pandas as pd
from absl import flags

from mnist_jax.cli.flags import (
    define_machine_flags,
    define_path_flag,
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
    """Parses --index for a test set of `size` images."""
    for word in words:
        if not (word.isascii() and word.isdigit() and int(word) < size):
            raise InputError(
                f"--index must be test image indices from 0 to {size - 1}; got {word}"
            )
    return [int(word) for word in words]


def main() -> None:
    """Predicts the images selected by the flags."""
    folder = existing_folder(FLAGS.run_dir, "run_dir")
    user_images = [read_digit(Path(path)) for path in FLAGS.image or []]
    start_jax()
    run = load_run(folder, FLAGS.data_dir)
    words = FLAGS.index or ([] if user_images else ["0"])
    images: list[np.ndarray] = []
    frames: list[pd.DataFrame] = []
    if words:
        dataset = split_dataset(load_data(run.record.dataset), run.config)
        indices = _indices(words, len(dataset.test.labels))
        test_images, labels = (array[indices] for array in dataset.test)
        frame = prediction_frame(run.predict(test_images), labels)
        frame.index = pd.Index(indices, dtype=object)
        images.extend(test_images)
        frames.append(frame)
    if user_images:
        frame = prediction_frame(run.predict(np.stack(user_images)))
        frame.index = pd.Index(FLAGS.image, dtype=object)
        images.extend(user_images)
        frames.append(frame)
    frame = pd.concat(frames)
    # The user's images have no truth, so pandas stores that column as floats.
    formatters = {"truth": "{:.0f}".format}
    print(
        frame.to_string(formatters=formatters, float_format="{:.4f}".format, na_rep="-")
    )
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
        "comma-separated indices of test images; default 0, or none with --image",
    )
    define_path_flag(
        "image",
        None,
        "PNG or JPEG file with a single digit on a plain background; repeat the flag "
        "for more images",
        repeated=True,
    )
    define_path_flag(
        "picture", None, "file to draw the images and their probabilities to"
    )
    run_program(main)


if __name__ == "__main__":
    run()
