"""Early stopping: where a run ends, what it keeps, and that it resumes bit for bit."""

import dataclasses
from functools import partial

import pytest
from helpers.runs import outcome, prepare_once, resumable, train_into

import mnist_jax
from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Dataset
from mnist_jax.training.fit import finish, fit
from mnist_jax.training.run_dir import load_run

# Its validation loss rises again after a few epochs.
CONFIG = TrainConfig(
    dataset="digits",
    hidden=(16,),
    batch_size=64,
    learning_rate=0.03,
    schedule="constant",
    epochs=40,
    patience=2,
)


def test_the_parameters_of_the_best_epoch_are_kept(digits: Dataset):
    [(record, _)] = finish(fit(prepare_once(CONFIG, digits), [0]))
    losses = [epoch.val_loss for epoch in record.epochs]
    best = record.best_epoch
    assert losses[best - 1] == min(losses)
    assert 1 < best and len(losses) == best + CONFIG.patience < CONFIG.epochs
    # The same as a run that ends after the best epoch.
    config = dataclasses.replace(CONFIG, patience=None, epochs=best)
    [(alone, _)] = finish(fit(prepare_once(config, digits), [0]))
    assert alone.params_sha256 == record.params_sha256 and alone.best_epoch is None
    assert alone.test_loss == record.test_loss
    # Also if the epochs end before patience does.
    config = dataclasses.replace(CONFIG, epochs=best + 1)
    [(ended, _)] = finish(fit(prepare_once(config, digits), [0]))
    assert len(ended.epochs) == best + 1 and ended.best_epoch == best
    assert ended.params_sha256 == record.params_sha256


def test_it_resumes_bit_for_bit_and_only_more_patience_extends_it(
    digits: Dataset, tmp_path
):
    experiment, whole = prepare_once(CONFIG, digits), tmp_path / "whole"
    [want] = train_into(experiment, {0: whole})
    for stop in (want.best_epoch - 1, want.best_epoch + 1):
        folder = tmp_path / str(stop)
        train_into(experiment, {0: folder}, stop, checkpoint_every=1)
        _, checkpoint = resumable({0: folder}, CONFIG)
        [got] = train_into(
            experiment, {0: folder}, checkpoint_every=3, resume=checkpoint
        )
        assert outcome(got, folder) == outcome(want, whole)
        assert got.best_epoch == want.best_epoch
        assert resumable({0: folder}, CONFIG)[0]
        assert load_run(folder).record == got
    assert resumable({0: folder}, dataclasses.replace(CONFIG, epochs=50))[0]
    patient = dataclasses.replace(CONFIG, patience=4)
    experiment, expected = prepare_once(patient, digits), tmp_path / "patient"
    [want] = train_into(experiment, {0: expected})
    finished, checkpoint = resumable({0: folder}, patient)
    assert not finished  # and the last epoch has a checkpoint
    [more] = train_into(experiment, {0: folder}, resume=checkpoint)
    assert outcome(more, folder) == outcome(want, expected)
    assert len(more.epochs) > len(got.epochs)


def test_each_seed_stops_by_itself(digits: Dataset, tmp_path, capsys):
    alone, experiment = [], prepare_once(CONFIG, digits, 2)
    with pytest.raises(ValueError, match="with patience, seeds train one by one; got"):
        next(fit(experiment, [0, 1]))
    for seed in (0, 1):
        alone += finish(fit(prepare_once(CONFIG, digits), [seed]))
    train = partial(mnist_jax.train, CONFIG, dataset=digits)
    epochs = [len(record.epochs) for record, _ in alone]
    assert epochs[0] != epochs[1]
    together = train(2, run_dir=tmp_path, checkpoint_every=1)
    (tmp_path / "seed1" / "record.json").unlink()  # as if it had been stopped
    again = train(2, run_dir=tmp_path, resume=True)
    for trained in (together, again):
        for run, (record, _) in zip(trained, alone, strict=True):
            assert run.record.params_sha256 == record.params_sha256
            assert run.record.best_epoch == record.best_epoch
    printed = f"parameters of epoch {alone[1].record.best_epoch} of {epochs[1]};"
    assert printed in capsys.readouterr().out
