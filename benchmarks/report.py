"""Builds the HTML report of recorded runs.

python -m benchmarks.report --out=results
"""

from pathlib import Path

from absl import flags

from mnist_jax.cli.flags import define_path_flag
from mnist_jax.cli.main import run_program
from mnist_jax.reporting.report import PICTURES, write_report

FLAGS = flags.FLAGS


def main() -> None:
    """Writes the report of the runs in --out."""
    out = Path(FLAGS.out)
    print(f"written: {write_report(out)} and its pictures in {out / PICTURES}")


def run() -> None:
    """Entry point."""
    define_path_flag("out", "results", "directory written by benchmarks.compare")
    run_program(main)


if __name__ == "__main__":
    run()
