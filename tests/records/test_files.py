"""Files and folders: modes, and file systems that cannot lock."""

import errno
import fcntl
import os
import platform
import pwd
from pathlib import Path

import pytest
from absl.flags import FlagValues

import mnist_jax
from mnist_jax.cli.flags import _PathParser
from mnist_jax.cli.parsing import parse_flags
from mnist_jax.config import TrainConfig
from mnist_jax.errors import InputError
from mnist_jax.models.custom import source_sha256
from mnist_jax.records import files
from mnist_jax.records.files import (
    append_line,
    check_append,
    expand_home,
    hold_lock,
    make_folder,
    read_lines,
    write_file,
)
from mnist_jax.training.compile_cache import use_compile_cache


@pytest.mark.parametrize(
    "umask, mode", [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)]
)
def test_files_and_folders_have_the_modes_of_the_umask(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        folder = tmp_path / "folder"
        with hold_lock(folder / ".lock", lambda holder: None):
            write_file(folder / "written", "")
            append_line(folder / "appended", "")
            make_folder(folder / "below")
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in folder.iterdir() if p.is_file()} == {mode}
    for path in (folder, folder / "below"):
        assert path.stat().st_mode & 0o777 == 0o777 & ~umask


def test_what_cannot_be_written_is_refused_before_any_work(tmp_path):
    # Not even root can create or append to these.
    with pytest.raises(InputError, match="cannot write /proc: "):
        make_folder(Path("/proc"))
    with pytest.raises(InputError, match=f"cannot write {tmp_path}: Is a directory"):
        check_append(tmp_path)
    check_append(tmp_path / "new" / "lines.jsonl")
    assert list((tmp_path / "new").iterdir()) == []


def lock_twice(path: Path) -> str:
    """Holds a lock; returns how another one that waits for it calls the holder."""
    holders = []

    def stop(holder: str) -> None:
        holders.append(holder)
        raise InputError("")

    with (
        hold_lock(path, lambda holder: None),
        pytest.raises(InputError, match="^$"),
        hold_lock(path, stop),
    ):
        pass
    return holders[0]


@pytest.mark.parametrize("number", [None, errno.ENOLCK, errno.ENOSYS, errno.EIO])
def test_locks_work_on_file_systems_without_them(number, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    if number is not None:
        monkeypatch.setattr(fcntl, "flock", fail)
    for _ in range(2):  # released
        this = f"another process (pid {os.getpid()})"
        assert lock_twice(tmp_path / "folder" / ".lock") == this
    append_line(tmp_path / "lines", "a")
    append_line(tmp_path / "lines", "b")
    assert read_lines(tmp_path / "lines") == [b"a\n", b"b\n"]
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "lines"}


def test_a_lock_that_cannot_be_opened_is_an_error(tmp_path):
    (tmp_path / ".lock").symlink_to("elsewhere")
    with pytest.raises(InputError, match="cannot write .*lock"):
        lock_twice(tmp_path / ".lock")


def test_a_holder_on_another_host_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "node", iter(["there", "here"]).__next__)
    holder = lock_twice(tmp_path / ".lock")
    assert holder == f"another process (pid {os.getpid()} on there)"


@pytest.mark.parametrize("content", ["", "1\notherhost\n"])
def test_an_append_does_not_wait_forever_for_a_lock_left_behind(
    content, tmp_path, monkeypatch
):
    def fail(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", fail)
    monkeypatch.setattr(files, "_WAIT", 0.1)
    held = tmp_path / ".lines.held"
    held.write_text(content)
    with pytest.raises(InputError, match=f"delete {held} if it has ended"):
        append_line(tmp_path / "lines", "a")
    assert (tmp_path / "lines").read_text() == ""


@pytest.mark.parametrize(
    "use",
    [
        lambda: expand_home("~name-of-nobody/x"),
        lambda: _PathParser().parse("~/x"),
        lambda: mnist_jax.load_dataset("mnist", "~/data"),
        lambda: mnist_jax.load_dataset("digits"),  # its cache
        lambda: mnist_jax.load_run("~/run"),
        lambda: mnist_jax.train(TrainConfig(dataset="digits"), run_dir="~/run"),
        lambda: mnist_jax.train(TrainConfig(dataset="digits"), init_from="~/run"),
        lambda: source_sha256("~/network.py:Linear"),
        lambda: use_compile_cache(),
        lambda: parse_flags(["program", "--flagfile=~/flags.cfg"], FlagValues()),
    ],
)
def test_without_a_home_no_folder_takes_its_place(use, tmp_path, monkeypatch):
    """As in a container whose user is neither in the environment nor in passwd."""

    def unknown(user: object) -> None:
        raise KeyError(user)

    for name in ("HOME", "MNIST_JAX_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="the home folder in ~.* is not known; set HO"):
        use()
    assert not list(tmp_path.iterdir())


def test_an_empty_home_is_not_the_root(monkeypatch):
    monkeypatch.setenv("HOME", "")
    with pytest.raises(InputError, match="set HOME"):
        expand_home("~/runs")
