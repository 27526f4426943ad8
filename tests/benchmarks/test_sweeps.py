"""Sweeps: combinations, sampling, pruning, stops and their tables."""

import contextlib
import csv
import dataclasses
import json
import os
import shlex
import shutil
import signal
from functools import partial
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import optuna
import pytest
from helpers.processes import read_until, start_python
from helpers.programs import run
from optuna.trial import TrialState

from benchmarks import sweep, sweep_worker
from benchmarks.sweep import combine, parse_space
from benchmarks.sweep_worker import (
    MAX_DEATHS,
    Sweep,
    open_study,
    start_processes,
    train_trials,
)
from mnist_jax.data.types import Dataset
from mnist_jax.errors import InputError
from mnist_jax.records.files import hold_lock
from mnist_jax.reporting import report
from mnist_jax.reporting.sweep_tables import JOURNAL, read_trials, write_trials
from mnist_jax.training.run_dir import METRICS, RECORD, RUNS, find_runs

SMALL = "--dataset=digits", "--hidden=16", "--epochs=3", "--batch_size=256"
GRID = *SMALL, "--vary=learning_rate=1e-3,1e-2", "--vary=optimizer=adam,sgd"


def make_sweep(
    out: Path,
    digits: Dataset,
    rates: str,
    samples: int = 0,
    pruner: Any = None,
    sampler: Any = optuna.samplers.RandomSampler,
) -> Sweep:
    """Returns a sweep of learning rates with two seeds each, whose trials wait."""
    out.mkdir(exist_ok=True)
    space = parse_space([f"learning_rate={rates}"], ["mlp"])
    sweep = Sweep(
        out=out,
        study=open_study(out, pruner or optuna.pruners.NopPruner()),
        space=space,
        sampler=sampler,
        search_seed=0,
        given=dict(dataset="digits", hidden="16", epochs="4", batch_size="256"),
        dataset=digits,
        seeds=range(2),
        machine=dict(platform="cpu", cpu_devices=1, compile_cache=True),
        cores=1,
        gpus=0,
    )
    sweep.add([{}] * samples or combine(space))
    return sweep


