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
SILENCE_SECONDS = 10.0  # without any data from the server


class DownloadError(InputError):
    """The files could not be downloaded."""


def download_files(
    name: str,
    folder: Path,
    limit: float = LIMIT_SECONDS,
    silence: float = SILENCE_SECONDS,
) -> None:
    """Downloads the four files of a set in `SETS` into a folder.

    Args:
        name: of the set.
        folder: for its files.
        limit: seconds for all files.
        silence: seconds to wait for a server that sends nothing.
    """
    command = [sys.executable, "-m", __name__, name, str(folder), str(silence)]
    try:
        subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        raise DownloadError(f"it took more than {limit:.0f} s") from None
    except subprocess.CalledProcessError as error:
        raise DownloadError(" ".join(error.stderr.split())[-600:]) from None


def _run_tfds(name: str, folder: str, silence: str) -> None:
    """Runs TFDS's download manager, in the child process."""
    import requests
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import downloader

    # TFDS waits for a silent firewall or server without limit, and tries ten times.
    request = functools.partialmethod(requests.Session.request, timeout=float(silence))
    requests.Session.request = request  # type: ignore[method-assign,assignment]
    downloader.MAX_RETRIES = 1
    manager = tfds.download.DownloadManager(
        download_dir=Path(folder) / "tfds",
        dataset_name=name,
        force_checksums_validation=True,
    )
    for file in FILES.values():
        os.replace(manager.download(SETS[name].url + file), Path(folder) / file)


if __name__ == "__main__":
    _run_tfds(*sys.argv[1:])
