"""Measures what a network loses when MNIST's test digits come as pictures of any kind.

python -m benchmarks.redrawn --run_dir=runs/cnn0 --images=2000

Every digit is drawn anew: 40 to 400 pixels high, somewhere on a larger page, dark on
light or light on dark, saved as JPEG of quality 80; then it is read as own pictures
are.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from absl import flags
from PIL import Image

from mnist_jax.cli.main import (
    define_machine_flags,
    existing_folder,
    load_data,
    run_program,
    start_jax,
)
from mnist_jax.data.own_digits import digit_from_bytes, normalize_digit
from mnist_jax.errors import InputError
from mnist_jax.records.files import make_folder
from mnist_jax.records.schema import append_jsonl, environment
from mnist_jax.reporting.predictions import predict_probabilities
from mnist_jax.reporting.tables import markdown_table
from mnist_jax.training.experiment import make_scale, split_data
from mnist_jax.training.run_dir import read_model, read_record

FLAGS = flags.FLAGS


def redraw(image: np.ndarray, rng: np.random.Generator) -> bytes:
    """Returns a test digit as a JPEG of another size, place and colour.

    Args:
        image: `[28,28] uint8`.
        rng: decides the size (40 to 400 pixels), the page around it (up to half of that
            more on each side), and whether it is dark on light.
    """
    size = int(rng.integers(40, 401))
    left, top, right, bottom = rng.integers(0, size // 2 + 1, 4).tolist()
    digit = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    page = Image.new("L", (left + size + right, top + size + bottom))
    page.paste(digit, (left, top))
    if rng.random() < 0.5:
        page = page.point(lambda value: 255 - value)
    file = io.BytesIO()
    page.save(file, "JPEG", quality=80)
    return file.getvalue()


def redrawn_digits(images: np.ndarray, seed: int) -> np.ndarray:
    """Redraws images `[N,28,28] uint8` and reads them back as own pictures.

    Each image has a generator of its own, so that it does not depend on the others.
    """
    return np.stack(
        [
            digit_from_bytes(
                redraw(image, np.random.default_rng((seed, place))),
                f"test image {place}",
            )
            for place, image in enumerate(images)
        ]
    )


def format_redrawn(records: Sequence[dict[str, Any]]) -> str:
    """Writes a table of records and what its numbers rest on."""
    rows = [
        {
            "network": record["config"]["model"],
            "test images": f"{record['images']:,}",
            "as they are": f"{record['accuracy']['plain']:.4f}",
            "after the preprocessing alone": f"{record['accuracy']['normalized']:.4f}",
            "redrawn": f"{record['accuracy']['redrawn']:.4f}",
        }
        for record in records
    ]
    notes = [
        f"- {record['dataset']}, seed {record['seed']}, on "
        f"{record['environment']['device']} ({record['environment']['cores']} cores), "
        f"jax {record['environment']['jax']}, {record['environment']['date'][:10]}"
        for record in records
    ]
    return "\n".join([markdown_table(pd.DataFrame(rows)), "", *notes])


def main() -> None:
    """Measures as the flags say."""
    folder = existing_folder(FLAGS.run_dir, "run_dir")
    start_jax()
    config, model, params = read_model(folder)
    dataset = split_data(config, load_data(read_record(folder)["dataset"]))
    total = len(dataset.test.labels)
    if FLAGS.images > total:
        raise InputError(
            f"--images must be at most the {total} test images; got {FLAGS.images}"
        )
    images, labels = (part[: FLAGS.images] for part in dataset.test)
    scale = make_scale(config, dataset)

    def accuracy(images: np.ndarray) -> float:
        guesses = predict_probabilities(model, params, scale, images).argmax(axis=1)
        return float(np.mean(guesses == labels))

    figures = {
        "plain": accuracy(images),
        "normalized": accuracy(np.stack([normalize_digit(image) for image in images])),
        "redrawn": accuracy(redrawn_digits(images, FLAGS.seed)),
    }
    print(f"{config.model} on {dataset.name}, n={len(labels)}, seed={FLAGS.seed}")
    for figure, meaning in (
        ("plain", "test images as they are"),
        ("normalized", "test images after the preprocessing of own pictures"),
        ("redrawn", "test images redrawn, then preprocessed"),
    ):
        print(f"{figures[figure]:.4f} accuracy of the {meaning}")
    lost = 100 * (figures["plain"] - figures["redrawn"])
    print(f"lost by being redrawn: {lost:.2f} percentage points")
    if FLAGS.out:
        make_folder(Path(FLAGS.out))
        record = {
            "config": read_record(folder)["config"],
            "dataset": dataset.name,
            "checksum": dataset.checksum,
            "images": len(labels),
            "seed": FLAGS.seed,
            "accuracy": figures,
            "environment": environment(),
        }
        append_jsonl(Path(FLAGS.out) / "redrawn.jsonl", record)


def run() -> None:
    """Is the program."""
    define_machine_flags()
    flags.DEFINE_string("run_dir", None, "directory of a finished run", required=True)
    flags.DEFINE_integer(
        "images", 2_000, "test images to take, the first ones", lower_bound=1
    )
    flags.DEFINE_integer("seed", 0, "of the drawings", lower_bound=0)
    flags.DEFINE_string("out", None, "directory to append redrawn.jsonl in")
    run_program(main)


if __name__ == "__main__":
    run()
