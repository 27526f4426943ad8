"""Tests of programs that are killed or stopped by a signal, and resumed."""

import json
import random
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.processes import run_python, start_python
from helpers.programs import run
from helpers.runs import outcomes

from mnist_jax.training.checkpoints import FOLDER
from mnist_jax.training.run_dir import METRICS

pytestmark = pytest.mark.programs

EPOCHS = 60
TRAIN = {
    "mlp": ("--model=mlp", "--hidden=16"),
    "lstm": ("--model=lstm", "--lstm_units=16", "--dropout=0.2"),
    "cnn": ("--model=cnn", "--conv=8:pool2", "--hidden=16"),
}


@pytest.fixture(scope="module", autouse=True)
def separate_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps half-written files of killed programs out of the other tests' cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNIST_JAX_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def command(name: str, folder: Path) -> list[str]:
    return [
        *("-m", "experiments.train", "--dataset=digits"),
        *(*TRAIN[name], f"--epochs={EPOCHS}", "--batch_size=256"),
        *("--checkpoint_every=1", f"--run_dir={folder}"),
    ]


def kill_and_resume(name: str, kills: int, rng: random.Random, tmp_path: Path) -> None:
    """Kills and resumes a run at random times; it must match an uninterrupted run."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_python(*command(name, whole))
    for number in range(kills):
        process = start_python(
            *command(name, killed), *(["--resume"] if number else [])
        )
        # Mostly after the first row: starting takes longer than training.
        if rng.random() < 0.8:
            for line in process.stdout:
                if re.match(r" ?\d+/", line):
                    break
        time.sleep(rng.random())
        process.kill()
        _, errors = process.communicate(timeout=300)
        assert "Traceback" not in errors, errors
        assert "not used" not in errors, errors  # no half-written checkpoint
        if (killed / METRICS).exists():
            for line in (killed / METRICS).read_text().splitlines():
                json.loads(line)
    process = start_python(*command(name, killed), "--resume")
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    records = [json.loads((f / "record.json").read_text()) for f in (whole, killed)]
    assert records[0]["params_sha256"] == records[1]["params_sha256"]
    rows = [len((f / METRICS).read_text().splitlines()) for f in (whole, killed)]
    assert rows == [EPOCHS, EPOCHS]


def test_a_run_killed_at_a_random_time_matches_an_uninterrupted_run(tmp_path):
    kill_and_resume("mlp", 1, random.Random(0), tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("name", TRAIN)
def test_runs_of_every_network_survive_many_kills(name, tmp_path, record_property):
    kill_and_resume(name, 14, random.Random(name), tmp_path)
    record_property("kills: of runs", 14)


@pytest.mark.parametrize(
    "number, line", [(signal.SIGINT, r" ?\d+/"), (signal.SIGTERM, "mlp: compiling")]
)
def test_a_signal_stops_a_run_and_prints_how_to_resume_it(number, line, tmp_path):
    words = command("mlp", tmp_path)
    words[words.index(f"--epochs={EPOCHS}")] = "--epochs=100000"
    process = start_python(*words)
    while not re.match(line, process.stdout.readline()):
        assert process.poll() is None
    process.send_signal(number)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 128 + number, errors
    resume = f"--resume resumes after the last checkpoint in {tmp_path}"
    assert errors == f"stopped: the same command with {resume}\n"
    trained = number == signal.SIGINT  # not a step, if stopped while compiling
    assert (tmp_path / METRICS).exists() == trained
    assert bool(list((tmp_path / FOLDER).glob("epoch*"))) == trained


def test_resume_prints_where_it_starts_and_that_a_run_is_finished(tmp_path):
    words = command("mlp", tmp_path)[1:]
    words[words.index(f"--epochs={EPOCHS}")] = "--epochs=2"
    first = run(*words, "--resume")
    assert "starting from the beginning" in first.stdout
    again = run(*words, "--resume")
    assert "is finished" in again.stdout
    words[words.index("--epochs=2")] = "--epochs=3"
    more = run(*words, "--resume")
    assert "resuming after epoch 2" in more.stdout and " 3/3 " in more.stdout


@pytest.mark.faults  # test_sweeps kills a sweep in every run of the tests
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_comparison_resumes_with_the_same_results(number, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [
        *("benchmarks.compare", "--dataset=digits", "--models=mlp,cnn", "--seeds=2"),
        *("--conv=8:pool2", "--hidden=16", "--batch_size=256", "--epochs=30"),
    ]
    run(*command, f"--out={whole}")
    process = start_python("-m", *command, f"--out={killed}")
    headers = 0
    for line in process.stdout:  # until the second network's fifth epoch
        headers += line.startswith("epoch ")
        if headers == 2 and line.startswith(" 5/"):
            break
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert "Traceback" not in errors
    if number == signal.SIGTERM:
        assert process.returncode == 128 + number, errors
        assert "the same command resumes where this one stopped" in errors
    assert len(outcomes(killed)) == 2
    assert list(killed.rglob("checkpoints/*.msgpack"))
    finished = run(*command, f"--out={killed}")
    assert "not used" not in finished.stderr
    _, before, after = re.split(r": resuming after epoch (\d+)\n", finished.stdout)
    rows = [int(row) for row in re.findall(r"^ ?(\d+)/30 ", after, re.MULTILINE)]
    assert rows == list(range(int(before) + 1, 31))
    assert not list(killed.rglob("checkpoints/*.msgpack"))
    both = [outcomes(folder) for folder in (whole, killed)]
    assert both[0] == both[1] and len(both[0]) == 4
