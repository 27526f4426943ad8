"""Tests of programs that are killed or stopped by a signal, and resumed."""

import json
import random
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.processes import finish, read_until, run_python, start_python

from mnist_jax.training.checkpoints import FOLDER
from mnist_jax.training.run_dir import METRICS
from mnist_jax.training.runs import HOW_TO_RESUME

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


def command(name: str, folder: Path, epochs: int = EPOCHS) -> list[str]:
    return [
        *("experiments.train", "--dataset=digits", *TRAIN[name], f"--epochs={epochs}"),
        *("--batch_size=256", "--checkpoint_every=1", f"--run_dir={folder}"),
    ]


@pytest.mark.parametrize(
    "name, kills",
    [("mlp", 1), *(pytest.param(name, 14, marks=pytest.mark.faults) for name in TRAIN)],
)
def test_a_run_killed_at_random_times_matches_an_uninterrupted_run(
    name, kills, tmp_path, record_property
):
    rng = random.Random(name)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_python("-m", *command(name, whole))
    for number in range(kills):
        words = *command(name, killed), *(["--resume"] if number else [])
        with start_python("-m", *words) as process:
            # Mostly after the first row: starting takes longer than training.
            if rng.random() < 0.8:
                for line in process.stdout:  # without a row if the run is finished
                    if re.match(r" ?\d+/", line):
                        break
            time.sleep(rng.random())
            process.kill()
            errors = finish(process).stderr
        assert "Traceback" not in errors, errors
        assert "not used" not in errors, errors  # no half-written checkpoint
        if (killed / METRICS).exists():
            for line in (killed / METRICS).read_text().splitlines():
                json.loads(line)
    resumed = run_python("-m", *command(name, killed), "--resume").stdout
    assert re.search(r"resuming after epoch \d|is finished", resumed)
    records = [json.loads((f / "record.json").read_text()) for f in (whole, killed)]
    assert records[0]["params_sha256"] == records[1]["params_sha256"]
    rows = [len((f / METRICS).read_text().splitlines()) for f in (whole, killed)]
    assert rows == [EPOCHS, EPOCHS]
    record_property("kills: of runs", kills)


@pytest.mark.parametrize(
    "number, line", [(signal.SIGINT, r"^ ?\d+/"), (signal.SIGTERM, "^mlp: compiling")]
)
def test_a_signal_stops_a_run_and_prints_how_to_resume_it(number, line, tmp_path):
    with start_python("-m", *command("mlp", tmp_path, 100_000)) as process:
        read_until(process, line)
        process.send_signal(number)
        stopped = finish(process)
    assert stopped.returncode == 128 + number, stopped.stderr
    resume = f"--resume resumes after the last checkpoint in {tmp_path}"
    assert stopped.stderr == f"stopped: the same command with {resume}\n"
    trained = number == signal.SIGINT  # not a step, if stopped while compiling
    assert (tmp_path / METRICS).exists() == trained
    assert bool(list((tmp_path / FOLDER).glob("epoch*"))) == trained


def test_a_signal_stops_a_comparison_and_prints_how_to_resume_it(tmp_path):
    words = "benchmarks.compare", "--dataset=digits", "--models=mlp", "--hidden=16"
    words = *words, "--epochs=100000", "--batch_size=256", f"--out={tmp_path}"
    with start_python("-m", *words) as process:
        read_until(process, r"^ ?\d+/")
        process.send_signal(signal.SIGTERM)
        stopped = finish(process)
    assert stopped.returncode == 143, stopped.stderr
    assert stopped.stderr == f"stopped: {HOW_TO_RESUME}\n"
    assert list(tmp_path.rglob("checkpoints/*.msgpack"))
