"""Serves a page on which trained networks classify a digit as you draw it.

python -m experiments.demo --run_dir=runs/mlp0 --run_dir=runs/cnn0 --port=8000
"""

from pathlib import Path

import numpy as np
from absl import flags

from mnist_jax.cli.flags import define_machine_flags, define_path_flag, existing_folder
from mnist_jax.cli.main import run_program, start_jax
from mnist_jax.data.types import IMAGE_SHAPE
from mnist_jax.demo.page import accuracy_note, check_drawable, network_name
from mnist_jax.demo.server import HOST, Predictor, make_server
from mnist_jax.training.run_dir import load_run

FLAGS = flags.FLAGS


def load_predictor(folder: Path, name: str) -> Predictor:
    """Loads the network of a finished run and compiles it for a single image."""
    run = load_run(folder)
    check_drawable(f"--run_dir={folder}", run)
    run.predict(np.zeros((1, *IMAGE_SHAPE), np.uint8))
    note = f"{network_name(run)}, {accuracy_note(run)}"
    return Predictor(name, note, run.predict, run.class_names)


def main() -> None:
    """Serves the page until interrupted."""
    folders = [existing_folder(path, "run_dir") for path in FLAGS.run_dir]
    start_jax()
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = FLAGS.run_dir
    predictors = [
        load_predictor(folder, name)
        for folder, name in zip(folders, names, strict=True)
    ]
    with make_server(predictors, FLAGS.port) as server:
        print(
            f"serving on http://{HOST}:{server.server_port}/ (press Ctrl-C to stop)",
            flush=True,
        )
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nstopped")


def run() -> None:
    """Entry point."""
    define_machine_flags()
    define_path_flag(
        "run_dir",
        None,
        "directory of a finished run; repeat the flag for more networks",
        required=True,
        repeated=True,
    )
    flags.DEFINE_integer("port", 8000, "port on 127.0.0.1; 0 picks a free one")
    run_program(main)


if __name__ == "__main__":
    run()
