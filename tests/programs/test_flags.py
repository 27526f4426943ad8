"""Tests that programs refuse invalid flags; a new flag needs a line here.

Flags of `TrainConfig` have their lines in `tests/test_config.py`.
"""

import dataclasses
from pathlib import Path

import pytest
from helpers import programs
from helpers.programs import flags_of, refusals

from mnist_jax.config import TrainConfig

DATA_DIR = "--dataset=mnist --data_dir=/nonexistent"
PICTURE = "--picture=/nonexistent/digits.png"
OUT = "--out=/dev/null/results"
CUSTOM_ARGS = "--models=examples/mixer.py:Mixer --model_args=width"
# By program: arguments that precede each invalid line, and the lines, whose last word
# has the flag. RUN is a finished run. A flag that programs define and check by the same
# function has lines in one of them.
PROGRAMS: dict[str, tuple[str, list[str]]] = {
    "experiments.train": (
        "--dataset=digits",
        [
            *("--hidden=0", "--freeze=Dense_9", "--train_size=99999", DATA_DIR),
            *("--validation_fraction=0.9999", "--batch_size=99999"),
            *("--compile_cache=maybe", "--platform=fpga", "--quiet=maybe"),
            *("--run_dir=/dev/null/run", "--run_dir=RUN", "--preset=av_rnn"),
            "--preset=ml10_mlp",  # which starts with the parameters of another run
            *("--init_from=/nonexistent", "--overwrite=maybe", "--overwrite"),
            *("--coordinator=node0", "--coordinator=node0:12345"),
            *("--num_processes=0", "--num_processes=2", "--process_id=-1"),
            *("--process_id=0", "--cluster=slurm", "--cluster=auto"),
            *("--cluster_timeout=0", "--seeds=0", "--seed=4294967290 --seeds=7"),
            *("--track=mlflow", "--track=tensorboard"),
            *("--checkpoint_every=-1", "--checkpoint_every=1"),
            *("--resume=maybe", "--resume", "--resume --run_dir=RUN"),
            *("--profile=maybe", "--profile"),
        ],
    ),
    "experiments.predict": (
        "--run_dir=RUN",
        [
            *("--run_dir=/nonexistent", "--image=/nonexistent.png", PICTURE),
            *("--index=360", "--index=-1", "--index=x"),
        ],
    ),
    "experiments.demo": (
        "--run_dir=RUN",
        ["--run_dir=/nonexistent", "--open=maybe", OUT],
    ),
    "experiments.export": (
        "--run_dir=RUN --format=stablehlo --out=/tmp/new",
        ["--run_dir=/nonexistent", "--format=pickle", "--format=", OUT, "--out=/tmp"],
    ),
    "experiments.plot": ("", ["--run_dir=/nonexistent"]),
    "experiments.summary": (
        "",
        ["--dataset=idx --data_dir=/nonexistent", "--freeze=Dense_9"],
    ),
    "experiments.check": (
        "",
        ["--model=/nonexistent.py:Net", "--dataset=idx --data_dir=/nonexistent"],
    ),
    "experiments.data": ("--dataset=digits", ["--train_size=99999", PICTURE]),
    "benchmarks.compare": (
        "--dataset=digits --out=OUT",
        [
            *("--hidden=0", CUSTOM_ARGS, "--report=maybe", OUT, "--against=gru"),
            *("--models=vit", "--models=", "--precisions=float16", "--precisions="),
            *(f"--targets={text}" for text in ("0", "1", "nan", "98")),
            *(f"--validation={name} --targets=0.9" for name in ("none", "test")),
            "--seed=4294967295 --seeds=2",
        ],
    ),
    "benchmarks.sweep": (
        "--dataset=digits --out=OUT",
        [
            *("--vary=colour=1", "--vary=seed=1,2", "--vary=dataset=digits"),
            *("--vary=learning_rate=", "--vary=learning_rate=0", "--vary=conv=8"),
            *("--vary=optimizer=lion", "--vary=model=cnn", "--vary=momentum=0.9"),
            *("--vary=batch_size=99999", "--vary=epochs=1 --vary=epochs=2"),
            "--vary=learning_rate=log(0,1)",
            "--vary=learning_rate=log(1e-4,1e-2)",
            *("--vary=validation=none", "--samples=-1", "--search=grid"),
            *("--search=tpe", "--search_seed=-1", "--prune=maybe"),
            *("--prune --patience=2 --seeds=2", "--min_epochs=0", "--min_epochs=2"),
            *("--reduction=1", "--engine=slurm", "--engine=ray --workers=2"),
            *("--workers=0", "--address=auto", "--cpus_per_trial=0"),
            "--gpus_per_trial=-1",
        ],
    ),
    "benchmarks.throughput": (
        "--images=64 --repeats=1 --batch_sizes=16",
        [
            *("--hidden=0", CUSTOM_ARGS, OUT, "--seeds=0", "--batch_sizes=0"),
            *("--images=0", "--images=1000001", "--repeats=0", "--starts=-1"),
        ],
    ),
    "benchmarks.speedrun": (
        "--target=0.5 --out=OUT",
        [
            *("--target=1", "--target=x", "--target=0.9999", "--recipe=nothing"),
            *("--against=nothing", "--dataset=cifar", "--model=vit", "--seeds=1"),
            *("--peers=maybe", "--recipe=cnn_99 --data_dir=/nonexistent", OUT),
            *("--recipe=cnn_99 --dataset=mnist", "--recipe=cnn_99 --model=cnn"),
        ],
    ),
    "benchmarks.regress": (
        "--dataset=digits --rounds=2",
        [
            *("--against=no-such-commit", "--rounds=1", "--batch_size=0", DATA_DIR),
            *("--out=/tmp", "--dataset=cifar"),
        ],
    ),
    "benchmarks.report": ("", ["--out=/nonexistent", "--targets=0", "--targets=1"]),
    "benchmarks.published": (
        "--dataset=digits --out=OUT",
        ["--systems=av_rnn", OUT, "--dataset=cifar", DATA_DIR, "--epochs=0"],
    ),
    "benchmarks.peers": (
        "--dataset=digits --frameworks=ours --out=OUT",
        [
            *("--batches=0", "--batches=", "--frameworks=mxnet", "--rounds=0"),
            *("--steady_epochs=0", "--train_size=0", DATA_DIR, "--models=vit", OUT),
            "--dataset=cifar",
        ],
    ),
    "benchmarks.readme": ("", []),
}


