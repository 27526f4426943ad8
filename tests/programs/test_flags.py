"""Tests that every flag rejects invalid values; a new flag needs a row here."""

import dataclasses
from pathlib import Path

import pytest
from helpers.jobs import INVALID_FLAGS
from helpers.programs import flags_of, run
from helpers.runs import train_into
from helpers.sweeps import SWEEP_FLAGS

from mnist_jax.cli.flags import _PathParser
from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Dataset
from mnist_jax.training.prepare import prepare

# Invalid command lines by flag: wrong type, out of range, conflict with another flag.
# The first one is tested with every program that has the flag.
CONFIG = {
    "model": ["--model=vit"],
    "hidden": ["--hidden=a", "--hidden=0", "--hidden=100001"],
    "conv": [
        "--model=cnn --conv=8:pool5",
        "--model=cnn --conv=",
        "--model=cnn --conv=8:k7:pool3,8:k7,8:k7",
        "--model=mlp --conv=8",
    ],
    "lstm_units": [
        "--model=lstm --lstm_units=0",
        "--model=lstm --lstm_units=",
        "--model=lstm --lstm_units=x",
        "--model=cnn --lstm_units=8",
    ],
    "activation": ["--activation=gelu", "--model=cnn --activation=relu"],
    "dropout": [
        *(f"--dropout={rate}" for rate in ("1", "much", "-0.1", "nan", "")),
        "--dropout=0.1,0.1,0.1,0.1,0.1",
        "--hidden= --dropout=0.1",
    ],
    "model_args": ["--model_args=width"],
    "freeze": ["--freeze=Dense_9"],
    "dataset": ["--dataset=cifar"],
    "train_size": ["--train_size=0", "--train_size=1.5", "--train_size=99999"],
    "pixels": ["--pixels=log"],
    "split": ["--split=random"],
    "split_seed": ["--split_seed=3", "--split=shuffled --split_seed=-1"],
    "validation": ["--validation=train"],
    "validation_fraction": [
        "--validation_fraction=x",
        "--validation_fraction=0",
        "--validation_fraction=1",
        "--validation_fraction=nan",
        "--validation_fraction=0.9999",
        "--validation=none --validation_fraction=0.2",
    ],
    "beta1": ["--beta1=1", "--beta1=x", "--optimizer=sgd --beta1=0.8"],
    "beta2": ["--beta2=1", "--beta2=-0.1", "--optimizer=sgd --beta2=0.8"],
    "crop": ["--crop=11", "--crop=x"],
    "augment": [
        "--augment=blur",
        "--augment=shift",
        "--augment=shift1.5",
        "--augment=rotate91",
        "--augment=shift1,shift2",
    ],
    "label_smoothing": ["--label_smoothing=1", "--label_smoothing=x"],
    "ema": ["--ema=1", "--ema=0", "--ema=x"],
    "tta": ["--tta=5", "--tta=x"],
    "optimizer": ["--optimizer=lion"],
    "momentum": ["--optimizer=sgd --momentum=1", "--momentum=0.9"],
    "nesterov": ["--nesterov=maybe", "--nesterov", "--optimizer=sgd --nesterov"],
    "weight_decay": ["--optimizer=adamw --weight_decay=-1", "--weight_decay=0.1"],
    "learning_rate": [
        *(f"--learning_rate={value}" for value in ("0", "-1", "nan", "inf", "fast")),
    ],
    "schedule": ["--schedule=linear"],
    "warmup_fraction": [
        "--warmup_fraction=0",
        "--warmup_fraction=1",
        "--schedule=constant --warmup_fraction=0.2",
    ],
    "clip_norm": ["--clip_norm=0", "--clip_norm=nan", "--clip_norm=x"],
    "batch_size": ["--batch_size=0", "--batch_size=1.5", "--batch_size=99999"],
    "epochs": [
        "--epochs=0",
        "--epochs=x",
    ],
    "patience": [
        *("--patience=0", "--patience=x"),
        *("--validation=none --patience=3", "--validation=test --patience=3"),
    ],
    "seed": ["--seed=-1", "--seed=4294967296", "--seed=x"],
    "impl": ["--impl=slow"],
    "precision": ["--precision=float16"],
    "cpu_devices": ["--cpu_devices=-1", "--cpu_devices=1025", "--cpu_devices=x"],
}
PRESET, ANY_DIR = ["--preset=av_rnn"], ["--dataset=idx --data_dir=/nonexistent"]
DATA_DIR = ["--dataset=mnist --data_dir=/nonexistent"]
PLATFORM = ["--platform=fpga", "--platform=tpu"]
if not Path("/dev/nvidia0").exists():
    PLATFORM.append("--platform=gpu")
