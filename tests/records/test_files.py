"""Files, folders and locks: modes, and what cannot be written."""

import os

import pytest

from mnist_jax.errors import InputError
from mnist_jax.records.files import (
    append_line,
    check_append,
    hold_lock,
    write_file,
)


@pytest.mark.parametrize(
    "umask, mode", [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)]
)
def test_files_have_the_modes_of_the_umask(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        folder = tmp_path / "folder"
        with hold_lock(folder / ".lock"):
            write_file(folder / "written", "")
            append_line(folder / "appended", "")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {mode}
    assert folder.stat().st_mode & 0o777 == 0o777 & ~umask


def test_what_cannot_be_appended_to_is_refused_before_any_work(tmp_path):
    with pytest.raises(OSError, match=f"Is a directory: '{tmp_path}'"):
        check_append(tmp_path)
    check_append(tmp_path / "new" / "lines.jsonl")
    assert (tmp_path / "new" / "lines.jsonl").read_text() == ""


def test_a_lock_is_waited_for_until_it_is_released_or_the_wait_stopped(tmp_path):
    path, waits = tmp_path / "folder" / ".lock", []

    def stop() -> None:
        raise InputError("stopped")

    for _ in range(2):  # released
        with (
            hold_lock(path),
            pytest.raises(InputError, match="stopped"),
            hold_lock(path, lambda: waits.append(True), stop),
        ):
            pass
    assert waits == [True, True]


def test_a_lock_that_cannot_be_opened_is_an_error(tmp_path):
    (tmp_path / ".lock").symlink_to("elsewhere")
    with (
        pytest.raises(OSError, match=f"'{tmp_path}/.lock'"),
        hold_lock(tmp_path / ".lock"),
    ):
        pass
