"""Sweeps: combinations, sampling, pruning, stops and their tables."""

import csv
import dataclasses
import itertools
import json
import math
import os
import shlex
import signal
import socket
import sys
import threading
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.programs import run, start
from helpers.sweeps import make_config, make_sweep

from benchmarks.sweeps import ray_engine
from benchmarks.sweeps.driver import Sweep
from benchmarks.sweeps.local import ATTEMPTS, run_here, run_processes
from benchmarks.sweeps.progress import Progress
from benchmarks.sweeps.ray_engine import run_on_ray
from benchmarks.sweeps.search import Pruner, TpeSearch, sample
from benchmarks.sweeps.space import (
    check_trainable,
    combine,
    pairs,
    parse_axis,
    parse_space,
)
from mnist_jax.cli.main import Machine
from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Shapes
from mnist_jax.errors import InputError
from mnist_jax.records.files import make_folder
from mnist_jax.records.schema import write_json
from mnist_jax.reporting import report
from mnist_jax.reporting.pictures import Picture
from mnist_jax.reporting.sweep_tables import read_rows, sweep_frame, write_sweep
from mnist_jax.testing import make_split
from mnist_jax.training import trials
from mnist_jax.training.run_dir import CONFIG, RECORD
from mnist_jax.training.trials import (
    FAILED,
    FINISHED,
    PRUNED,
    Trial,
    find_trials,
    write_trial,
)

SMALL = "--dataset=digits", "--hidden=16", "--epochs=3", "--batch_size=256"
GRID = *SMALL, "--vary=learning_rate=1e-3,1e-2", "--vary=optimizer=adam,sgd"


def outcomes(out: Path) -> list[tuple]:
    """Returns what must not depend on stops or engines."""
    return sorted(
        (str(row.trial.settings), record.config.seed, record.params_sha256)
        for row in read_rows(out)
        for record in row.records
    )


def check_page(out: Path, monkeypatch) -> None:
    """Checks the report of a sweep, and draws the pictures of the sweep only."""
    drawn, image = [], report._image

    def draw(picture: Picture, title: str, folder: Path) -> report._Image:
        if not picture.name.startswith("sweep"):
            return report._Image("", 1, 1)
        drawn.append(picture.name)
        return image(picture, title, folder)

    monkeypatch.setattr(report, "_image", draw)
    page = report.write_report(out).read_text()
    assert len(drawn) == 2
    for name in drawn:
        svg = (out / report.PICTURES / f"{name}.svg").read_text()
        assert "validation accuracy" in svg
    assert "Best settings" in page and f"--flagfile={out}/best.cfg" in page
    assert "--learning_rate=0.0" in page and "neither the search" in page
    assert page.count(">pruned<") == page.count(">1e-5<") == 1


@pytest.mark.slow
def test_a_grid_is_trained_and_its_best_settings_train_again(tmp_path):
    out = tmp_path / "a sweep"
    printed = run("benchmarks.sweep", *GRID, "--seeds=2", f"--out={out}")
    rows = list(csv.DictReader((out / "sweep.csv").read_text().splitlines()))
    assert len(rows) == 4 and {row["state"] for row in rows} == {FINISHED}
    assert {(r["learning_rate"], r["optimizer"]) for r in rows} == {
        (rate, name) for rate in ("1e-3", "1e-2") for name in ("adam", "sgd")
    }
    accuracies = [float(row["val_accuracy"]) for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    assert "4/4 done" in printed.stdout and "neither the search" in printed.stdout
    # The best settings as a flag file, with the command that the program prints.
    best = read_rows(out)[0]
    command = printed.stdout.split("best: python -m ")[1].splitlines()[0]
    run(*shlex.split(command))
    again = json.loads((out / "best" / "seed0" / RECORD).read_text())
    assert again["params_sha256"] == best.records[0].params_sha256
    # The same command trains nothing.
    times = {path: path.stat().st_mtime_ns for path in out.rglob(RECORD)}
    repeated = run("benchmarks.sweep", *GRID, "--seeds=2", f"--out={out}")
    assert "4 of 4 trials had ended before" in repeated.stdout
    assert {p: p.stat().st_mtime_ns for p in out.rglob(RECORD)} == times


def test_trials_of_two_commands_differ_in_the_table(tmp_path):
    for rate in ("3e-3", "1e-2"):
        for size in (32, 128):
            config = TrainConfig(batch_size=size, learning_rate=float(rate))
            settings, folder = {"learning_rate": rate}, tmp_path / f"runs/{rate}-{size}"
            trial = Trial(settings, config, folder, [0], "")
            write_trial(trial)
            make_folder(trial.folders[0])
            write_json(trial.folders[0] / CONFIG, config.for_dataset("digits"))
    failed = tmp_path / "runs/failed"
    write_trial(Trial({"learning_rate": "1"}, config, failed, [0], ""))
    frame = sweep_frame(read_rows(tmp_path))
    assert list(frame.columns[:3]) == ["learning_rate", "batch_size", "state"]
    assert {*zip(frame["learning_rate"], frame["batch_size"], strict=True)} == {
        *(("3e-3", "32"), ("3e-3", "128"), ("1e-2", "32"), ("1e-2", "128")),
        ("1", "-"),
    }


@pytest.mark.slow
def test_a_killed_sweep_resumes_and_ends_like_an_unstopped_one(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    rates = "--vary=learning_rate=1e-3,3e-3,1e-2"  # one program
    words = "benchmarks.sweep", *SMALL, rates, "--epochs=30"
    run(*words, f"--out={whole}")
    process = start([sys.executable, "-m", *words, f"--out={killed}"])
    for line in process.stdout:
        if "2/3 done" in line:
            break
    while not list(killed.glob("runs/*/*/checkpoints/epoch*2.msgpack")):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=100)
    done = {path: path.stat().st_mtime_ns for path in killed.rglob(RECORD)}
    assert len(done) == 2
    resumed = run(*words, f"--out={killed}").stdout
    assert "resuming after epoch" in resumed
    assert f"{len(done)} of 3 trials had ended before" in resumed
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())
    assert outcomes(killed) == outcomes(whole) and len(outcomes(whole)) == 3
    assert not list(killed.rglob("checkpoints/*.msgpack"))


