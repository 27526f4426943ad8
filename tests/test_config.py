"""Configs and their flags: defaults, conversion, conflicts and invalid values."""

import dataclasses
import json

import numpy as np
import pytest
from absl import flags

from mnist_jax.cli import parsing
from mnist_jax.cli.config_flags import config_from_flags, define_config_flags
from mnist_jax.cli.parsing import PathParser, parse_flags
from mnist_jax.config import MODELS, ConvStage, TrainConfig, parse_conv_stage
from mnist_jax.errors import InputError
from mnist_jax.records.schema import decode, json_line


def parse(*words: str) -> flags.FlagValues:
    """Parses a command line that has only the config's flags."""
    values = flags.FlagValues()
    define_config_flags(values)
    parse_flags(["program", *words], values)
    return values


@pytest.mark.parametrize("model", MODELS)
def test_config_round_trips_through_json(model):
    config = TrainConfig(model=model, dropout=(0.25,), train_size=7, dataset="mnist")
    assert decode(TrainConfig, json.loads(json_line(config))) == config
    with pytest.raises(ValueError, match="colour"):
        decode(TrainConfig, {"model": "mlp", "colour": "blue"})


def test_numpy_numbers_become_pythons():
    config = TrainConfig(learning_rate=np.float32(0.5), hidden=[np.int64(7)])
    assert config == TrainConfig(learning_rate=0.5, hidden=(7,))
    assert type(config.learning_rate) is float and type(config.hidden[0]) is int


@pytest.mark.parametrize("model", MODELS)
def test_no_flags_give_the_model_defaults(model):
    assert config_from_flags(parse(f"--model={model}")) == TrainConfig(model=model)


def test_the_number_of_epochs_depends_on_the_dataset():
    auto, digits = TrainConfig(), TrainConfig(dataset="digits")
    assert auto.epochs is None and digits.epochs > TrainConfig(dataset="mnist").epochs
    assert auto.for_dataset("digits").epochs == digits.epochs
    assert auto.for_dataset("mnist").epochs == auto.for_dataset("own images").epochs
    assert TrainConfig(epochs=3).for_dataset("digits").epochs == 3
    assert f"{digits.epochs} (digits)" in parse()["epochs"].help


def test_flags_set_fields():
    words = (
        "--model=lstm --lstm_units=64,32 --hidden=32 --dropout=0.2,0.1,0 "
        "--activation=relu --optimizer=sgd --momentum=0.9 --nesterov --train_size=1000"
    )
    config = config_from_flags(parse(*words.split()))
    assert config.lstm_units == (64, 32) and config.dropout == (0.2, 0.1, 0.0)
    assert config.nesterov and config.momentum == 0.9 and config.train_size == 1000
    assert config_from_flags(parse("--model=cnn", "--hidden=")).hidden == ()
    # Dropout needs no hidden layer if there is an LSTM layer.
    config_from_flags(parse("--model=lstm", "--hidden=", "--dropout=0.5"))


@pytest.mark.parametrize("text", ["None", "none"])
def test_none_means_none(text):
    """Sweep agents send every flag, those that are not set as None."""
    names = "patience", "train_size", "clip_norm", "ema", "augment", "freeze"
    values = parse("--patience=3", *(f"--{name}={text}" for name in names))
    config = config_from_flags(values)
    assert [getattr(config, name) for name in names] == [None] * 4 + [()] * 2
    assert config_from_flags(values, augment=None) == config  # as in --vary
    for name in ("epochs", "hidden"):  # here it might mean the model's default
        with pytest.raises(InputError, match=f"--{name}={text}"):
            parse(f"--{name}={text}")


def test_several_models_each_take_their_own_flags():
    values = parse("--lstm_units=64", "--batch_size=32")
    assert config_from_flags(values, model="lstm").lstm_units == (64,)
    expected = TrainConfig(model="cnn", batch_size=32)
    assert config_from_flags(values, model="cnn") == expected


def test_the_last_flag_counts_and_overrides_a_preset(tmp_path, monkeypatch):
    (tmp_path / "small.cfg").write_text("# a comment\n\n--model=cnn\n--epochs=2\n")
    values = flags.FlagValues()
    define_config_flags(values)
    monkeypatch.setattr(parsing, "PRESETS", tmp_path)
    flags.DEFINE_string("preset", None, "", flag_values=values)
    parse_flags(["program", "--epochs=7", "--epochs=3", "--preset=small"], values)
    config = config_from_flags(values)
    assert (config.model, config.epochs) == ("cnn", 3)
    file = f"--flagfile={tmp_path}/small.cfg"
    assert config_from_flags(parse(file, "--epochs=1")).epochs == 1
    assert config_from_flags(parse("--epochs=1", file)).epochs == 2


def test_paths_are_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    found = [PathParser().parse(path) for path in ("~", "~/a/b", "a~/~b")]
    assert found == ["/home/me", "/home/me/a/b", "a~/~b"]
    with pytest.raises(ValueError, match="a path; give one"):
        PathParser().parse("")


