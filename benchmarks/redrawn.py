"""Measures a network's accuracy on MNIST test digits redrawn as arbitrary pictures.

python -m benchmarks.redrawn --run_dir=runs/cnn0 --images=2000

Each digit is redrawn 40 to 400 pixels high, at a random position on a larger page, dark
on light or light on dark, saved as JPEG of quality 80 and read like a user's picture.
"""

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from absl import flags
from PIL import Image

from mnist_jax.cli.flags import (
    define_machine_flags,
    define_path_flag,
    define_run_dir_flag,
    existing_folder,
    load_data,
)
from mnist_jax.cli.main import run_program, start_jax
from mnist_jax.config import TrainConfig
from mnist_jax.data.splits import split_dataset
from mnist_jax.data.types import Split
from mnist_jax.data.user_images import digit_from_bytes, normalize_digit
from mnist_jax.errors import InputError
from mnist_jax.records.environment import Environment, current_environment
from mnist_jax.records.files import check_append
from mnist_jax.records.schema import SCHEMA_VERSION, append_jsonl
from mnist_jax.reporting.tables import markdown_table
from mnist_jax.training.run_dir import TrainedRun, load_run

FLAGS = flags.FLAGS
# Labels of the variants of the test images, by their keys in a record.
FORMS = {
    "plain": "unchanged",
    "normalized": "preprocessed only",
    "redrawn": "redrawn",
}


@dataclasses.dataclass(frozen=True)
class RedrawnRecord:
    """A network's accuracy on the same test digits in several variants."""

    config: TrainConfig
    dataset: str
    checksum: str
    images: int
    seed: int  # of the redrawing
    accuracy: dict[str, float]  # by the keys of `FORMS`
    environment: Environment
    schema_version: int = SCHEMA_VERSION


def redraw(image: np.ndarray, rng: np.random.Generator) -> bytes:
    """Redraws a digit `[28,28] uint8` as a JPEG of random size, page and polarity."""
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
    """Redraws images `[N,28,28] uint8`, each with its own seed, and reads them back."""
    rngs = [np.random.default_rng((seed, index)) for index in range(len(images))]
    drawings = map(redraw, images, rngs)
    digits = (digit_from_bytes(d, f"image {i}") for i, d in enumerate(drawings))
    return np.stack([digit.pixels for digit in digits])


def measure(run: TrainedRun, test: Split, seed: int) -> dict[str, float]:
    """Returns a network's accuracy on each variant of the test images."""
    normalized = np.stack([normalize_digit(image) for image in test.images])
    variants = test.images, normalized, redrawn_digits(test.images, seed)
    return {
        name: float(np.mean(run.predict(images).argmax(axis=1) == test.labels))
        for name, images in zip(FORMS, variants, strict=True)
    }


def format_redrawn(records: Sequence[RedrawnRecord]) -> str:
    """Formats records as a table with its provenance."""
    rows = [
        {"network": r.config.name, "test images": f"{r.images:,}"}
        | {FORMS[name]: f"{value:.4f}" for name, value in r.accuracy.items()}
        for r in records
    ]
    notes = [
        f"- {r.dataset}, seed {r.seed}, on {r.environment.device} "
        f"({r.environment.cores} cores), jax {r.environment.jax}, "
        f"{r.environment.date[:10]}"
        for r in records
    ]
    return "\n".join([markdown_table(pd.DataFrame(rows)), "", *notes])


def main() -> None:
    """Measures the run of --run_dir."""
    folder = existing_folder(FLAGS.run_dir, "run_dir")
    if FLAGS.out:
        check_append(Path(FLAGS.out) / "redrawn.jsonl")
    start_jax()
    run = load_run(folder)
    dataset = split_dataset(load_data(run.record.dataset, any_shape=False), run.config)
    if FLAGS.images > (total := len(dataset.test.labels)):
        raise InputError(
            f"--images must be at most the {total} test images; got {FLAGS.images}"
        )
    test = Split(*(array[: FLAGS.images] for array in dataset.test))
    accuracy = measure(run, test, FLAGS.seed)
    data = dict(dataset=dataset.name, checksum=dataset.checksum, images=FLAGS.images)
    record = RedrawnRecord(
        run.config,
        **data,
        seed=FLAGS.seed,
        accuracy=accuracy,
        environment=current_environment(),
    )
    print(format_redrawn([record]))
    if FLAGS.out:
        append_jsonl(Path(FLAGS.out) / "redrawn.jsonl", record)


def run() -> None:
    """Entry point."""
    define_machine_flags()
    define_run_dir_flag()
    flags.DEFINE_integer("images", 2_000, "use the first N test images", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "seed of the redrawing", lower_bound=0)
    define_path_flag("out", None, "directory of the redrawn.jsonl to append to")
    run_program(main)


if __name__ == "__main__":
    run()
