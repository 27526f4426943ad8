"""Download a data set's files with TensorFlow Datasets, without TensorFlow.

TFDS's download manager brings the checksums and the retries, but neither a connect nor
a read timeout, and its threads can't be stopped. So it runs in a child process, which
is killed once no byte has come for a while; that one rule bounds a missing network, a
silent firewall and a stalled transfer alike.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mnist_jax.errors import InputError

FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
# As in TFDS's builders, whose checksum records know the files by these addresses.
URLS = {
    "mnist": "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "kmnist": "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
}
PATIENCE_SECONDS = 15.0


class DownloadError(InputError):
    """The files could not be had from the network."""


def download_files(name: str, folder: Path, patience: float = PATIENCE_SECONDS) -> None:
    """Downloads the four files of a data set under their original names.

    Args:
        name: a key of `URLS`.
        folder: an empty folder; on success it holds the files named in `FILES`.
        patience: seconds without a new byte after which the attempt is given up.

    Raises:
        DownloadError: nothing, not everything or something else came.
    """
    # The child finds this package and TFDS wherever this process found them.
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "mnist_jax.data.download", name, str(folder)]
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env
        )
        try:
            stalled = not _wait_while_growing(child, folder, patience)
        finally:
            child.kill()
            child.wait()
        if stalled:
            raise DownloadError(f"no byte came for {patience:.0f} s")
        if child.returncode != 0:
            log.seek(0)
            lines = log.read().decode(errors="replace").split("\n")
            reason = next((line for line in reversed(lines) if line.strip()), None)
            raise DownloadError(reason or f"exit status {child.returncode}")


def _wait_while_growing(
    child: subprocess.Popen[bytes], folder: Path, patience: float
) -> bool:
    """Waits for the child; returns False if the folder stops growing before."""
    size, deadline = 0, time.monotonic() + patience
    while child.poll() is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
        grown = _folder_bytes(folder)
        if grown > size:
            size, deadline = grown, time.monotonic() + patience
    return True


def _folder_bytes(folder: Path) -> int:
    """Returns the size of all files below a folder that another process changes."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except OSError:  # renamed since it was listed
                pass
    return total


def _run_tfds(name: str, folder: Path) -> None:
    """Runs TFDS's download manager: the child process's only work."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import downloader

    downloader.MAX_RETRIES = 2  # ten, its default, take over 200 s to fail
    manager = tfds.download.DownloadManager(
        download_dir=folder / "tfds",
        dataset_name=name,
        force_checksums_validation=True,
    )
    paths = manager.download({file: URLS[name] + file for file in FILES})
    for file, path in paths.items():
        os.replace(path, folder / file)


def _main(name: str, folder: str) -> None:
    """Downloads in this process; on failure leaves the reason as the last line."""
    try:
        _run_tfds(name, Path(folder))
    except Exception as error:
        # requests wraps what it was told by urllib3, which names the host and the cause
        cause = getattr(error.args[0] if error.args else None, "reason", error)
        reason = " ".join(f"{type(cause).__name__}: {cause}".split())
        print(f"\n{reason[:300]}", file=sys.stderr, flush=True)
        os._exit(1)  # waits for no other thread, each of which would retry and report


if __name__ == "__main__":
    _main(*sys.argv[1:])
