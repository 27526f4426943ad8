"""End-to-end tests of the command lines on the digits dataset, and of their errors."""

import json
import re
import shutil
from pathlib import Path

import pytest
from helpers.processes import finish, run_python, start_python
from helpers.programs import DIGITS, run
from helpers.small_sets import files_below

from mnist_jax.records.environment import available_cores
from mnist_jax.testing import CHECKS

SMALL = {
    "mlp": (),
    "lstm": ("--lstm_units=8,8",),
    "cnn": ("--conv=4:pool2,8:same:s2",),
}


def test_train_writes_config_metrics_record_and_parameters(run_dir: Path):
    assert sorted(path.name for path in run_dir.iterdir()) == [
        ".lock",
        "config.json",
        "metrics.jsonl",
        "params.msgpack",
        "record.json",
    ]
    config = json.loads((run_dir / "config.json").read_text())
    assert config["model"] == "mlp" and config["hidden"] == [16]
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    record = json.loads((run_dir / "record.json").read_text())
    assert record["config"] == config
    assert record["dataset"] == "digits" and record["test_images"] == 360
    assert 0.2 < record["test_accuracy"] <= 1.0
    assert record["parameters"] == 784 * 16 + 16 + 160 + 10


def test_compiled_programs_are_cached_unless_disabled(tmp_path):
    def compiled(flag: str) -> bool:
        folder = {"MNIST_JAX_CACHE_DIR": str(tmp_path / "cache")}
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        run("experiments.train", *DIGITS, flag, f"--run_dir={out}", **folder)
        return not json.loads((out / "record.json").read_text())["compile_cached"]

    assert compiled("--compile_cache=off")
    cache = tmp_path / "cache" / "compiled"
    assert not cache.exists()
    assert compiled("--compile_cache=on")
    assert cache.exists()
    assert not compiled("--compile_cache=on")


@pytest.mark.parametrize("model", ["lstm", "cnn"])
def test_train_runs_every_model(model, tmp_path):
    flags = *DIGITS, f"--model={model}", *SMALL[model], "--dropout=0.1"
    process = run("experiments.train", *flags, f"--run_dir={tmp_path}", XLA_FLAGS="")
    rows = [line for line in process.stdout.splitlines() if line.startswith(" ")]
    assert [row.split()[0] for row in rows if "/2" in row] == ["1/2", "2/2"]
    assert "test accuracy" in process.stdout
    run("experiments.predict", f"--run_dir={tmp_path}")


def test_train_runs_with_jax_enable_x64(tmp_path):
    flags = *DIGITS, *SMALL["cnn"], "--model=cnn", "--dropout=0.1"
    x64 = dict(JAX_ENABLE_X64="1")
    run("experiments.train", *flags, f"--run_dir={tmp_path}", **x64)
    run("experiments.predict", f"--run_dir={tmp_path}", **x64)
    run("experiments.summary", *flags, **x64)


def test_a_run_directory_is_not_overwritten_by_default(run_dir: Path):
    before = {path: path.read_bytes() for path in files_below(run_dir)}
    command = ("experiments.train", *DIGITS, f"--run_dir={run_dir}")
    assert "already holds a run" in run(*command, ok=False).stderr
    wrong = "--overwrite", "--validation_fraction=0.9999"
    assert "--validation_fraction" in run(*command, *wrong, ok=False).stderr
    assert before == {path: path.read_bytes() for path in files_below(run_dir)}


def test_compare_adds_rows_and_writes_all_formats(tmp_path):
    command = ("benchmarks.compare", *DIGITS, f"--out={tmp_path}")
    run(*command, "--models=mlp", "--seeds=2")
    report = ("--targets=0.1,0.999", "--report")
    process = run(*command, "--models=lstm", "--lstm_units=8", *report)
    assert len((tmp_path / "compare.jsonl").read_text().splitlines()) == 3
    markdown = (tmp_path / "compare.md").read_text()
    for line in markdown.splitlines():  # but the terminal has the main columns
        assert line in process.stdout or line.startswith("|")
    assert "(n=2)" in markdown and "lstm" in markdown and "DIGITS" in markdown
    assert " s to 0.1 |" in markdown and " s to 0.999 |" in markdown
    assert len((tmp_path / "compare.csv").read_text().splitlines()) == 3
    page = (tmp_path / "report.html").read_text()
    assert "s to 0.999</button>" in page
    assert "of 720 wrong" in page and "NOT MNIST" not in page  # --dataset=digits
    shutil.rmtree(tmp_path / "runs")
    error = run("benchmarks.report", f"--out={tmp_path}", ok=False).stderr
    assert "holds no usable run" in error


@pytest.mark.faults
def test_eight_programs_share_a_cold_cache_and_one_table(tmp_path, record_property):
    out = tmp_path / "results" / "of eight"  # neither folder exists yet
    command = "-m", "benchmarks.compare", *DIGITS, "--models=mlp", f"--out={out}"
    cache = str(tmp_path / "cache")
    processes = [
        start_python(*command, f"--seed={seed}", MNIST_JAX_CACHE_DIR=cache)
        for seed in range(8)
    ]
    texts = list(map(finish, processes))
    assert [finished.returncode for finished in texts] == [0] * 8, texts
    lines = (out / "compare.jsonl").read_text().splitlines()
    seeds = [json.loads(line)["config"]["seed"] for line in lines]
    assert sorted(seeds) == list(range(8))
    record_property("concurrent writers: programs on one cache and table", len(texts))


