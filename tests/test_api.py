"""What `import mnist_jax` offers."""

import dataclasses
import json
from functools import partial
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from helpers.processes import run_python
from helpers.trained import make_run

import mnist_jax
from mnist_jax import InputError, TrainConfig, api
from mnist_jax.data.datasets import load_dataset
from mnist_jax.data.types import Dataset, Split
from mnist_jax.reporting.tables import comparison_frame

CONFIG = TrainConfig(
    dataset="digits", hidden=(8,), epochs=1, batch_size=64, cpu_devices=1
)


def test_the_version_is_that_of_the_package():
    assert mnist_jax.__version__ == version("mnist-jax")


def test_setup_uses_every_core_and_may_be_repeated():
    code = """
import json, jax, mnist_jax
from mnist_jax.records.environment import available_cores
mnist_jax.setup(compile_cache=False); mnist_jax.setup(compile_cache=False)
assert jax.config.jax_compilation_cache_dir is None
mnist_jax.setup()
assert jax.config.jax_compilation_cache_dir is not None
assert jax.device_count() == available_cores(), jax.devices()
errors = []
for settings in dict(cpu_devices=64), dict(platform="tpu"):
    try: mnist_jax.setup(**settings)
    except (RuntimeError, ValueError) as error: errors.append(str(error))
print(json.dumps(errors))
"""
    devices, platform = json.loads(run_python("-c", code).stdout)
    assert "before any JAX operation" in devices
    assert "platform to tpu" in platform and "running on cpu" in platform


def test_train_gives_the_parameters_of_the_program(run_dir: Path):
    program = mnist_jax.load_run(run_dir)
    config = TrainConfig(dataset="digits", hidden=(16,), epochs=2, batch_size=64)
    assert program.config == config
    config = dataclasses.replace(config, cpu_devices=program.record.devices)
    [trained] = mnist_jax.train(config, quiet=True)
    assert trained.record.params_sha256 == program.record.params_sha256


def test_train_keeps_resumes_and_overwrites(tmp_path, capsys):
    folder, settings = tmp_path / "runs", {"checkpoint_every": 1, "quiet": True}
    runs = mnist_jax.train(CONFIG, [3, 5], run_dir=folder, **settings)
    assert [run.config.seed for run in runs] == [3, 5]
    assert capsys.readouterr().out == ""
    with pytest.raises(InputError, match="already holds a run"):
        mnist_jax.train(CONFIG, [3, 5], run_dir=folder, quiet=True)
    again = mnist_jax.train(CONFIG, [3, 5, 7], run_dir=folder, resume=True, **settings)
    dates = [run.record.environment.date for run in again]
    assert dates[:2] == [run.record.environment.date for run in runs]
    settings = {"overwrite": True, "init_from": folder / "seed5"}
    [new] = mnist_jax.train(CONFIG, [3], run_dir=folder / "seed3", **settings)
    assert new.record.start_sha256 == runs[1].record.params_sha256
    assert "test accuracy" in capsys.readouterr().out


def test_compare_returns_numbers_and_keeps_runs(tmp_path, digits: Dataset):
    configs = [CONFIG, TrainConfig(**{**vars(CONFIG), "hidden": (16,)})]
    settings = dict(dataset=digits, out=tmp_path, targets=[0.01], against=CONFIG)
    first = mnist_jax.compare(configs, 2, quiet=True, **settings)
    assert first["seeds"].tolist() == [2, 2] and first["test_accuracy"].dtype == float
    assert first["seeds_to_0.01"].tolist() == [2, 2]
    assert (first["seconds_to_0.01"] == first["first_epoch_seconds"]).all()
    assert first["difference"].notna().sum() == 1
    again = mnist_jax.compare(configs[:1], 2, quiet=True, **settings)
    [row] = again.index
    same = first[first["settings"] == again["settings"][row]].reset_index(drop=True)
    pd.testing.assert_frame_equal(same, again)
    assert (tmp_path / "compare.md").exists()


def test_the_dataset_that_auto_finds_decides_the_epochs(tmp_path, digits: Dataset):
    config = TrainConfig(hidden=(4,), batch_size=256)
    epochs = TrainConfig(dataset="digits").epochs
    train = partial(mnist_jax.train, dataset=digits, run_dir=tmp_path, quiet=True)
    [first], [again] = train(config), train(config, resume=True)
    assert first.record == again.record and len(first.record.epochs) == epochs
    frame = comparison_frame([first.record])
    assert frame["settings"].tolist() == ["hidden=4 batch_size=256"]
    assert frame["epochs"].tolist() == [epochs]
    with pytest.raises(InputError, match=f"--epochs was {epochs}, is 3"):
        train(dataclasses.replace(config, epochs=3), resume=True)