COMPILE_CACHE = ["--compile_cache=maybe"]
MACHINE = {"platform": PLATFORM, "compile_cache": COMPILE_CACHE}
CLUSTER = {"compile_cache": COMPILE_CACHE, **INVALID_FLAGS}
DATA_AND_MACHINE = {"data_dir": DATA_DIR, **MACHINE}
SEEDS = ["--seeds=0", "--seeds=x"]
FROM_SEED = [*SEEDS, "--seed=4294967290 --seeds=7"]
QUIET = ["--quiet=maybe"]
PICTURE = ["--picture=digits.bmp", "--picture=/nonexistent/digits.png"]
OUT = ["--out=/dev/null/results"]
PRECISIONS = ["--precisions=float16", "--precisions="]
MODELS = ["--models=vit", "--models="]
CUSTOM_ARGS = ["--models=examples/mixer.py:Mixer --model_args=width"]
UNVALIDATED = [f"--validation={name} --targets=0.9" for name in ("none", "test")]
TARGETS = [f"--targets={text}" for text in ("0", "1", "x", "nan", "0.9,", "98")]


DATA_FLAGS = (
    "dataset train_size split split_seed validation validation_fraction".split()
)


def first_of(*without: str) -> dict[str, list[str]]:
    """Returns the first row of each config flag, except those in `without`."""
    return {name: rows[:1] for name, rows in CONFIG.items() if name not in without}


