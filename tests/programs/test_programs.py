"""End-to-end tests of the command lines on the digits dataset, and of their errors."""

import contextlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.processes import ROOT, finish, run_python, start_python
from helpers.programs import DIGITS, run
from helpers.small_sets import files_below
from PIL import Image

from mnist_jax.data.datasets import load_dataset
from mnist_jax.data.published import SETS
from mnist_jax.records.environment import available_cores
from mnist_jax.testing import CHECKS

SMALL = {
    "lstm": ("--lstm_units=8,8",),
    "cnn": ("--conv=4:pool2,8:same:s2",),
}


def test_train_writes_config_metrics_record_and_parameters(run_dir: Path):
    names = {".lock", "config.json", "metrics.jsonl", "params.msgpack", "record.json"}
    assert {path.name for path in run_dir.iterdir()} == names
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


@pytest.mark.programs
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no commit to compare with")
def test_a_commit_is_timed_against_the_checkout(tmp_path: Path):
    out = tmp_path / "history.jsonl"
    process = run(
        "benchmarks.regress",
        *("--models=mlp", "--dataset=digits", "--rounds=2", f"--out={out}"),
        ok=None,  # at this size either commit may be slower
    )
    assert process.returncode in (0, 3) and "here/there" in process.stdout
    [record] = map(json.loads, out.read_text().splitlines())
    assert [len(seconds) for seconds in record["seconds"].values()] == [2, 2]
    assert len(record["against"]) == 40


@pytest.mark.parametrize(
    "model, environment",
    [("lstm", {}), ("cnn", {}), ("cnn", {"JAX_ENABLE_X64": "1"})],
)
def test_every_model_is_trained_and_used(model, environment, tmp_path):
    flags = *DIGITS, f"--model={model}", *SMALL[model], "--dropout=0.1"
    folder = f"--run_dir={tmp_path}"
    output = run("experiments.train", *flags, folder, **environment).stdout
    rows = [line for line in output.splitlines() if line.startswith(" ")]
    assert [row.split()[0] for row in rows if "/2" in row] == ["1/2", "2/2"]
    assert "test accuracy" in output
    run("experiments.predict", folder, **environment)
    run("experiments.summary", *flags, **environment)


def test_a_run_directory_is_not_overwritten_by_default(run_dir: Path):
    before = {path: path.read_bytes() for path in files_below(run_dir)}
    command = ("experiments.train", *DIGITS, f"--run_dir={run_dir}")
    assert "already holds a run" in run(*command, ok=False).stderr
    wrong = "--overwrite", "--validation_fraction=0.9999"
    assert "--validation_fraction" in run(*command, *wrong, ok=False).stderr
    assert "is finished" in run(*command, "--resume").stdout
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


@pytest.mark.faults
def test_eight_programs_share_a_cold_cache_and_one_table(tmp_path, record_property):
    out = tmp_path / "results" / "of eight"  # neither folder exists yet
    command = "-m", "benchmarks.compare", *DIGITS, "--models=mlp", f"--out={out}"
    cache = str(tmp_path / "cache")
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                start_python(*command, f"--seed={seed}", MNIST_JAX_CACHE_DIR=cache)
            )
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
    flags = f"--cpu_devices={devices}", f"--batch_sizes={devices}", "--repeats=1"
    network = "--models=mlp", "--hidden=16", f"--images={4 * devices}"
    run("benchmarks.throughput", *network, *flags, f"--out={tmp_path}")
    lines = (tmp_path / "throughput.jsonl").read_text().splitlines()
    starts = json.loads(lines[-1])["starts"]
    assert [start["cached"] for start in starts] == [False, True]
    assert all(start["peak MB"] > 100 for start in starts)


