"""Configs and flags: round trips, defaults and invalid values."""

import dataclasses
import json

import numpy as np
import pytest
from absl import flags

from mnist_jax.cli.config_flags import config_from_flags, define_config_flags
from mnist_jax.config import MODELS, ConvStage, TrainConfig, parse_conv_stage
from mnist_jax.errors import InputError
from mnist_jax.records.schema import decode, plain


def parse(*arguments: str) -> flags.FlagValues:
    """Parses a command line that has only the config's flags."""
    values = flags.FlagValues()
    define_config_flags(values)
    values(["program", *arguments])
    return values


@pytest.mark.parametrize("model", MODELS)
def test_config_round_trips_through_json(model):
    config = TrainConfig(model=model, dropout=(0.25,), train_size=7, dataset="mnist")
    text = json.dumps(plain(config))
    assert decode(TrainConfig, json.loads(text)) == config


def test_numpy_numbers_become_pythons():
    config = TrainConfig(learning_rate=np.float32(0.5), hidden=[np.int64(7)])
    assert config == TrainConfig(learning_rate=0.5, hidden=(7,))
    assert type(config.learning_rate) is float and type(config.hidden[0]) is int


def test_every_field_is_a_flag():
    assert {f.name for f in dataclasses.fields(TrainConfig)} <= set(parse())


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
    config = config_from_flags(
        parse(
            "--model=lstm",
            "--lstm_units=64, 32",
            "--hidden=32",
            "--dropout=0.2,0.1,0",
            "--activation=relu",
            "--optimizer=sgd",
            "--momentum=0.9",
            "--nesterov",
            "--train_size=1000",
        )
    )
    assert config.lstm_units == (64, 32) and config.dropout == (0.2, 0.1, 0.0)
    assert config.nesterov and config.momentum == 0.9 and config.train_size == 1000


def test_empty_list_means_no_hidden_layer():
    assert config_from_flags(parse("--model=cnn", "--hidden=")).hidden == ()


@pytest.mark.parametrize("text", ["None", "none"])
def test_none_means_none(text):
    """Sweep agents send every flag, those that are not set as None."""
    names = "patience", "train_size", "clip_norm", "ema", "augment", "freeze"
    values = parse("--patience=3", *(f"--{name}={text}" for name in names))
    config = config_from_flags(values)
    assert [getattr(config, name) for name in names] == [None] * 4 + [()] * 2
    assert config_from_flags(values, augment=None) == config  # as in --vary
    for name in ("epochs", "hidden"):  # here it might mean the model's default
        with pytest.raises(flags.IllegalFlagValueError, match=f"--{name}={text}"):
            parse(f"--{name}={text}")


def test_dropout_needs_no_hidden_layer_if_there_is_an_lstm_layer():
    values = parse("--model=lstm", "--hidden=", "--dropout=0.5")
    assert config_from_flags(values).dropout == (0.5,)
    assert config_from_flags(parse("--hidden=", "--dropout=0")).hidden == ()


def test_several_models_each_take_their_own_flags():
    values = parse("--lstm_units=64", "--batch_size=32")
    assert config_from_flags(values, model="lstm").lstm_units == (64,)
    assert config_from_flags(values, model="cnn") == TrainConfig(
        model="cnn", batch_size=32
    )


def test_flagfile_sets_flags(tmp_path):
    file = tmp_path / "preset.cfg"
    file.write_text("# a comment\n--model=cnn\n--conv=8:linear:pool2\n--hidden=\n")
    config = config_from_flags(parse(f"--flagfile={file}", "--epochs=2"))
    assert config.conv == ("8:linear:pool2",) and config.epochs == 2


def test_conv_stage_reads_options_in_any_order():
    want = ConvStage(16, 5, "SAME", 2, "tanh", 3)
    assert parse_conv_stage("16:pool3:s2:tanh:same:k5") == want
    assert parse_conv_stage(" 32 ") == ConvStage(32)