OF_SEVERAL = {
    **first_of("model", "model_args", "precision"),
    "model_args": CUSTOM_ARGS,
    **DATA_AND_MACHINE,
    "quiet": QUIET,
    "report": ["--report=maybe"],
    "models": MODELS,
    "seeds": FROM_SEED,
    "out": OUT,
}
# By program: arguments that precede each invalid flag, and the rows. RUN is a finished
# run.
PROGRAMS: dict[str, tuple[str, dict[str, list[str]]]] = {
    "experiments.train": (
        "--dataset=digits",
        {
            **CONFIG,
            **DATA_AND_MACHINE,
            "run_dir": ["--run_dir=/dev/null/run", "--run_dir=RUN"],
            "init_from": ["--init_from=/nonexistent"],
            "init_preset": ["--init_preset=ml10_mlp_raw"],
            "preset": ["--preset=av_rnn"],
            "overwrite": ["--overwrite=maybe", "--overwrite"],
            **INVALID_FLAGS,
            "seeds": FROM_SEED,
            "track": ["--track=mlflow", "--track=tensorboard"],
            "checkpoint_every": ["--checkpoint_every=-1", "--checkpoint_every=1"],
            "keep": ["--keep=0", "--keep=x", "--keep=5"],
            "resume": ["--resume=maybe", "--resume", "--resume --run_dir=RUN"],
            "quiet": QUIET,
            "profile": ["--profile=maybe", "--profile"],
        },
    ),
    "experiments.predict": (
        "--run_dir=RUN",
        {
            "run_dir": ["--run_dir=/nonexistent"],
            "index": ["--index=360", "--index=-1", "--index=x"],
            "picture": PICTURE,
            "image": ["--image=/nonexistent.png"],
            "as_digit": ["--as_digit=x"],
            **MACHINE,
        },
    ),
    "experiments.demo": (
        "--run_dir=RUN",
        {
            "run_dir": ["--run_dir=/nonexistent"],
            "port": ["--port=-1", "--port=65536", "--port=x"],
            **MACHINE,
        },
    ),
    "experiments.export": (
        "--run_dir=RUN --format=stablehlo --out=OUT",
        {
            "run_dir": ["--run_dir=/nonexistent"],
            "format": ["--format=pickle", "--format="],
            **MACHINE,
            "out": [*OUT, "--out=/tmp"],
        },
    ),
    "experiments.plot": (
        "",
        {
            "run_dir": ["", "--run_dir=/nonexistent"],
            "platform": [f"--run_dir=RUN {text}" for text in PLATFORM],
            "compile_cache": COMPILE_CACHE,
        },
    ),
    "experiments.summary": ("", {**first_of(), "preset": PRESET, "data_dir": ANY_DIR}),
    "experiments.data": (
        "--dataset=digits",
        {
            **{name: CONFIG[name] for name in DATA_FLAGS},
            "data_dir": DATA_DIR,
            "picture": PICTURE,
            "count": ["--count=0", "--count=501", "--count=x", "--count=5"],
        },
    ),
    "benchmarks.compare": (
        "--dataset=digits --out=OUT",
        {
            **OF_SEVERAL,
            **INVALID_FLAGS,
            "precisions": PRECISIONS,
            "against": ["--against=gru"],
            "columns": ["--columns=none"],
            "targets": TARGETS + UNVALIDATED,
        },
    ),
    "benchmarks.sweep": (
        "--dataset=digits --out=OUT",
        {**OF_SEVERAL, "precision": CONFIG["precision"], **SWEEP_FLAGS},
    ),
    "benchmarks.throughput": (
        "--images=64 --repeats=1 --batch_sizes=16",
        {
            **first_of(
                *("model", "model_args", "batch_size", "dataset", "train_size"),
                *("precision", "validation", "patience"),
            ),
            "precisions": PRECISIONS,
            "model_args": CUSTOM_ARGS,
            "platform": PLATFORM,
            "models": MODELS,
            "batch_sizes": [f"--batch_sizes={word}" for word in ("0", "x", "65", "")],
            "images": ["--images=0", "--images=x", "--images=1000001"],
            "repeats": ["--repeats=0", "--repeats=x"],
            "seeds": SEEDS,
            "starts": ["--starts=-1", "--starts=x"],
            "profile": ["--profile"],
            **CLUSTER,
            "out": OUT,
        },
    ),
    "benchmarks.speedrun": (
        "--target=0.5 --out=OUT",
        {
            "target": ["--target=1", "--target=x", "--target=0.9999"],
            "recipe": ["--recipe=nothing"],
            "against": ["--against=nothing"],
            "dataset": ["--dataset=cifar"],
            "model": ["--model=vit"],
            "seeds": ["--seeds=1", "--seeds=x"],
            "peers": ["--peers=maybe"],
            "data_dir": ["--recipe=cnn_99 --data_dir=/nonexistent"],
            "platform": [f"--recipe=cnn_99 {text}" for text in PLATFORM],
            **CLUSTER,
            "out": OUT,
        },
    ),
    "benchmarks.start_worker": (
        "--dataset=digits --began=0",
        {
            **first_of(),
            **DATA_AND_MACHINE,
            "began": ["--began=x"],
        },
    ),
    "benchmarks.regress": (
        "--dataset=digits --rounds=2",
        {
            "models": MODELS,
            "against": ["--against=no-such-commit"],
            "rounds": ["--rounds=1", "--rounds=x"],
            "batch_size": ["--batch_size=0"],
            "dataset": ["--dataset=cifar"],
            "data_dir": DATA_DIR,
            "out": ["--out=/tmp"],
        },
    ),
    "benchmarks.report": (
        "",
        {"out": ["--out=/nonexistent"], "targets": TARGETS[:1]},
    ),
    "benchmarks.published": (
        "--dataset=digits --out=OUT",
        {
            "systems": ["--systems=av_rnn"],
            "quiet": QUIET,
            "seeds": SEEDS,
            "compile_cache": COMPILE_CACHE,
            "out": OUT,
            "dataset": ["--dataset=cifar"],
            "epochs": ["--epochs=0", "--epochs=x"],
            "train_size": ["--train_size=0", "--train_size=x"],
            "data_dir": DATA_DIR,
            "platform": PLATFORM,
        },
    ),
    "benchmarks.peers": (
        "--dataset=digits --frameworks=ours --out=OUT",
        {
            "models": MODELS,
            "batches": ["--batches=0", "--batches=x", "--batches="],
            "frameworks": ["--frameworks=mxnet"],
            "rounds": ["--rounds=0"],
            "steady_epochs": ["--steady_epochs=0"],
            "train_size": ["--train_size=0"],
            "dataset": ["--dataset=cifar"],
            "data_dir": DATA_DIR,
            "out": OUT,
            "overwrite": ["--overwrite=maybe"],
        },
    ),
}
# Flags whose errors quote the value, not the flag.
VALUES = {"out", "picture", "run_dir", "init_from", "init_preset", "image"}
# Flags without invalid values, and why.
ANYTHING = {
    ("experiments.summary", "init_preset"),  # set by presets; unused here
    ("experiments.predict", "data_dir"),  # unused: the run's dataset is digits
    ("experiments.demo", "data_dir"),
    ("experiments.export", "data_dir"),
    ("experiments.plot", "data_dir"),
    ("benchmarks.throughput", "data_dir"),  # unused: generates its images
}


