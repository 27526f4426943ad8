"""Serves a page on which trained networks classify a digit as you draw it.

python -m experiments.demo --run_dir=runs/mlp0 --run_dir=runs/cnn0 --port=8000
"""

import tempfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from absl import flags

from mnist_jax.cli.flags import define_machine_flags, define_paths_flag
from mnist_jax.cli.main import run_program, start_jax
from mnist_jax.demo.page import write_page
from mnist_jax.training.run_dir import load_run

FLAGS = flags.FLAGS
HOST = "127.0.0.1"  # the page is for this machine only


def main() -> None:
    """Writes the page and serves it until interrupted."""
    start_jax()
    runs = {path: load_run(path) for path in FLAGS.run_dir}
    with tempfile.TemporaryDirectory() as folder:
        write_page(runs, Path(folder) / "index.html")
        handler = partial(SimpleHTTPRequestHandler, directory=folder)
        with ThreadingHTTPServer((HOST, FLAGS.port), handler) as server:
            address = f"http://{HOST}:{server.server_port}/"
            print(f"serving on {address} (press Ctrl-C to stop)", flush=True)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                print("\nstopped")


def run() -> None:
    """Entry point."""
    define_machine_flags()
    define_paths_flag(
        "run_dir",
        None,
        "directory of a finished run; repeat the flag for more networks",
        required=True,
    )
    flags.DEFINE_integer(
        "port",
        8000,
        "port on 127.0.0.1; 0 picks a free one",
        lower_bound=0,
        upper_bound=65_535,
    )
    run_program(main)


if __name__ == "__main__":
    run()
