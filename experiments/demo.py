"""Serves a page to draw a digit on: what do the trained networks see in it?

python -m experiments.demo --run_dir=runs/mlp0 --run_dir=runs/cnn0 --port=8000
"""

from pathlib import Path

import numpy as np
from absl import flags

from mnist_jax.cli.flags import define_machine_flags, existing_folder
from mnist_jax.cli.main import run_program, start_jax
from mnist_jax.demo.server import HOST, Predictor, make_server
from mnist_jax.models.networks import IMAGE_SHAPE
from mnist_jax.training.run_dir import load_run

FLAGS = flags.FLAGS


def load_predictor(folder: Path, name: str, data_dir: str | None) -> Predictor:
    """Returns the network of a finished run, compiled for one image at a time."""
    run = load_run(folder, data_dir)
    run.predict(np.zeros((1, *IMAGE_SHAPE), np.uint8))
    accuracy = run.record.test_accuracy
    note = f"{run.config.model.upper()}, test accuracy {accuracy:.2%}"
    return Predictor(name, note, run.predict)


def main() -> None:
    """Serves as the flags say, until it is interrupted."""
    folders = [existing_folder(path, "run_dir") for path in FLAGS.run_dir]
    start_jax()
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = FLAGS.run_dir
    predictors = [
        load_predictor(folder, name, FLAGS.data_dir)
        for folder, name in zip(folders, names, strict=True)
    ]
    with make_server(predictors, FLAGS.port) as server:
        print(
            f"draw at http://{HOST}:{server.server_port}/ (Ctrl-C ends it)", flush=True
        )
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nended")


def run() -> None:
    """Entry point."""
    define_machine_flags()
    flags.DEFINE_multi_string(
        "run_dir",
        None,
        "directory of a finished run; repeat the flag for more networks",
        required=True,
    )
    flags.DEFINE_integer("port", 8000, "port of this machine; 0 takes any free one")
    run_program(main)


if __name__ == "__main__":
    run()
