"""Sweeps: combinations, sampling, pruning, stops and their tables."""

import csv
import dataclasses
import json
import os
import shlex
import signal
from multiprocessing import active_children
from pathlib import Path

import pytest
from helpers.processes import start_python
from helpers.programs import run
from helpers.sweeps import make_sweep
from optuna.trial import TrialState

from benchmarks import sweep_worker
from benchmarks.sweep_space import combine, parse_space, sample
from benchmarks.sweep_worker import (
    ATTEMPTS,
    Trials,
    repair_journal,
    run_processes,
    train_trials,
)
from mnist_jax.errors import InputError
from mnist_jax.records.files import hold_lock
from mnist_jax.reporting import report
from mnist_jax.reporting.sweep_tables import (
    JOURNAL,
    read_trials,
    write_trials,
)
from mnist_jax.training.run_dir import RECORD, read_runs

SMALL = "--dataset=digits", "--hidden=16", "--epochs=3", "--batch_size=256"
GRID = *SMALL, "--vary=learning_rate=1e-3,1e-2", "--vary=optimizer=adam,sgd"


def outcomes(out: Path) -> list[tuple]:
    """Returns what must not depend on stops or engines."""
    return sorted(
        (record.config.learning_rate, record.config.seed, record.params_sha256)
        for record in read_runs(out)
    )


def states(out: Path) -> dict[str, str]:
    """Returns the state of each learning rate."""
    trials = read_trials(out)
    return dict(zip(trials["learning_rate"], trials["state"], strict=True))


@pytest.mark.programs
def test_a_grid_is_trained_and_its_best_settings_train_again(tmp_path):
    out = tmp_path / "a sweep"
    words = "benchmarks.sweep", "--seeds=2", f"--out={out}"
    printed = run(*words, *GRID)
    rows = list(csv.DictReader((out / "sweep.csv").read_text().splitlines()))
    assert len(rows) == 4 and {row["state"] for row in rows} == {"finished"}
    assert {(r["learning_rate"], r["optimizer"]) for r in rows} == {
        (rate, name) for rate in ("1e-3", "1e-2") for name in ("adam", "sgd")
    }
    accuracies = [float(row["val_accuracy"]) for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    assert "4/4 done" in printed.stdout and "neither the search" in printed.stdout
    # The best settings as a flag file, with the command that the program prints.
    best = json.loads((out / "runs" / rows[0]["folder"] / "seed0" / RECORD).read_text())
    command = printed.stdout.split("best: python -m ")[1].splitlines()[0]
    run(*shlex.split(command))
    again = json.loads((out / "best" / "seed0" / RECORD).read_text())
    assert again["params_sha256"] == best["params_sha256"]
    # The same command trains nothing.
    times = {path: path.stat().st_mtime_ns for path in out.rglob(RECORD)}
    assert "4 of 4 trials had ended before" in run(*words, *GRID).stdout
    # Another one trains what is missing, and is in the same table.
    more = run(*words, *SMALL, "--vary=learning_rate=1e-2,2e-2").stdout
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert len(list(out.glob(f"runs/*/*/{RECORD}"))) == 2 * 5 and "2/2 done" in more
    rows = list(csv.DictReader((out / "sweep.csv").read_text().splitlines()))
    assert len(rows) == 5 and "-" in {row["optimizer"] for row in rows}
    with hold_lock(out / ".lock"):
        refused = run(*words, *GRID, ok=False)
    assert "another process" in refused.stderr


@pytest.mark.programs
def test_a_killed_sweep_resumes_and_ends_like_an_unstopped_one(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    rates = "--vary=learning_rate=1e-3,3e-3,1e-2"  # one program
    words = "benchmarks.sweep", *SMALL, rates, "--epochs=30"
    run(*words, f"--out={whole}")
    process = start_python("-m", *words, f"--out={killed}")
    for line in process.stdout:
        if "2/3 done" in line:
            break
    while not list(killed.glob("runs/*/*/checkpoints/epoch*2.msgpack")):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=100)
    with open(killed / JOURNAL, "a") as journal:
        journal.write('{"op_code": 4, "worker')  # as if it was killed while it wrote
    done = {path: path.stat().st_mtime_ns for path in killed.rglob(RECORD)}
    assert len(done) == 2
    resumed = run(*words, f"--out={killed}").stdout
    assert "resuming after epoch" in resumed
    assert "2 of 3 trials had ended before" in resumed
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())
    assert outcomes(killed) == outcomes(whole) and len(outcomes(whole)) == 3
    assert not list(killed.rglob("checkpoints/*.msgpack"))


