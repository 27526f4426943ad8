"""Sweeps on a real Ray cluster of two nodes, whose parts are killed."""

import json
import os
import signal
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.processes import finish, read_until, run_python, start_python

from mnist_jax.reporting.sweep_tables import read_trials
from mnist_jax.training.runs import HOW_TO_RESUME

pytestmark = [
    pytest.mark.scale,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed"),
    # Ray leaves sockets and subprocesses to the interpreter's end.
    pytest.mark.filterwarnings("ignore"),
]

TRIALS = 24
GRID = (
    *("benchmarks.sweep", "--dataset=digits", "--epochs=30", "--hidden=16"),
    "--vary=learning_rate=1e-3,2e-3,3e-3,5e-3,1e-2,2e-2",
    *("--vary=batch_size=64,256", "--vary=optimizer=adam,sgd"),
)


@pytest.fixture
def cluster(monkeypatch) -> Iterator[Any]:
    """A Ray cluster of two nodes with one CPU each, on this machine."""
    for name, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DISABLE_IMPORT_WARNING": "1",
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
        "PYTHONPATH": os.getcwd(),
    }.items():
        monkeypatch.setenv(name, value)
    from ray.cluster_utils import Cluster

    options = dict(num_cpus=1, object_store_memory=200 * 2**20, include_dashboard=False)
    cluster = Cluster(initialize_head=True, head_node_args=options)
    cluster.add_node(num_cpus=1, object_store_memory=200 * 2**20)
    yield cluster
    cluster.shutdown()


def records(out: Path) -> dict[str, tuple[str, int]]:
    """Returns each run's settings with its sha256 and its time of writing."""
    found = {}
    for path in out.glob("runs/*/*/record.json"):
        record = json.loads(path.read_text())
        written = path.stat().st_mtime_ns
        found[str(record["config"])] = record["params_sha256"], written
    return found


def ended(lines: list[str]) -> list[str]:
    """Returns the trials whose end was printed."""
    return [line.split(":")[0] for line in lines if "validation accuracy" in line]


def kill_a_task() -> None:
    """Kills a process that trains."""
    for process in psutil.process_iter(["cmdline"]):
        if any("ray::work" in word for word in process.info["cmdline"] or []):
            process.kill()
            return
    raise AssertionError("no task runs")


def test_a_sweep_survives_the_death_of_a_worker_a_node_and_the_driver(
    cluster, tmp_path, record_property
):
    local, out = tmp_path / "local", tmp_path / "ray"
    run_python("-m", *GRID, "--workers=2", f"--out={local}")
    command = [
        *("-m", *GRID, "--engine=ray", f"--address={cluster.address}"),
        f"--out={out}",
    ]
    with start_python(*command) as process:
        lines = read_until(process, f" 3/{TRIALS} done")
        kill_a_task()
        lines += read_until(process, f" 8/{TRIALS} done")
        node = cluster.worker_nodes.copy().pop()
        cluster.remove_node(node, allow_graceful=False)
        lines += read_until(process, f" 12/{TRIALS} done")
        cluster.add_node(num_cpus=1, object_store_memory=200 * 2**20)
        lines += read_until(process, f" 15/{TRIALS} done")
        process.send_signal(signal.SIGKILL)
        lines += finish(process).stdout.splitlines()
    before = records(out)
    assert len(before) >= 15
    output = run_python(*command).stdout
    after = records(out)
    assert len(after) == TRIALS
    # None was trained twice: the records of the first start are untouched.
    assert {key: after[key] for key in before} == before
    printed = ended(lines) + ended(output.splitlines())
    assert len(set(printed)) == len(printed)
    assert list(read_trials(out)["state"]) == ["complete"] * TRIALS
    assert {k: v[0] for k, v in after.items()} == {
        k: v[0] for k, v in records(local).items()
    }
    record_property("kills: of workers, nodes and drivers of sweeps", 3)


def test_what_ray_would_wait_for_is_an_error(cluster, tmp_path):
    for address, cpus, expected in (
        ("localhost:1", 1, "no Ray cluster answers at localhost:1 ("),
        (cluster.address, 3, "no node of the Ray cluster has --cpus_per_trial=3"),
    ):
        engine = "--engine=ray", f"--address={address}", f"--cpus_per_trial={cpus}"
        refused = run_python("-m", *GRID[:4], *engine, f"--out={tmp_path}", ok=False)
        assert refused.returncode == 1 and expected in refused.stderr


def test_a_signal_stops_a_sweep_at_once(cluster, tmp_path):
    engine = "--engine=ray", f"--address={cluster.address}"
    words = *GRID[:1], "--dataset=digits", "--epochs=5000", *engine
    with start_python("-m", *words, f"--out={tmp_path}") as process:
        while not list(tmp_path.rglob("metrics.jsonl")):
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 143 and errors == f"stopped: {HOW_TO_RESUME}\n"