def test_help_lists_the_flags():
    printed = run("experiments.train", "--help").stdout
    assert "python -m experiments.train" in printed
    assert "--data_dir" in printed and "--platform" in printed


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--platfrm=cpu", "Unknown .*'platfrm'. Did you mean: platform"),
        # Without it, a flag of absl that ends a program before it has checked the rest.
        ("--only_check_args", "Unknown .*'only_check_args'"),
        (f"--run_dir={__file__}/run", "Not a directory: .*test_programs.py/run"),
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
    folder = shutil.copytree(run_dir, tmp_path / "run")
    stdout = run("experiments.plot", f"--run_dir={folder}").stdout
    assert "val_accuracy" in stdout and "Most confidently misclassified" in stdout
    for name in ("loss", "accuracy", "confusion", "worst"):
        for suffix in (".svg", ".png"):
            assert (folder / f"{name}{suffix}").exists()


def test_a_run_is_exported_to_each_format(run_dir: Path, tmp_path):
    beside = run_dir.resolve().with_name(f"{run_dir.name}.stablehlo")
    for name, file in (
        ("onnx", tmp_path / "new" / "a.onnx"),
        ("stablehlo", beside),
        ("safetensors", tmp_path / "model.safetensors"),
    ):
        out = [] if file == beside else [f"--out={file}"]
        words = f"--run_dir={run_dir}", f"--format={name}", *out
        lines = run("experiments.export", *words).stdout.splitlines()
        assert lines[0] == f"written: {file} ({file.stat().st_size:,} bytes)"
        assert lines[1].startswith("checked on 360 test images: probabilities differ")


def test_predict_prints_probabilities_and_draws_the_images(run_dir: Path, tmp_path):
    image, picture = tmp_path / "my one.png", tmp_path / "prediction.png"
    pixels = np.full((90, 60), 255, np.uint8)
    pixels[10:80, 25:35] = 0
    Image.fromarray(pixels).save(image)
    words = "--index=20,3", f"--image={image}", f"--picture={picture}"
    output = run("experiments.predict", f"--run_dir={run_dir}", *words).stdout
    header, *rows, user = output.splitlines()[:4]
    assert header.split()[-2:] == ["predicted", "truth"]
    for row, index in zip(rows, (20, 3), strict=True):
        name, *probabilities, predicted, truth = row.split()
        assert int(name) == index and 0 <= int(truth) <= 9
        values = [float(p) for p in probabilities]
        assert abs(sum(values) - 1) < 1e-3 and values[int(predicted)] == max(values)
    assert user.startswith(str(image)) and user.split()[-1] == "-"
    assert picture.stat().st_size > 2_000


def test_pictures_are_read_as_digits_or_as_they_are(run_dir: Path, tmp_path):
    """A network that was not trained on digits gets its own images unchanged."""
    own = tmp_path / "own.png"
    Image.fromarray(load_dataset("digits").test.images[3]).save(own)
    fashion = shutil.copytree(run_dir, tmp_path / "fashion")
    content = json.loads((fashion / "record.json").read_text())
    names = SETS["fashion_mnist"].class_names
    content |= dict(dataset="fashion_mnist", class_names=names)
    (fashion / "record.json").write_text(json.dumps(content))
    program = "experiments.predict"
    process = run(program, f"--run_dir={fashion}", f"--image={own}")
    row = run(program, f"--run_dir={run_dir}", "--index=3").stdout.splitlines()[1]
    assert process.stdout.splitlines()[1].split()[1:11] == row.split()[1:11]
    assert "read without cropping" in process.stdout
    assert "classes of fashion_mnist: p0 T-shirt/top, p1 Trouser" in process.stdout
    assert re.search("[A-Z][a-z]+", process.stdout.splitlines()[1].split()[-1])
    process = run(program, f"--run_dir={run_dir}", f"--image={own}")
    assert "read as digits" in process.stdout
    assert process.stdout.splitlines()[1].split()[1:11] != row.split()[1:11]


def test_check_prints_a_row_for_each_check(networks):
    model = f"{networks}:NotFinite"
    process = run("experiments.check", f"--model={model}", ok=False)
    rows = [line.split(" s  ") for line in process.stdout.splitlines()]
    assert [row.split()[0] for row, _ in rows] == [*CHECKS]
    failed = {row.split()[0]: text for row, text in rows if text != "passed"}
    assert "FAILED: logits in evaluation are not" in failed["logits"]
    assert process.stderr == f"error: {model} fails {', '.join(failed)}\n"


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
