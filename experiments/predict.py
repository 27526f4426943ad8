"""Prints a trained network's ten probabilities for test images and own pictures.

python -m experiments.predict --run_dir=runs/cnn0 --index=20,21
python -m experiments.predict --run_dir=runs/cnn0 --image=my7.png --picture=seen.png
"""

from pathlib import Path

import numpy as np
import pandas as pd
from absl import flags

from mnist_jax.cli.main import (
    define_machine_flags,
    existing_folder,
    load_data,
    load_scale,
    run_program,
    start_jax,
)
from mnist_jax.data.own_digits import read_digit
from mnist_jax.errors import InputError
from mnist_jax.reporting.plots import predictions_figure, save_figure
from mnist_jax.reporting.predictions import predict_probabilities, prediction_frame
from mnist_jax.training.experiment import make_scale, split_data
from mnist_jax.training.run_dir import read_model, read_record

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
    own = [read_digit(Path(path)) for path in FLAGS.image]
    start_jax()
    config, model, params = read_model(folder)
    words = FLAGS.index or ([] if own else ["0"])
    images: list[np.ndarray] = []
    frames: list[pd.DataFrame] = []
    if words:
        dataset = split_data(config, load_data(read_record(folder)["dataset"]))
        indices = _indices(words, len(dataset.test.labels))
        scale, chosen = make_scale(config, dataset), dataset.test.images[indices]
        probabilities = predict_probabilities(model, params, scale, chosen)
        frame = prediction_frame(probabilities, dataset.test.labels[indices])
        frame.index = pd.Index(indices, dtype=object)
        images.extend(chosen)
        frames.append(frame)
    if own:
        scale = load_scale(folder, config)
        frame = prediction_frame(
            predict_probabilities(model, params, scale, np.stack(own))
        )
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
    """Is the console script."""
    define_machine_flags()
    flags.DEFINE_string("run_dir", None, "directory of a finished run", required=True)
    flags.DEFINE_list(
        "index",
        None,
        "places of test images, comma-separated; default 0, or none with --image",
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