def test_every_field_of_the_config_has_a_row():
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    assert set(CONFIG) == fields


@pytest.fixture(scope="module")
def run_dir(digits: Dataset, tmp_path_factory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("run")
    config = TrainConfig(dataset="digits", hidden=(8,), epochs=1)
    train_into(prepare(config, digits), {0: folder})
    return folder


@pytest.mark.parametrize("program", PROGRAMS)
def test_invalid_flags_print_one_sentence_without_traceback(
    program, run_dir: Path, tmp_path
):
    before, rows = PROGRAMS[program]
    names, commands = [], []
    for name, texts in rows.items():
        for text in texts:
            line = f"{before} {text}".replace("RUN", str(run_dir))
            line = line.replace("OUT", str(tmp_path / "out"))
            if "models" in rows:
                line = line.replace("--model=", "--models=")
            names.append(name)
            commands.append(line.split())
    allowed = {name for where, name in ANYTHING if where == program}
    assert set(flags_of(program)) == set(rows) | allowed
    for name, command in zip(names, commands, strict=True):
        outcome = run(program, *command, ok=False)
        message = f"{command}: {outcome}"
        assert outcome.returncode == 1, message
        assert "Traceback" not in outcome.stderr, message
        value = "".join(command[-1:]).partition("=")[2] if name in VALUES else ""
        value = "/dev/null" if value.startswith("/dev/null") else value
        assert (value or f"--{name}") in outcome.stderr, message
        assert "test accuracy" not in outcome.stdout, message
        assert outcome.stderr.splitlines()[-1].startswith("error: "), message


# Flags with any text but a path. The path of --model is expanded when it is read.
TEXTS = {"address", "against", "coordinator", "dataset", "init_preset", "model", "vary"}


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_path_flag_expands_the_home_folder(program):
    parsers = flags_of(program)
    assert {n for n, parser in parsers.items() if parser == "ArgumentParser"} <= TEXTS
    for name in parsers.keys() & {"data_dir", "run_dir", "init_from", "out", "image"}:
        assert parsers[name] == "_PathParser"


def test_paths_are_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    parse = _PathParser().parse
    assert [parse(path) for path in ("~", "~/a/b", "a~/~b")] == [
        *("/home/me", "/home/me/a/b", "a~/~b")
    ]
    with pytest.raises(ValueError, match="a path; give one"):
        parse("")
    with pytest.raises(ValueError, match="home directory"):
        parse("~no such user/a")