def test_a_run_is_only_that_of_the_arrays_it_was_trained_on(tmp_path, digits: Dataset):
    train = partial(mnist_jax.train, CONFIG, run_dir=tmp_path, quiet=True, resume=True)
    split = Split(255 - digits.train.images, digits.train.labels)
    changed = dataclasses.replace(digits, train=split)
    [first], [again] = train(dataset=changed), train(dataset=changed)
    assert first.record == again.record
    for other in (digits, dataclasses.replace(changed, test=digits.train)):
        with pytest.raises(InputError, match="checksum was .*, is"):
            train(dataset=other)
    with pytest.raises(InputError, match="classes was 10, is 11"):
        train(dataset=dataclasses.replace(changed, class_names=range(11)))
    changed.train.images[0, 0, 0] ^= 1
    with pytest.raises(InputError, match="checksum was .*, is"):
        train(dataset=changed)
    changed.train.images[0, 0, 0] ^= 1
    # The program that predicts needs the arrays in a file, and recognizes them.
    arrays = [*changed.train, *changed.test]
    names = ("x_train", "y_train", "x_test", "y_test")
    np.savez(tmp_path / "set.npz", **dict(zip(names, arrays, strict=True)))
    assert load_dataset("idx", tmp_path).checksum == first.record.checksum


def test_predict_takes_unscaled_images_only(digits: Dataset):
    trained, images = make_run(hidden=(8,)), digits.test.images[:3]
    assert trained.predict(images[:0]).shape == (0, 10)
    with_channel = trained.predict(images[..., None])
    np.testing.assert_array_equal(with_channel, trained.predict(images))
    for wrong in (images / 255, images[0], images[:, None], images.reshape(3, -1)):
        with pytest.raises(InputError, match="not scaled; got"):
            trained.predict(wrong)
    assert len(repr(trained)) < 2_000 and trained != dataclasses.replace(trained)


@pytest.mark.parametrize(
    "images, message",
    [
        (np.zeros((3, 28, 28)), "images must be .* got .* float64"),
        (np.zeros((3, 32, 32), np.uint8), "got 28x28 and 32x32"),
    ],
)
def test_invalid_datasets_are_refused(digits: Dataset, images, message):
    split = Split(images, np.arange(3, dtype=np.int32))
    with pytest.raises(InputError, match=message):
        mnist_jax.train(CONFIG, dataset=dataclasses.replace(digits, test=split))


UNUSED = TrainConfig(conv=("8",))
TESTED = TrainConfig(dataset="digits", validation="test")


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: mnist_jax.train(CONFIG, resume=True), "need run_dir"),
        (lambda: mnist_jax.compare([CONFIG, CONFIG]), "equal but for the seed"),
        (lambda: mnist_jax.compare(CONFIG, targets=[98]), "--targets must be"),
        (
            lambda: mnist_jax.compare([CONFIG, TESTED], targets=[0.9, 0.95]),
            "--targets=0.9,0.95 needs .*--validation=test;",
        ),
        (lambda: mnist_jax.compare([CONFIG, TrainConfig()]), "auto, digits"),
        (lambda: mnist_jax.compare([]), "got none"),
        (
            lambda: mnist_jax.train(CONFIG, run_dir="x", resume=True, overwrite=True),
            "give one of them",
        ),
        (lambda: mnist_jax.train(CONFIG, [-1]), "--seed must be"),
        # Without targets no validation set is needed.
        (lambda: mnist_jax.compare(TESTED, [-1]), "--seed must be"),
        (lambda: mnist_jax.train(UNUSED), "--conv=8 only applies with --model=cnn"),
        (lambda: mnist_jax.compare(UNUSED), "--conv=8 only applies with --model=cnn"),
    ],
)
def test_wrong_arguments_are_refused(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        call()


def test_one_device_for_several_cores_is_warned_of(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(api, "available_cores", lambda: 8)
    # Nothing is trained: `resume` needs a directory.
    for config in (CONFIG, TrainConfig(model="cnn", cpu_devices=1)):
        with pytest.raises(InputError, match="need run_dir"):
            mnist_jax.train(config, resume=True)
    with pytest.raises(UserWarning, match=r"mnist_jax.setup\(\)"):
        mnist_jax.train(TrainConfig(model="cnn"), resume=True)
