"""Prints a trained network's probabilities for test images or your own pictures.

python -m experiments.predict --run_dir=runs/cnn0 --index=20,21
python -m experiments.predict --run_dir=runs/cnn0 --image=my7.png --picture=seen.png
"""

from pathlib import Path

import numpy as np
import pandas as pd
from absl import flags, logging

from mnist_jax.cli.flags import (
    define_machine_flags,
    define_path_flag,
    define_run_dir_flag,
    existing_folder,
    load_data_of,
)
from mnist_jax.cli.main import run_program, start_jax
from mnist_jax.data.splits import split_dataset
from mnist_jax.data.types import CLASS_NAMES, IMAGE_SHAPE, class_names
from mnist_jax.data.user_images import UserDigit, read_digit
from mnist_jax.errors import InputError
from mnist_jax.reporting.plots import MAX_PREDICTIONS, predictions_figure, save_figure
from mnist_jax.reporting.predictions import prediction_frame
from mnist_jax.training.run_dir import TrainedRun, load_run

FLAGS = flags.FLAGS
_MAX_SHOWN = 20  # classes with a column each; of more, the most probable is printed


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
    user_digits = [read_digit(Path(path)) for path in FLAGS.image or []]
    start_jax()
    run = load_run(folder)
    if user_digits and run.shapes.image != IMAGE_SHAPE:
        raise InputError(
            "--image converts pictures to MNIST's 28x28 pixels, but the network of "
            f"{folder} takes {'x'.join(map(str, run.shapes.image))}; leave --image "
            "out, or give the --run_dir of a network for 28x28"
        )
    classes = class_names(run.record.dataset, run.shapes.classes)
    words = FLAGS.index or ([] if user_digits else ["0"])
    images: list[np.ndarray] = []
    frames: list[pd.DataFrame] = []
    if words:
        dataset = split_dataset(load_data_of(folder, run.record), run.config)
        indices = _indices(words, len(dataset.test.labels))
        test_images, labels = (array[indices] for array in dataset.test)
        frame = prediction_frame(run.predict(test_images), labels)
        frame.index = pd.Index(indices, dtype=object)
        images.extend(test_images)
        frames.append(frame)
    if user_digits:
        pixels = [digit.pixels for digit in user_digits]
        frame = prediction_frame(run.predict(np.stack(pixels)))
        frame.index = pd.Index(FLAGS.image, dtype=object)
        images.extend(pixels)
        frames.append(frame)
        _warn(user_digits, run)
    frame = pd.concat(frames)

    def name_class(label: float) -> str:  # pandas stores labels with gaps as floats
        return classes[int(label)]

    formatters = {"predicted": name_class, "truth": name_class}
    shown = frame
    if len(classes) > _MAX_SHOWN:
        probabilities = frame.filter(regex=r"^p\d+$")
        shown = frame.drop(columns=probabilities.columns)
        shown.insert(0, "probability", probabilities.max(axis=1))
    print(
        shown.to_string(formatters=formatters, float_format="{:.4f}".format, na_rep="-")
    )
    if run.record.dataset in CLASS_NAMES:
        names = ", ".join(f"p{label} {name}" for label, name in enumerate(classes))
        print(f"\nclasses of {run.record.dataset}: {names}")
    if FLAGS.picture:
        figure = predictions_figure(np.stack(images), frame, classes)
        save_figure(figure, Path(FLAGS.picture))
        drawn = ""
        if len(images) > MAX_PREDICTIONS:
            drawn = f" (the first {MAX_PREDICTIONS} of {len(images)} images)"
        print(f"\nwritten: {FLAGS.picture}{drawn}")


def _warn(digits: list[UserDigit], run: TrainedRun) -> None:
    """Warns of pictures, and of a network, whose prediction may mean nothing."""
    for digit in digits:
        if digit.warning:
            logging.warning("%s", digit.warning)
    if (dataset := run.record.dataset) in CLASS_NAMES:
        logging.warning(
            "the network was trained on %s, so pictures of digits mean nothing to it; "
            "give the --run_dir of a network trained on mnist",
            dataset,
        )


def run() -> None:
    """Entry point."""
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
        "PNG or JPEG file with a single digit on an even background; repeat the flag "
        "for more images",
        repeated=True,
    )
    define_path_flag(
        "picture",
        None,
        f"file to draw the first {MAX_PREDICTIONS} images and their probabilities to",
    )
    run_program(main)


if __name__ == "__main__":
    run()