@pytest.mark.slow
def test_trials_are_pruned_fail_and_share_one_program(tmp_path, digits, monkeypatch):
    calls, whole = [], trials.prepare
    monkeypatch.setattr(
        trials, "prepare", lambda *words: calls.append(words) or whole(*words)
    )
    out, rates = tmp_path / "out", "1e38,1e-2,1e-5,2e-2"
    run_here(make_sweep(out, digits, rates, prune=True), lambda: None)
    assert len(calls) == 1
    found = {r.settings["learning_rate"]: r for r in find_trials(out).values()}
    states = [found[rate].state for rate in rates.split(",")]
    assert states[:3] == [FAILED, FINISHED, PRUNED]
    assert "the loss is" in found["1e38"].reason
    assert "| pruned" in write_sweep(out) and read_rows(out)[0].state == FINISHED
    pruned = next(row for row in read_rows(out) if row.state == PRUNED)
    assert 1 <= len(pruned.epochs[0]) < 4 and not pruned.records
    assert not list(out.rglob("checkpoints/*.msgpack"))
    assert make_sweep(out, digits, rates, prune=True).next() is None
    check_page(out, monkeypatch)
    # A program that was compiled for another rate trains the same.
    run_here(make_sweep(tmp_path / "alone", digits, "1e-2"), lambda: None)
    alone = outcomes(tmp_path / "alone")
    assert len(calls) == len(alone) == 2 and set(alone) <= set(outcomes(out))


@pytest.mark.faults
def test_a_process_that_dies_is_replaced_three_times(tmp_path, digits, capsys):
    sweep = make_sweep(tmp_path, digits, "1e-3,1e-2")
    sweep.progress = Progress()
    deaths = []

    def kill() -> None:
        trained = list(tmp_path.rglob("epoch*.msgpack"))
        if len(deaths) < 1 + ATTEMPTS and trained and active_children():
            [child] = active_children()
            deaths.append(child.pid)
            os.kill(child.pid, signal.SIGKILL)
            child.join()

    run_processes(sweep, 1, Machine("cpu", 0, True), kill)
    assert len(set(deaths)) == 1 + ATTEMPTS
    states = [record.state for record in find_trials(tmp_path).values()]
    assert sorted(states) == [FAILED, FINISHED]
    assert "its process ended with exit code -9" in capsys.readouterr().out


def test_values_are_separated_by_commas_or_by_semicolons():
    assert parse_axis("batch_size=32,128").values == ["32", "128"]
    assert parse_axis("hidden=128,128;").values == ["128,128"]
    assert parse_axis("hidden=;64").values == ["", "64"]
    assert parse_axis("batch_size=log(16,256)").range == (16, 256, True, True)
    axes = parse_space(["learning_rate=1,2", "batch_size=3,4"], ["mlp"])
    order = [(s["batch_size"], s["learning_rate"]) for s in combine(axes)]
    assert order == [("3", "1"), ("3", "2"), ("4", "1"), ("4", "2")]


def test_samples_are_within_their_ranges_and_repeat():
    axes = parse_space(
        ["learning_rate=log(1e-4,1e-2)", "batch_size=uniform(16,64)"], ["mlp", "cnn"]
    )
    drawn = sample(axes, 20, 0)
    assert drawn == sample(axes, 20, 0) != sample(axes, 20, 1)
    assert all(1e-4 <= float(s["learning_rate"]) <= 1e-2 for s in drawn)
    assert all(16 <= int(s["batch_size"]) <= 64 for s in drawn)
    assert {s["model"] for s in drawn} == {"mlp", "cnn"}
    assert sum(float(s["learning_rate"]) < 1e-3 for s in drawn) > 5  # log-uniform