@pytest.mark.slow
def test_trials_are_pruned_fail_and_share_one_program(tmp_path, digits, monkeypatch):
    calls, whole = [], sweep_worker.prepare
    monkeypatch.setattr(
        sweep_worker, "prepare", lambda *words: calls.append(words) or whole(*words)
    )
    out, rates = tmp_path / "out", "1e38,1e-2,1e-5,2e-2"
    sweep = make_sweep(out, digits, rates, prune=(1, 2))
    train_trials(sweep, 0)
    assert len(calls) == 1
    found = [states(out)[rate] for rate in rates.split(",")]
    assert found[:3] == ["failed", "finished", "pruned"]
    [failed] = Trials(sweep).of(TrialState.FAIL)
    assert "the loss is" in failed.user_attrs["outcome"]
    trials = read_trials(out)
    assert "| pruned" in write_trials(out, trials)
    pruned = trials[trials["learning_rate"] == "1e-5"].iloc[0]
    assert 1 <= pruned["epochs_trained"] < 4 and not pruned["seeds"]
    assert not list(out.rglob("checkpoints/*.msgpack"))
    # What has ended is not trained again.
    again = make_sweep(out, digits, rates, prune=(1, 2))
    assert not Trials(again).of(TrialState.WAITING)
    # A program that was compiled for another rate trains the same.
    train_trials(make_sweep(tmp_path / "alone", digits, "1e-2"), 0)
    alone = outcomes(tmp_path / "alone")
    assert len(calls) == len(alone) == 2 and set(alone) <= set(outcomes(out))


@pytest.mark.slow
def test_the_report_has_plots_of_a_sweep(tmp_path, digits):
    train_trials(make_sweep(tmp_path, digits, "1e-3,1e-2"), 0)
    write_trials(tmp_path, read_trials(tmp_path))
    page = report.write_report(tmp_path).read_text()
    drawn = list((tmp_path / report.PICTURES).glob("sweep-*.svg"))
    assert len(drawn) == 2
    for svg in drawn:
        assert all(
            w in svg.read_text() for w in ("validation accuracy", "learning_rate")
        )
    assert "Best settings" in page and f"--flagfile={tmp_path}/best.cfg" in page
    assert "--learning_rate=0.0" in page and "neither the search" in page
    assert page.count(">1e-3<") == 1


@pytest.mark.faults
def test_a_process_that_dies_is_replaced_until_its_trial_fails(tmp_path, digits):
    sweep = make_sweep(tmp_path, digits, "1e-3,1e-2")
    deaths = []

    def kill() -> None:
        running = Trials(sweep).of(TrialState.RUNNING)
        if len(deaths) < ATTEMPTS and running:
            [child] = active_children()
            deaths.append(child.pid)
            os.kill(child.pid, signal.SIGKILL)
            child.join()

    run_processes(sweep, 1, kill)
    assert len(set(deaths)) == ATTEMPTS
    assert states(tmp_path) == {"1e-3": "failed", "1e-2": "finished"}
    [failed] = Trials(sweep).of(TrialState.FAIL)
    assert failed.user_attrs["outcome"] == f"failed (its process died {ATTEMPTS} times)"


def test_combinations_change_the_learning_rate_first():
    space = parse_space(["learning_rate=1,2", "batch_size=3,4"], ["mlp"])
    order = [(s["batch_size"], s["learning_rate"]) for s in combine(space)]
    assert order == [("3", "1"), ("3", "2"), ("4", "1"), ("4", "2")]


def test_samples_are_within_their_ranges_and_repeat():
    space = parse_space(
        ["learning_rate=log(1e-4,1e-2)", "batch_size=uniform(16,64)"], ["mlp", "cnn"]
    )
    drawn = sample(space, 20, 0)
    assert drawn == sample(space, 20, 0) != sample(space, 20, 1)
    assert {params["model"] for params in drawn} == {"mlp", "cnn"}
    assert all(16 <= params["batch_size"] <= 64 for params in drawn)
    assert sum(params["learning_rate"] < 1e-3 for params in drawn) > 5  # log-uniform


def test_what_tpe_draws_but_cannot_be_trained_fails(tmp_path, digits, monkeypatch):
    def refuse(*words: object) -> None:
        raise InputError("the combination cannot be trained")

    monkeypatch.setattr(sweep_worker, "make_config", refuse)
    sweep = make_sweep(tmp_path, digits, "1e-3,1e-2", tpe=True)
    train_trials(sweep, 0)
    failed = [t.user_attrs["outcome"] for t in Trials(sweep).of(TrialState.FAIL)]
    assert failed == ["failed (the combination cannot be trained)"] * 8
    assert read_trials(tmp_path).empty


def test_trials_on_other_data_are_not_compared(tmp_path, digits):
    make_sweep(tmp_path, digits, "1e-3")
    other = dataclasses.replace(digits, name="mnist", test=digits.train)
    with pytest.raises(InputError, match="trials on other data than mnist"):
        make_sweep(tmp_path, other, "1e-2")


def test_tpe_draws_near_the_best_of_earlier_starts(tmp_path, digits):
    near = []
    for samples in range(8, 48, 8):
        trials = Trials(make_sweep(tmp_path, digits, "log(1e-5,1)", tpe=True))
        trials.fill([{}] * samples)
        while (trial := trials.take(0)) is not None:
            rate = trial.params["learning_rate"]
            near.append(1e-3 < rate < 0.1)
            trials.study.tell(trial, 1 - abs(rate - 0.01))
    assert len(near) == 40 and sum(near[-15:]) >= 10 > sum(near[:15])


def test_two_processes_take_each_trial_once(tmp_path, digits):
    sweep = make_sweep(tmp_path, digits, "1,2,3,4")
    one, other = Trials(sweep), Trials(sweep)
    taken = [trials.take(0).number for trials in (one, other, one, other)]
    assert sorted(taken) == [0, 1, 2, 3] and one.take(0) is other.take(1) is None
    repair_journal(tmp_path)
    assert Trials(sweep).requeue()
    assert len(Trials(sweep).of(TrialState.WAITING)) == 4
