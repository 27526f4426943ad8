"""Tests of experiment trackers: TensorBoard's files, and calls of trackio and wandb."""

import contextvars
import struct
import sys
import types
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import follow_until
from tensorboardX.proto.event_pb2 import Event, SessionLog

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Dataset, Shapes
from mnist_jax.errors import InputError
from mnist_jax.records.schema import RunRecord
from mnist_jax.reporting.trackers import check_tracker, start_run, track
from mnist_jax.testing.steps import make_split
from mnist_jax.training.fit import finish
from mnist_jax.training.mesh import make_mesh
from mnist_jax.training.prepare import Experiment, prepare
from mnist_jax.training.run_dir import run_keys
from mnist_jax.training.runs import Started, fit_into

CONFIG = TrainConfig(model="mlp", hidden=(), epochs=2, batch_size=100, dataset="idx")


def read_values(folder: Path) -> dict[tuple[str, int], Any]:
    """Returns what TensorBoard shows of a folder, by tag and step.

    The start of a session removes the steps from its own on. A record is its length
    (8 bytes), a checksum (4), an event, a checksum (4):
    https://www.tensorflow.org/tutorials/load_data/tfrecord
    """
    values: dict[tuple[str, int], Any] = {}
    paths = sorted(folder.glob("events.out.tfevents.*"))
    content = b"".join(path.read_bytes() for path in paths)
    while content:
        [length] = struct.unpack("<Q", content[:8])
        event = Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
        if event.session_log.status == SessionLog.START:
            values = {k: v for k, v in values.items() if k[1] < event.step}
        for value in event.summary.value:
            assert (value.tag, event.step) not in values
            kind = value.WhichOneof("value")
            values[value.tag, event.step] = getattr(value, kind)
    return values


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    """Two seeds of a small MLP, on images of another shape than MNIST's."""
    train, test = (make_split(n, shapes=Shapes((12, 20), 3)) for n in (300, 50))
    dataset = Dataset(train, test, class_names=range(3))
    return prepare(CONFIG, dataset, 2, mesh=make_mesh(1))


def train(
    tracker: str, experiment: Experiment, root: Path, stop: int | None = None
) -> list[RunRecord]:
    """Trains two seeds, to the end or until an epoch."""
    folders = {seed: root / f"seed{seed}" for seed in range(2)}
    keys = run_keys(CONFIG, experiment.dataset, folders)
    events = fit_into(experiment, folders, keys, checkpoint_every=0)
    seen = follow_until(track(events, tracker, root), stop)
    return [record for record, _ in finish(seen)]


def expected_scalars(record: RunRecord) -> dict[tuple[str, int], float]:
    """Returns the scalars of a finished run, by name and step."""
    numbers = {k: v for k, v in vars(record).items() if type(v) in (int, float)}
    assert {"test_loss", "test_accuracy", "parameters"} <= numbers.keys()
    scalars = {(f"run/{name}", len(record.epochs)): v for name, v in numbers.items()}
    for one in record.epochs:
        scalars |= {(f"epoch/{name}", one.epoch): v for name, v in vars(one).items()}
    return scalars


def test_tensorboard_has_the_last_training_of_each_run(experiment, tmp_path):
    for _ in range(2):
        records = train("tensorboard", experiment, tmp_path)
    for record in records:
        values = read_values(tmp_path / f"seed{record.config.seed}")
        scalars = {key: v for key, v in values.items() if isinstance(v, float)}
        assert scalars == pytest.approx(expected_scalars(record))
        assert values.keys() - scalars.keys() == {("config/text_summary", 1)}
        config = str(values["config/text_summary", 1]).replace("\\", "")
        assert f'"seed": {record.config.seed},' in config


def test_steps_that_a_resumed_run_repeats_replace_the_earlier_ones(tmp_path):
    for epochs in (range(1, 5), range(3, 6)):  # stopped after 4, resumed after 2
        run = start_run("tensorboard", "run", tmp_path, {"model": "mlp"})
        assert epochs[0] > 1 or list(tmp_path.iterdir()) == []
        for epoch in epochs:
            run.log({"loss": epochs[0]}, step=epoch)
        run.finish()
    losses = [v for (tag, _), v in read_values(tmp_path).items() if tag == "loss"]
    assert losses == [1, 1, 3, 3, 3]


class ServiceRun:
    """A run of `service`."""

    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        self.name, self.config, self.finished = name, config, 0
        self.values: dict[tuple[str, int], Any] = {}

    def log(self, values: Mapping[str, Any], step: int) -> None:
        assert not self.finished
        self.values |= {(name, step): value for name, value in values.items()}

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture(params=["trackio", "wandb"])
def service(request, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in for trackio and for wandb, with the calls of both that are used."""
    module: Any = types.ModuleType(request.param)
    module.__spec__, module.runs = ModuleSpec(request.param, None), []
    current: contextvars.ContextVar = contextvars.ContextVar("current", default=None)

    def init(project: str, name: str, config: Mapping, **options: Any) -> ServiceRun:
        assert project == "mnist_jax"
        assert options == ({"reinit": "create_new"} if request.param == "wandb" else {})
        if run := current.get():
            run.finish()
        current.set(ServiceRun(name, config))
        module.runs.append(current.get())
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, request.param, module)
    return module


def test_each_seed_is_a_run_of_the_service(service, experiment, tmp_path):
    records = train(service.__name__, experiment, tmp_path / "mlp3")
    assert [run.name for run in service.runs] == ["mlp3-seed0", "mlp3-seed1"]
    for run, record in zip(service.runs, records, strict=True):
        assert run.finished == 1
        assert run.config["seed"] == record.config.seed
        assert run.config["dataset"] == "idx" and run.config["hidden"] == []
        assert run.values == expected_scalars(record)


def test_a_stopped_run_is_finished_in_the_service(service, experiment, tmp_path):
    train(service.__name__, experiment, tmp_path, stop=1)
    assert [run.finished for run in service.runs] == [1, 1]
    assert ("epoch/loss", 1) in service.runs[0].values


def test_a_single_run_has_the_name_of_its_directory(service, tmp_path, experiment):
    folder = tmp_path / "cnn0"
    started = (event for event in [Started(experiment, {7: folder})])
    follow_until(track(started, service.__name__, folder))
    assert [(run.name, run.config["seed"]) for run in service.runs] == [("cnn0", 7)]


@pytest.mark.parametrize("call", ["init", "log", "last log", "finish"])
def test_a_service_that_fails_is_a_warning(
    service, experiment, tmp_path, monkeypatch, caplog, call
):
    def fail(*arguments: Any, **options: Any) -> None:
        if call != "last log" or "run/test_loss" in arguments[1]:
            raise RuntimeError("no connection")

    changed = service if call == "init" else ServiceRun
    monkeypatch.setattr(changed, call.split()[-1], fail)
    records = train(service.__name__, experiment, tmp_path)
    assert len(records[1].epochs) == 2
    assert caplog.text.count("no connection") == 1
    assert all(run.finished == (call != "finish") for run in service.runs)


@pytest.mark.parametrize("tracker", ["tensorboard", "trackio", "wandb"])
def test_a_missing_package_is_an_error_with_instructions(tracker, monkeypatch):
    package = {"tensorboard": "tensorboardX"}.get(tracker, tracker)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"{package}.*pip install '\.\[{tracker}\]'"):
        check_tracker(tracker)