def test_every_pair_of_values_is_checked_before_tpe_draws():
    names = "beta1", "beta2", "momentum", "crop", "ema", "clip_norm", "label_smoothing"
    texts = [f"{name}=0.1,0.2,0.3,0.4,0.5,0.6" for name in names]
    axes = parse_space(texts, ["mlp", "cnn"])
    assert math.prod(len(axis.corners) for axis in axes) == 559_872
    settings = pairs(axes)
    assert len(settings) == 1 + 21 * 36 + 7 * 12
    for one, other in itertools.combinations(axes, 2):
        found = {(chosen[one.name], chosen[other.name]) for chosen in settings}
        assert found == {*itertools.product(one.values, other.values)}
    assert all(chosen.keys() == {"model", *names} for chosen in settings)


def test_what_tpe_draws_but_cannot_be_trained_is_left_out(tmp_path, digits, capsys):
    axes = parse_space(["learning_rate=1e-3,1e-2"], ["mlp"])

    def config_of(settings: dict[str, str]) -> TrainConfig:
        if settings["learning_rate"] == "1e-2":
            raise InputError("--vary: the combination cannot be trained")
        return make_config(settings)

    search = TpeSearch(axes, 8, 0)
    sweep = Sweep(tmp_path, digits, range(2), search, config_of, None, Progress())
    trials = list(iter(sweep.next, None))
    assert [trial.settings["learning_rate"] for trial in trials] == ["1e-3"]
    output = capsys.readouterr().out
    assert (
        "cannot be trained, left out" in output and "an earlier trial, left" in output
    )


def test_trials_on_other_data_are_not_compared(tmp_path, digits):
    make_sweep(tmp_path, digits, "1e-3").next()
    other = dataclasses.replace(digits, name="mnist", checksum="another")
    with pytest.raises(InputError, match=f"{digits.checksum}, now another"):
        make_sweep(tmp_path, other, "1e-2")


def test_networks_must_fit_the_images_of_the_data(digits):
    def check(conv: str, height: int, width: int) -> None:
        config = TrainConfig(model="cnn", dataset="idx", conv=conv.split(","))
        shapes = Shapes((height, width), 10)
        train, test = (make_split(160, shapes=shapes),) * 2
        dataset = dataclasses.replace(digits, name="idx", train=train, test=test)
        check_trainable({"model": "cnn", "conv": conv}, config, dataset, 1)

    for conv, small, large in (("4:k7", 6, 7), ("4:k7:pool3,4:k7:pool2", 29, 32)):
        check(conv, large, 60)
        with pytest.raises(InputError, match=f"conv={conv} cannot be trained: .* no p"):
            check(conv, small, 60)


def test_tpe_samples_near_the_best_and_adopts_earlier_trials():
    axes = parse_space(["learning_rate=log(1e-5,1)"], ["mlp"])
    search = TpeSearch(axes, 40, 0)
    earlier = {"model": "mlp", "learning_rate": "0.01"}
    assert search.adopt(earlier)
    search.tell(earlier, FINISHED, 1.0, 3)
    assert not search.adopt({"model": "mlp", "learning_rate": "7"})
    drawn = []
    while (settings := search.next()) is not None:
        rate = float(settings["learning_rate"])
        drawn.append(rate)
        search.tell(settings, FINISHED, 1 - abs(rate - 0.01), 3)
    assert len(drawn) == 39
    near = [1e-3 < rate < 0.1 for rate in drawn]
    assert sum(near[-15:]) > 10 > sum(near[:15])


def test_the_pruner_repeats_its_answers():
    pruner = Pruner(1, 2)
    assert not pruner.report("a", 1, 0.9)
    assert pruner.report("b", 1, 0.1) and pruner.report("b", 1, 0.1)
    assert not pruner.report("c", 1, 0.95) and not pruner.report("c", 2, 0.95)


@pytest.mark.parametrize("flag", ["--prune", "--samples"])
def test_without_optuna_the_message_names_the_extra(flag, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install '.\[sweep\]'"):
        Pruner(1, 2) if flag == "--prune" else sample([], 1, 0)


@pytest.mark.parametrize("alive", [False, True])
def test_an_address_without_a_ray_cluster_is_an_error(
    alive, digits, tmp_path, monkeypatch
):
    """Ray itself would try for eight minutes."""
    ended = threading.Event()
    fake = SimpleNamespace(init=lambda **_: ended.wait())
    monkeypatch.setattr(ray_engine, "_import_ray", lambda: fake)
    monkeypatch.setattr(ray_engine, "_CONNECT_SECONDS", 0.1)
    with socket.create_server(("localhost", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
        if not alive:
            server.close()
        monkeypatch.setenv("RAY_ADDRESS", address)
        reason = "not within" if alive else "Connection refused"
        with pytest.raises(InputError, match=f"answers at {address} .*{reason}"):
            sweep = make_sweep(tmp_path, digits, "1e-3")
            run_on_ray(sweep, "auto", 1, 0, Machine("cpu", 0, True), lambda: None)
    ended.set()