@pytest.mark.parametrize(
    "text",
    ["", "0", "-1", "x", "8:k8", "8:k3:k5", "8:pool4", "8:", "8:relu:tanh", "8:s3"],
)
def test_bad_conv_stages_are_refused(text):
    with pytest.raises(InputError, match="--conv"):
        parse_conv_stage(text)


BAD = [
    ("model", "mlpp"),
    ("dataset", "cifar"),
    ("optimizer", "adamx"),
    ("pixels", "scale"),
    ("split", "random"),
    ("validation", "train"),
    ("schedule", "linear"),
    ("impl", "slow"),
    ("batch_size", 0),
    ("batch_size", -5),
    ("epochs", 0),
    ("train_size", 0),
    ("seed", -1),
    ("learning_rate", -0.1),
    ("learning_rate", 0.0),
    ("learning_rate", float("nan")),
    ("learning_rate", float("inf")),
    ("dropout", (1.0,)),
    ("dropout", (-0.1,)),
    ("dropout", (float("nan"),)),
    ("dropout", (0.1, 0.1, 0.1)),
    ("dropout", ()),
    ("hidden", (0,)),
    ("clip_norm", 0.0),
    ("clip_norm", float("nan")),
    ("momentum", float("nan")),  # also where it has no effect
    ("learning_rate", 1e39),  # infinite in float32
    ("learning_rate", 1e-46),  # 0 there
    ("clip_norm", 1e-46),
    ("ema", 0.99999999),  # 1 there
    ("beta1", 0.99999999),
    ("beta2", 0.99999999),
    ("dropout", (0.99999999,)),
    ("validation_fraction", 1.0),
    ("validation_fraction", 0.0),
]


@pytest.mark.parametrize("name, value", BAD)
def test_bad_values_are_refused_by_name_and_value(name, value):
    with pytest.raises(InputError) as error:
        TrainConfig(**{name: value})
    shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    assert f"--{name} must be" in str(error.value)
    assert shown in str(error.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--conv=8"], "--conv=8 only applies with --model=cnn; got"),
        (["--model=cnn", "--lstm_units=8"], "only applies with --model=lstm"),
        (["--momentum=0.9"], "only applies with --optimizer=sgd"),
        (["--weight_decay=0.1"], "only applies with --optimizer=adamw"),
        (["--validation=none", "--validation_fraction=0.2"], "--validation=fraction"),
        (["--split_seed=3"], "only applies with --split=shuffled"),
        (["--schedule=constant", "--warmup_fraction=0.2"], "cosine or onecycle"),
        (["--optimizer=sgd", "--nesterov"], "--momentum above 0"),
        (["--model=lstm", "--lstm_units="], "one or more widths"),
        (["--model=cnn", "--hidden=", "--dropout=0.5"], "--hidden is empty"),
        (["--model=cnn", "--conv=8:pool5"], "cannot parse the stage"),
        *(
            (["--model=net.py:Net", flag], f"{flag} only applies with --model=")
            for flag in (
                *("--hidden=8", "--dropout=0.1", "--conv=8"),
                *("--lstm_units=8", "--activation=relu"),
            )
        ),
    ],
)
def test_conflicting_flags_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        config_from_flags(parse(*arguments))


@pytest.mark.parametrize(
    "argument",
    [
        "--batch_size=x",
        "--hidden=a,b",
        "--dropout=much",
        "--optimizer=lion",
        "--batchsize=3",
    ],
)
def test_invalid_or_unknown_flags_are_refused(argument):
    with pytest.raises(flags.Error, match=argument.split("=")[0].strip("-")):
        parse(argument)


def test_model_args_of_a_custom_network_are_checked_in_python_too():
    assert TrainConfig(model="net.py:Net", model_args=["width=8"]).model_args
    with pytest.raises(InputError, match="--model_args must be fields .*; got width$"):
        TrainConfig(model="net.py:Net", model_args=("width",))


def test_config_of_another_version_is_refused():
    with pytest.raises(ValueError, match="unknown field colour"):
        decode(TrainConfig, {"model": "mlp", "colour": "blue"})
