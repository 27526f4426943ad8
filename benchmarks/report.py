"""Builds the HTML report of recorded runs.

python -m benchmarks.report --out=results
"""

from pathlib import Path

from absl import flags

from mnist_jax.cli.flags import define_path_flag, define_targets_flag
from mnist_jax.cli.main import run_program
from mnist_jax.reporting.report import PICTURES, write_report
from mnist_jax.reporting.tables import check_targets

FLAGS = flags.FLAGS


def main() -> None:
    """Writes the report of the runs in --out."""
    out = Path(FLAGS.out)
    check_targets(FLAGS.targets)
    page = write_report(out, FLAGS.targets)
    print(f"written: {page} and its pictures in {out / PICTURES}")


def run() -> None:
    """Entry point."""
    define_path_flag("out", "results", "directory written by benchmarks.compare")
    define_targets_flag()
    run_program(main)


if __name__ == "__main__":
    run()