def flag_of(line: str) -> str:
    """Returns the name of the last flag of a command line."""
    return line.split("--")[-1].partition("=")[0]


def test_every_flag_of_every_program_has_a_line():
    assert PROGRAMS.keys() == programs.PROGRAMS.keys()
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    tested = {flag_of(line) for _, lines in PROGRAMS.values() for line in lines}
    defined = {name for program in PROGRAMS for name in flags_of(program)}
    assert defined <= tested | fields


@pytest.mark.parametrize("program", PROGRAMS)
def test_invalid_flags_are_refused_by_name_or_value(program, run_dir: Path, tmp_path):
    before, lines = PROGRAMS[program]
    lines = [
        f"{before} {line}".replace("RUN", str(run_dir)).replace("OUT", str(tmp_path))
        for line in lines
    ]
    for line, message in zip(lines, refusals(program, lines), strict=True):
        value = line.rpartition("=")[2]
        for unusable in ("/dev/null", "/nonexistent"):
            value = unusable if value.startswith(unusable) else value
        named = f"--{flag_of(line)}" in message or (value and value in message)
        assert named and message != "accepted", f"{line}: {message}"


def test_every_path_flag_expands_the_home_folder():
    paths = {"data_dir", "run_dir", "init_from", "out", "image"}
    for program in PROGRAMS:
        parsers = flags_of(program)
        found = {parsers[name] for name in parsers.keys() & paths}
        assert found <= {"PathParser"}, program
