"""Downloads a dataset's files with TensorFlow Datasets, without TensorFlow.

TFDS provides checksums and retries. It runs in a child process, since the threads of
its download manager can't be stopped.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path

from mnist_jax.data.published import FILES, SETS
from mnist_jax.errors import InputError

LIMIT_SECONDS = 900.0  # for the 30 MB of the largest set
_SILENCE_SECONDS = 10.0  # without any data from the server


class DownloadError(InputError):
    """The files could not be downloaded."""


def download_files(name: str, folder: Path, limit: float = LIMIT_SECONDS) -> None:
    """Downloads the four files of a dataset under their original names.

    Args:
        name: a key of `SETS`.
        folder: an empty folder; on success it holds the files named in `FILES`.
        limit: seconds after which the download is aborted.

    Raises:
        DownloadError: the download failed, stalled or has a wrong checksum.
    """
    # The child imports this package and TFDS from where this process did.
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        child = subprocess.run(
            [sys.executable, "-m", "mnist_jax.data.download", name, str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        raise DownloadError(f"it took more than {limit:.0f} s") from None
    if child.returncode != 0:
        lines = child.stdout.decode(errors="replace").strip().splitlines()
        raise DownloadError(lines[-1] if lines else f"status {child.returncode}")


def _run_tfds(name: str, folder: Path) -> None:
    """Runs TFDS's download manager, in the child process."""
    import requests
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import downloader

    # TFDS waits for a silent firewall or server without limit, and tries ten times.
    request = functools.partialmethod(
        requests.Session.request, timeout=_SILENCE_SECONDS
    )
    requests.Session.request = request  # type: ignore[method-assign,assignment]
    downloader.MAX_RETRIES = 1
    manager = tfds.download.DownloadManager(
        download_dir=folder / "tfds",
        dataset_name=name,
        force_checksums_validation=True,
    )
    paths = manager.download({file: SETS[name].url + file for file in FILES.values()})
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
