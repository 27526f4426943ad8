"""Runs in a directory of the user's choice: what is resumed, refused and kept."""

import dataclasses
import re
import shutil
from pathlib import Path

import jax
import pytest
from helpers.runs import CONFIG, epochs_of, follow_until, prepare_once
from helpers.small_sets import files_below

from mnist_jax.errors import InputError
from mnist_jax.records.files import hold_lock
from mnist_jax.records.schema import RunRecord, read_json
from mnist_jax.training.run_dir import RECORD
from mnist_jax.training.runs import train_seeds


@pytest.fixture
def train(digits, tmp_path):
    """Returns a function that trains seeds 0, 1, ... into `tmp_path`."""

    def train(seeds: int, epochs: int = 3, stop: int = 0, checksum="", **options):
        """Returns the epochs that were run, each with its seeds."""
        config = dataclasses.replace(CONFIG, epochs=epochs)
        data = dataclasses.replace(digits)
        vars(data)["known_checksum"] = checksum or digits.checksum
        given = dict(resume=False, checkpoint_every=0, prepare_runs=prepare_once)
        folder = options.pop("folder", tmp_path)
        events = train_seeds(config, data, folder, range(seeds), **given | options)
        return epochs_of(follow_until(events, stop))

    return train


def contents(folder: Path) -> dict[Path, bytes]:
    """Returns all files of a folder and below, without lock files."""
    return {path: path.read_bytes() for path in files_below(folder)}


NEW = [([2], 1), ([2], 2), ([2], 3)]


@pytest.mark.parametrize(
    "every, seeds, epochs, expected",
    [
        (0, 2, 3, []),
        (0, 2, 4, "no valid checkpoint to resume from"),
        (1, 2, 2, "--epochs was 3, is 2"),
        (1, 3, 3, NEW),
        (1, 3, 4, [([0, 1], 4), *NEW, ([2], 4)]),
    ],
)
def test_resume_keeps_finished_runs(train, tmp_path, every, seeds, epochs, expected):
    train(2, checkpoint_every=every)
    files = contents(tmp_path)
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            train(seeds, epochs, resume=True, checkpoint_every=every)
        assert contents(tmp_path) == files
        return
    assert train(seeds, epochs, resume=True, checkpoint_every=every) == expected
    if epochs == 3:
        assert files.items() <= contents(tmp_path).items()
    assert train(seeds, epochs, resume=True) == []


@pytest.mark.parametrize("stop", [0, 2], ids=["finished", "stopped"])
def test_only_a_run_of_the_same_data_and_start_is_resumed(
    train, digits, tmp_path, stop, caplog
):
    start, other, same, folder = (tmp_path / name for name in "abcd")
    for epochs, path in enumerate((start, other), start=1):
        train(1, epochs, folder=path)
    shutil.copytree(start, same)
    first, second = (
        read_json(RunRecord, path / RECORD).params_sha256 for path in (start, other)
    )
    settings = dict(seeds=1, folder=folder, checkpoint_every=1)
    train(**settings, stop=stop, init_from=start)
    files = contents(folder)
    for changes, message in (
        (dict(init_from=start, checksum="0"), f"checksum was {digits.checksum}, is 0"),
        (dict(init_from=None), f"start_sha256 was {first}, is none"),
        (dict(init_from=other), f"start_sha256 was {first}, is {second}"),
    ):
        with pytest.raises(InputError) as error:
            train(**settings, resume=True, **changes)
        assert message in f"{error.value}; {caplog.text}"
    with jax.default_matmul_precision("highest"):
        with pytest.raises(InputError) as error:
            train(**settings, resume=True, init_from=start)
        text = f"{error.value}; {caplog.text}"
        assert re.search("numerics was .*, is jax_default_mat", text)
    assert contents(folder) == files
    epochs = train(**settings, resume=True, init_from=same)
    assert epochs == ([([0], 3)] if stop else [])
    assert read_json(RunRecord, folder / RECORD).start_sha256 == first
    # Also if the parameters are those of the run that is replaced.
    train(**settings, overwrite=True, init_from=folder)


def test_seeds_resume_with_those_that_they_were_stopped_with(train, tmp_path):
    train(3, stop=2, checkpoint_every=1)
    shutil.rmtree(tmp_path / "seed1")
    assert train(2, resume=True) == [([0, 1], 3)]
    assert train(3, resume=True) == [([0, 1, 2], 3)]


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_a_directory_used_by_another_process_is_refused(train, tmp_path, options):
    with (
        hold_lock(tmp_path / "seed1" / ".lock"),
        pytest.raises(InputError, match="another process is training in"),
    ):
        train(2, **options)