def test_conv_stage_reads_options_in_any_order():
    want = ConvStage(16, 5, "SAME", 2, "tanh", 3)
    assert parse_conv_stage("16:pool3:s2:tanh:same:k5") == want
    assert parse_conv_stage(" 32 ") == ConvStage(32)


# Command lines by the flag that the error must name: of another type, out of range, or
# in conflict with another flag.
BAD = {
    "model": ["--model=vit", "--model=mlpp"],
    "hidden": ["--hidden=a", "--hidden=0", "--hidden=100001"],
    "conv": [
        *("--model=cnn --conv=", "--model=mlp --conv=8", "--model=net.py:Net --conv=8"),
        *(
            f"--model=cnn --conv={stage}"
            for stage in "0 -1 x 8:k8 8:k3:k5 8:pool4 8: 8:relu:tanh 8:s3".split()
        ),
    ],
    "lstm_units": [
        *(f"--model=lstm --lstm_units={units}" for units in ("0", "", "x")),
        "--model=cnn --lstm_units=8",
    ],
    "activation": ["--activation=gelu", "--model=cnn --activation=relu"],
    "dropout": [
        *(f"--dropout={rate}" for rate in ("1", "much", "-0.1", "nan", "")),
        *("--dropout=0.99999999", "--dropout=0.1,0.1,0.1", "--hidden= --dropout=0.1"),
    ],
    "model_args": ["--model_args=width"],
    "dataset": ["--dataset=cifar"],
    "train_size": ["--train_size=0", "--train_size=1.5"],
    "pixels": ["--pixels=log"],
    "split": ["--split=random"],
    "split_seed": ["--split_seed=3", "--split=shuffled --split_seed=-1"],
    "validation": ["--validation=train"],
    "validation_fraction": [
        *(f"--validation_fraction={value}" for value in ("x", "0", "1", "nan")),
        "--validation=none --validation_fraction=0.2",
    ],
    "beta1": ["--beta1=1", "--beta1=0.99999999", "--optimizer=sgd --beta1=0.8"],
    "beta2": ["--beta2=-0.1", "--optimizer=sgd --beta2=0.8"],
    "crop": ["--crop=11", "--crop=x"],
    "augment": [
        f"--augment={text}"
        for text in "blur shift shift0 shift1.5 rotate91 shift1,shift2".split()
    ],
    "label_smoothing": ["--label_smoothing=1", "--label_smoothing=x"],
    "ema": ["--ema=1", "--ema=0", "--ema=x", "--ema=0.99999999"],  # 1 in float32
    "tta": ["--tta=5", "--tta=x"],
    "optimizer": ["--optimizer=lion"],
    "momentum": ["--optimizer=sgd --momentum=1", "--momentum=0.9"],
    "nesterov": ["--nesterov=maybe", "--nesterov", "--optimizer=sgd --nesterov"],
    "weight_decay": ["--optimizer=adamw --weight_decay=-1", "--weight_decay=0.1"],
    "learning_rate": [  # 1e39 is infinite in float32, 1e-46 is 0
        f"--learning_rate={value}"
        for value in ("0", "-1", "nan", "inf", "fast", "1e+39", "1e-46")
    ],
    "schedule": ["--schedule=linear"],
    "warmup_fraction": [
        *("--warmup_fraction=0", "--schedule=constant --warmup_fraction=0.2")
    ],
    "clip_norm": [f"--clip_norm={value}" for value in ("0", "nan", "x", "1e-46")],
    "batch_size": ["--batch_size=0", "--batch_size=1.5"],
    "epochs": ["--epochs=0", "--epochs=x"],
    "patience": ["--patience=0", "--patience=x", "--validation=test --patience=3"],
    "seed": ["--seed=-1", "--seed=4294967296", "--seed=x"],
    "impl": ["--impl=slow"],
    "precision": ["--precision=float16"],
    "cpu_devices": ["--cpu_devices=-1", "--cpu_devices=1025", "--cpu_devices=x"],
}


@pytest.mark.parametrize("name", BAD)
def test_bad_flags_are_refused_by_name_and_value(name):
    for line in BAD[name]:
        with pytest.raises(InputError) as error:
            config_from_flags(parse(*line.split()))
        assert f"--{name}" in str(error.value), line
        _, _, value = line.split()[-1].partition("=")
        assert value.rpartition(",")[2] in str(error.value), line


def test_every_field_has_bad_values():
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    assert set(BAD) == fields - {"freeze"}  # which depends on the network


@pytest.mark.parametrize(
    "name, value",
    [
        *(("hidden", 8), ("hidden", (1.5,)), ("learning_rate", "0.1"), ("seed", True)),
        *(("conv", "8"), ("epochs", "3"), ("model", None), ("seed", 1.5)),
    ],
)
def test_values_of_other_types_are_refused(name, value):
    with pytest.raises(InputError, match=f"--{name} must be of type .*; got"):
        TrainConfig(**{name: value})
