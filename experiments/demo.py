"""Writes a page on which trained networks classify a digit as you draw, and opens it.

python -m experiments.demo --run_dir=runs/mlp0 --run_dir=runs/cnn0 --out=demo.html
"""

import webbrowser
from pathlib import Path

from absl import flags

from mnist_jax.cli.flags import (
    define_machine_flags,
    define_path_flag,
    define_paths_flag,
)
from mnist_jax.cli.main import run_program, start_jax
from mnist_jax.demo.page import write_page
from mnist_jax.training.run_dir import load_run

FLAGS = flags.FLAGS


def main() -> None:
    """Writes the page and opens it."""
    out = Path(FLAGS.out or f"{Path(FLAGS.run_dir[0]).resolve()}.html")
    out.parent.mkdir(parents=True, exist_ok=True)
    start_jax()
    write_page({path: load_run(path) for path in FLAGS.run_dir}, out)
    print(f"written: {out}, to open in any browser", flush=True)
    if FLAGS.open:
        webbrowser.open(out.resolve().as_uri())


def run() -> None:
    """Entry point."""
    define_machine_flags()
    define_paths_flag(
        "run_dir",
        None,
        "directory of a finished run; repeat the flag for more networks",
        required=True,
    )
    define_path_flag(
        "out",
        None,
        "file to write; default: beside the first --run_dir, such as runs/mlp0.html",
    )
    flags.DEFINE_boolean("open", True, "open the page in the default browser")
    run_program(main)


if __name__ == "__main__":
    run()
