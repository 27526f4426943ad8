"""Settings and fixtures shared by all tests."""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from helpers.custom_networks import NETWORKS
from helpers.processes import ROOT
from helpers.programs import DIGITS, run

from mnist_jax.records.environment import available_cores
from mnist_jax.training.jax_setup import setup

# It also sets XLA_FLAGS, for this process and the programs that it starts. Tests of the
# CPU implementations (`users_jit`) and of whole programs (`XLA_FLAGS=""`) compile as
# for users.
pytest_plugins = ["mnist_jax.pytest_plugin", "helpers.browser"]
# Eight host devices, so that meshes of 1, 2, 4 and 8 can be compared in one process.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Caches for GPUs, whose folder would be part of the key of every compiled program.
jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
os.environ["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] = "none"


# Maximum memory of a pytest-xdist worker, including the program it has started.
WORKER_BYTES = 3 * 2**30
COMPILED = ROOT / ".pytest_cache" / "compiled"


@pytest.hookimpl(optionalhook=True)  # plain pytest works without pytest-xdist
def pytest_xdist_auto_num_workers() -> int:
    """Returns the number of workers: one per core, limited by memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # not in a container, or "max"
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return max(1, min(available_cores(), memory // WORKER_BYTES))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the totals that the fault tests recorded."""
    tried: Counter[str] = Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            # Plugins record strings.
            tried.update({k: n for k, n in report.user_properties if type(n) is int})
    if tried:
        lost = any(map(terminalreporter.getreports, ("failed", "error")))
        terminalreporter.section("faults tried")
        for name, count in sorted(tried.items()):
            terminalreporter.write_line(f"{name}: {count:,}")
        terminalreporter.write_line(f"losses: {'see above' if lost else 'none'}")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache shared by all tests, instead of the user's.

    Compiled programs are kept for the next call of pytest, for a week: most of the time
    of the tests is compiling.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder = folder / "cache"
    folder.mkdir(exist_ok=True)
    COMPILED.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):  # another worker made it
        (folder / "compiled").symlink_to(COMPILED)
        for path in COMPILED.glob("*/*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - 7 * 86_400:
                    path.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNIST_JAX_CACHE_DIR", str(folder))
        setup(cpu_devices=8)
        yield folder


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a small MLP, trained by the program; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "mlp0"
    run("experiments.train", *DIGITS, f"--run_dir={folder}")
    return folder


@pytest.fixture
def networks(tmp_path: Path) -> Path:
    """A file with custom networks."""
    (tmp_path / "networks.py").write_text(NETWORKS)
    return tmp_path / "networks.py"