def outcomes(out: Path) -> list[tuple]:
    """Returns what must not depend on stops or engines."""
    return sorted(
        (record.config.learning_rate, record.config.seed, record.params_sha256)
        for record in find_runs(out).values()
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
    assert len(rows) == 4 and {row["state"] for row in rows} == {"complete"}
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
    with hold_lock(out / ".lock"):
        refused = run(*words, *GRID, ok=False)
    assert "another process" in refused.stderr


@pytest.mark.programs
def test_a_killed_sweep_resumes_and_ends_like_an_unstopped_one(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    rates = "--vary=learning_rate=1e-3,3e-3,1e-2"  # one program
    words = "benchmarks.sweep", *SMALL, rates, "--epochs=150"  # the last takes seconds
    run(*words, f"--out={whole}")
    with start_python("-m", *words, f"--out={killed}") as process:
        read_until(process, "2/3 done")
        while not list(killed.glob("runs/*/*/checkpoints/epoch*2.msgpack")):
            assert process.poll() is None
    with open(killed / JOURNAL, "a") as journal:
        journal.write('{"op_code": 4, "worker')  # as if it was killed while it wrote
    done = {path: path.stat().st_mtime_ns for path in killed.rglob(RECORD)}
    assert len(done) == 2
    [metrics] = {*killed.rglob(METRICS)} - {path.with_name(METRICS) for path in done}
    epoch = metrics.read_text().splitlines()[1]  # with its seconds
    resumed = run(*words, f"--out={killed}").stdout
    assert metrics.read_text().splitlines()[1] == epoch
    assert "2 of 3 trials had ended before" in resumed
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())
    assert outcomes(killed) == outcomes(whole) and len(outcomes(whole)) == 3
    assert not list(killed.rglob("checkpoints/*.msgpack"))


def test_trials_are_pruned_fail_and_share_one_program(tmp_path, digits, monkeypatch):
    calls, whole = [], sweep_worker.prepare
    monkeypatch.setattr(
        sweep_worker, "prepare", lambda *words: calls.append(words) or whole(*words)
    )
    out, rates = tmp_path / "out", "1e38,1e-2,1e-5,2e-2"
    pruner = optuna.pruners.SuccessiveHalvingPruner(1, 2)
    sweep = make_sweep(out, digits, rates, pruner=pruner)
    train_trials(sweep)
    assert len(calls) == 1
    found = [states(out)[rate] for rate in rates.split(",")]
    assert found[:3] == ["fail", "complete", "pruned"]
    [failed] = sweep.trials(TrialState.FAIL)
    assert "the loss is" in failed.user_attrs["outcome"]
    trials = read_trials(out)
    table = write_trials(out, trials)
    assert "| pruned" in table and "\nbest: " in table
    pruned = trials[trials["learning_rate"] == "1e-5"].iloc[0]
    assert 1 <= pruned["epochs_trained"] < 4 and not pruned["seeds"]
    assert not list(out.rglob("checkpoints/*.msgpack"))
    # What has ended is not trained again.
    again = make_sweep(out, digits, rates)
    assert not again.trials(TrialState.WAITING)
    # A program that was compiled for another rate trains the same.
    train_trials(make_sweep(tmp_path / "alone", digits, "1e-2"))
    alone = outcomes(tmp_path / "alone")
    assert len(calls) == len(alone) == 2 and set(alone) <= set(outcomes(out))


def test_seeds_that_train_one_by_one_report_each_epoch_once(tmp_path, digits):
    sweep = make_sweep(tmp_path, digits, "1e-2")
    given = sweep.given | {"patience": "9"}
    train_trials(dataclasses.replace(sweep, given=given))
    [trial] = sweep.trials(TrialState.COMPLETE)
    first, second = find_runs(tmp_path).values()
    accuracies = {epoch.epoch: epoch.val_accuracy for epoch in first.epochs}
    assert trial.intermediate_values == accuracies and len(second.epochs) == 4


def test_the_report_has_plots_of_a_sweep(tmp_path, digits):
    train_trials(make_sweep(tmp_path, digits, "1e-3,1e-2"))
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
    # Trials whose runs were removed keep their validation accuracies.
    shutil.rmtree(tmp_path / RUNS)
    trials = read_trials(tmp_path)
    assert "\nbest: " not in write_trials(tmp_path, trials)
    assert trials["val_accuracy"].notna().all() and not trials["seeds"].any()


@pytest.mark.faults
def test_a_trial_whose_process_dies_is_resumed_until_it_fails(
    tmp_path, digits, monkeypatch
):
    trials, deaths = make_sweep(tmp_path, digits, "1e-3,1e-2"), []

    def kill() -> None:
        if [trial.number for trial in trials.trials(TrialState.RUNNING)] == [0]:
            [child] = active_children()
            deaths.append(child.pid)
            os.kill(child.pid, signal.SIGKILL)
            child.join()

    context = contextlib.nullcontext(kill)
    monkeypatch.setattr(sweep, "stop_between_chunks", lambda _: context)
    sweep.train_sweep(trials, partial(start_processes, trials, 1))
    assert len(set(deaths)) == MAX_DEATHS
    assert states(tmp_path) == {"1e-3": "fail", "1e-2": "complete"}
    [failed] = trials.trials(TrialState.FAIL)
    assert f"failed (its process died {MAX_DEATHS} t" in failed.user_attrs["outcome"]


def test_combinations_change_the_learning_rate_first():
    space = parse_space(["learning_rate=1,2", "batch_size=3,4"], ["mlp"])
    order = [(s["batch_size"], s["learning_rate"]) for s in combine(space)]
    assert order == [("3", "1"), ("3", "2"), ("4", "1"), ("4", "2")]


def draw(sweep: Sweep) -> list[float]:
    """Takes all trials, whose accuracy is best at 0.01; returns their rates."""
    rates = []
    while (trial := sweep.take()) is not None:
        rates.append(trial.params["learning_rate"])
        sweep.study.tell(trial, 1 - abs(rates[-1] - 0.01))
    return rates


def test_samples_are_within_their_ranges_and_repeat(tmp_path, digits):
    outs = [tmp_path / str(number) for number in range(3)]
    sweeps = [make_sweep(out, digits, "log(1e-4,1e-2)", samples=20) for out in outs]
    drawn = draw(sweeps[0])
    assert drawn == draw(sweeps[1])
    assert drawn != draw(dataclasses.replace(sweeps[2], search_seed=1))
    assert all(1e-4 <= rate <= 1e-2 for rate in drawn)
    assert sum(rate < 1e-3 for rate in drawn) > 5  # log-uniform


def test_a_sample_that_cannot_be_trained_fails(tmp_path, digits, monkeypatch):
    def refuse(*words: object) -> None:
        raise InputError("the combination cannot be trained")

    monkeypatch.setattr(sweep_worker, "make_config", refuse)
    sweep = make_sweep(tmp_path, digits, "1e-3", samples=8)
    train_trials(sweep)
    failed = [t.user_attrs["outcome"] for t in sweep.trials(TrialState.FAIL)]
    reason = "failed (the combination cannot be trained)"
    assert failed == [f"model=mlp learning_rate=1e-3: {reason}"] * 8
    assert read_trials(tmp_path).empty


def test_a_folder_holds_one_sweep(tmp_path, digits):
    make_sweep(tmp_path, digits, "1e-3")
    other = dataclasses.replace(digits, name="mnist", test=digits.train)
    for data, rates in (other, "1e-3"), (digits, "1e-2"):
        with pytest.raises(InputError, match="holds a sweep with other flags or data"):
            make_sweep(tmp_path, data, rates)


def test_tpe_draws_near_the_best_of_earlier_starts(tmp_path, digits):
    near, tpe = [], optuna.samplers.TPESampler
    for samples in range(8, 48, 8):
        sweep = make_sweep(tmp_path, digits, "log(1e-5,1)", samples, sampler=tpe)
        near += [1e-3 < rate < 0.1 for rate in draw(sweep)]
    assert len(near) == 40 and sum(near[-15:]) >= 10 > sum(near[:15])


def test_two_processes_take_each_trial_once(tmp_path, digits):
    one = make_sweep(tmp_path, digits, "1,2,3,4")
    other = make_sweep(tmp_path, digits, "1,2,3,4")
    taken = [sweep.take().number for sweep in (one, other, one, other)]
    assert sorted(taken) == [0, 1, 2, 3] and one.take() is other.take() is None
    again = make_sweep(tmp_path, digits, "1,2,3,4")
    assert again.requeue(deaths=0) and len(again.trials(TrialState.WAITING)) == 4
