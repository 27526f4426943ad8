"""Exports a trained network for use without this project.

python -m experiments.export --run_dir=runs/cnn0 --format=onnx
"""

from pathlib import Path

from absl import flags

from mnist_jax.cli.flags import define_path_flag, define_run_flags, load_test_set
from mnist_jax.cli.main import run_program, start_jax
from mnist_jax.export.formats import FORMATS, check_export, export_run
from mnist_jax.training.run_dir import load_run

FLAGS = flags.FLAGS
_COMPARED = 1_000  # test images


def main() -> None:
    """Exports the run in --run_dir."""
    folder = Path(FLAGS.run_dir)
    out = Path(FLAGS.out or f"{folder.resolve()}.{FLAGS.format}")
    check_export(FLAGS.format, out)
    start_jax()
    run = load_run(folder)
    images = load_test_set(folder, run).images[:_COMPARED]
    difference = export_run(run, FLAGS.format, out, images)
    files = sorted(out.rglob("*")) if out.is_dir() else [out]
    for file in filter(Path.is_file, files):
        print(f"written: {file} ({file.stat().st_size:,} bytes)")
    print(
        f"checked on {len(images):,} test images: probabilities differ by at most "
        f"{difference:.2g}"
    )


def run() -> None:
    """Entry point."""
    define_run_flags()
    flags.DEFINE_enum("format", None, list(FORMATS), "what to export to", required=True)
    define_path_flag(
        "out",
        None,
        "file to write, or folder for saved; default: beside --run_dir, such as "
        "runs/cnn0.onnx",
    )
    run_program(main)


if __name__ == "__main__":
    run()