def test_the_fallback_from_mnist_is_announced_everywhere(tmp_path):
    # A proxy that refuses connections simulates an unreachable host.
    blocked = {name: "http://127.0.0.1:9" for name in ("https_proxy", "http_proxy")}
    blocked |= {name.upper(): value for name, value in blocked.items()}
    blocked["MNIST_JAX_CACHE_DIR"] = str(tmp_path / "cache")
    command = "benchmarks.compare", "--models=mlp", *DIGITS[1:], f"--out={tmp_path}"
    process = run(*command, **blocked)
    assert "NOT MNIST" in process.stderr
    assert process.stdout.count("NOT MNIST") >= 2  # title, provenance
    record = json.loads((tmp_path / "compare.jsonl").read_text())
    assert record["dataset"] == "digits" and "NOT MNIST" in record["dataset_note"]
    process = run("experiments.train", "--dataset=mnist", ok=False, **blocked)
    assert "--data_dir" in process.stderr and "MNIST_JAX_DATA_DIR" in process.stderr


def test_throughput_reports_step_epoch_and_evaluation(tmp_path):
    process = run(
        *("benchmarks.throughput", "--models=mlp", "--hidden=16"),
        *("--batch_sizes=16", "--images=64", "--repeats=2", "--starts=0"),
        *("--precisions=float32,bfloat16", "--seeds=1,2", f"--out={tmp_path}"),
    )
    assert "train step images/s" in process.stdout
    assert "measuring mlp, batch 16 (4 of 4) ..." in process.stdout
    assert process.stdout.count("\nround 2 of 2\n") == 4
    lines = (tmp_path / "throughput.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["seeds"] for record in records] == [1, 2] * 2
    assert {len(record["epoch"]) for record in records} == {2}


@pytest.mark.programs
def test_throughput_measures_startup_with_a_cold_and_a_warm_cache(tmp_path):
    devices = 2 * available_cores()  # more than JAX has by default
    flags = (
        f"--cpu_devices={devices}",
        f"--batch_sizes={devices}",
        f"--images={4 * devices}",
    )
    network = "--models=mlp", "--hidden=16"
    run("benchmarks.throughput", *network, *flags, "--repeats=1", f"--out={tmp_path}")
    lines = (tmp_path / "throughput.jsonl").read_text().splitlines()
    starts = json.loads(lines[-1])["starts"]
    assert [start["cached"] for start in starts] == [False, True]
    assert all(start["peak MB"] > 100 for start in starts)


@pytest.mark.parametrize("program", ["experiments.train", "benchmarks.compare"])
def test_help_is_readable_and_unknown_flags_are_errors(program):
    process = run(program, "--help")
    assert f"python -m {program}" in process.stdout
    assert "--data_dir" in process.stdout and "--platform" in process.stdout
    error = run(program, "--platfrm=cpu", ok=False).stderr
    assert "error: Unknown command line flag 'platfrm'. Did you mean: platform" in error


@pytest.mark.parametrize(
    "argument, message",
    [
        (f"--run_dir={__file__}/run", "Not a directory: .*test_programs.py/run"),
        # Without it, a flag of absl that ends a program before it has checked the rest.
        ("--only_check_args", "Unknown .*'only_check_args'"),
        ("--platform=tpu", "--platform=tpu"),
        ("--noquiet=1", "--noquiet=1 does not take"),
    ],
)
def test_bad_input_prints_one_sentence_without_traceback(argument, message):
    process = run("experiments.train", "--dataset=digits", argument, ok=False)
    assert re.search(f"^error: .*{message}", process.stderr, re.MULTILINE)
    assert "epoch" not in process.stdout  # nothing was trained


def test_summary_data_and_plot(run_dir: Path, tmp_path):
    flags = "--freeze=Dense_0", "--preset=ml10_cnn"
    # It needs no device but the CPU.
    stdout = run("experiments.summary", *flags, JAX_PLATFORMS="tpu").stdout
    assert "total 93,322, trainable 56,394, frozen 36,928 parameters" in stdout
    picture = tmp_path / "digits.png"
    data = ("experiments.data", "--dataset=digits", f"--picture={picture}")
    assert "(360, 28, 28)" in run(*data).stdout and picture.stat().st_size > 5_000
    for path in ("record.json", "config.json", "params.msgpack"):
        (tmp_path / path).write_bytes((run_dir / path).read_bytes())
    stdout = run("experiments.plot", f"--run_dir={tmp_path}").stdout
    assert "val_accuracy" in stdout and "Most confidently misclassified" in stdout
    for name in ("loss", "accuracy", "confusion", "worst"):
        assert (tmp_path / f"{name}.svg").exists() and (
            tmp_path / f"{name}.png"
        ).exists()


def test_check_prints_a_row_for_each_check(networks):
    process = run("experiments.check", f"--model={networks}:NnxMixed", ok=False)
    rows = [line.split(" s  ") for line in process.stdout.splitlines()]
    assert [row.split()[0] for row, _ in rows] == [*CHECKS]
    failed = {row.split()[0]: text for row, text in rows if text != "passed"}
    assert "FAILED: in evaluation the logits" in failed["batch"]
    assert process.stderr == f"error: {networks}:NnxMixed fails {', '.join(failed)}\n"


@pytest.mark.programs
@pytest.mark.parametrize("model", ["lstm", "cnn"])
def test_another_process_trains_the_same_bits_on_two_devices(model, tmp_path):
    digests = []
    for number in range(2):
        process = run_python(
            *("-m", "experiments.train", "--dataset=digits", "--epochs=1"),
            *(f"--model={model}", *SMALL[model], "--cpu_devices=2"),
            f"--run_dir={tmp_path / str(number)}",
            XLA_FLAGS="",
        )
        assert "2 cpu devices" in process.stdout
        record = json.loads((tmp_path / str(number) / "record.json").read_text())
        digests.append(record["params_sha256"])
    assert digests[0] == digests[1]
