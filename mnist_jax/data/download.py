"""Download a dataset's files with TensorFlow Datasets, without TensorFlow.

TFDS's download manager provides checksums and retries, but no connect or read timeout,
and its threads can't be stopped. So it runs in a child process, which is killed if no
data arrives for a while. This covers a missing network, a silent firewall and a stalled
transfer.
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
# As in TFDS's builders; TFDS's checksums are recorded under these URLs.
URLS = {
    "mnist": "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "kmnist": "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
}
PATIENCE_SECONDS = 15.0


class DownloadError(InputError):
    """The files could not be downloaded."""


def download_files(name: str, folder: Path, patience: float = PATIENCE_SECONDS) -> None:
    """Downloads the four files of a dataset under their original names.

    Args:
        name: a key of `URLS`.
        folder: an empty folder; on success it holds the files named in `FILES`.
        patience: seconds without new data after which the download is aborted.

    Raises:
        DownloadError: the download failed, stalled or has a wrong checksum.
    """
    # The child imports this package and TFDS from where this process did.
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
            raise DownloadError(f"no data arrived for {patience:.0f} s")
        if child.returncode != 0:
            log.seek(0)
            lines = log.read().decode(errors="replace").split("\n")
            reason = next((line for line in reversed(lines) if line.strip()), None)
            raise DownloadError(reason or f"exit status {child.returncode}")


def _wait_while_growing(
    child: subprocess.Popen[bytes], folder: Path, patience: float
) -> bool:
    """Waits for the child; returns False if the folder stops growing first."""
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
    """Returns the total size of the files in a folder that is being written to."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except OSError:  # renamed since it was listed
                pass
    return total


def _run_tfds(name: str, folder: Path) -> None:
    """Runs TFDS's download manager, in the child process."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import downloader

    downloader.MAX_RETRIES = 2  # the default, ten, takes over 200 s to fail
    manager = tfds.download.DownloadManager(
        download_dir=folder / "tfds",
        dataset_name=name,
        force_checksums_validation=True,
    )
    paths = manager.download({file: URLS[name] + file for file in FILES})
    for file, path in paths.items():
        os.replace(path, folder / file)


def _main(name: str, folder: str) -> None:
    """Downloads in this process; on failure prints the reason as the last line."""
    try:
        _run_tfds(name, Path(folder))
    except Exception as error:
        # requests wraps urllib3's error, which names the host and the cause
        cause = getattr(error.args[0] if error.args else None, "reason", error)
        reason = " ".join(f"{type(cause).__name__}: {cause}".split())
        print(f"\n{reason[:300]}", file=sys.stderr, flush=True)
        os._exit(1)  # doesn't wait for other threads, which would retry and report


if __name__ == "__main__":
    _main(*sys.argv[1:])
