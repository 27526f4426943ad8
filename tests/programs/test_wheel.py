"""Tests of the installed wheel, in an environment without the checkout."""

import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from helpers.programs import DIGITS, ROOT

pytestmark = pytest.mark.slow

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """An environment with the wheel and the dependencies of the current one."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy, because a build writes into its source tree
    for name in ("mnist_jax", "experiments", "benchmarks"):
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}"]
    subprocess.run([*pip, *build, str(source)], check=True, cwd=folder)
    shutil.rmtree(source)
    new = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", new], check=True)
    [wheel] = folder.glob("*.whl")
    install = [f"--python={new / 'bin' / 'python'}", "install", "--no-deps", str(wheel)]
    subprocess.run([*pip, *install], check=True, cwd=folder)
    # Python ignores .pth files in a directory that was itself added by a .pth file: so
    # the one that points to the checkout has no effect.
    [packages] = (new / "lib").glob("python*/site-packages")
    here = sysconfig.get_path("purelib")
    (packages / "dependencies.pth").write_text(f"{here}\n")
    return new


def run_script(environment: Path, name: str, *arguments: str) -> str:
    process = subprocess.run(
        [environment / "bin" / name, *arguments],
        cwd=environment.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def test_the_wheel_has_every_file_of_the_package(environment: Path):
    [installed] = (environment / "lib").glob("python*/site-packages/mnist_jax")
    for name in ("mnist_jax", "mnist_jax.experiments", "mnist_jax.benchmarks"):
        source = ROOT / name.split(".")[-1]
        target = installed.parent.joinpath(*name.split("."))
        for path in source.rglob("*"):
            if path.suffix in (".py", ".html", ".cfg", ".typed"):
                assert (target / path.relative_to(source)).exists(), path


def test_the_console_scripts_run(environment: Path, tmp_path):
    scripts = set(PROJECT["project"]["scripts"])
    run_dir, out = tmp_path / "run", tmp_path / "out"
    help = run_script(environment, "mnist-jax-train", "--help")
    assert "\npython -m mnist_jax.experiments.train --model=cnn" in help
    module = "-m", "mnist_jax.experiments.summary"  # as of every program
    summary = run_script(environment, "python", *module, "--preset=ml10_cnn")
    assert "total 93,322" in summary
    outputs = {
        "mnist-jax-train": run_script(
            environment, "mnist-jax-train", *DIGITS, f"--run_dir={run_dir}"
        ),
        "mnist-jax-predict": run_script(
            environment, "mnist-jax-predict", f"--run_dir={run_dir}"
        ),
        "mnist-jax-compare": run_script(
            *(environment, "mnist-jax-compare", *DIGITS, "--models=mlp"),
            *("--report", f"--out={out}"),
        ),
        "mnist-jax-throughput": run_script(
            *(environment, "mnist-jax-throughput", "--models=mlp", "--images=64"),
            *("--batch_sizes=16", "--repeats=1", "--starts=0"),
        ),
    }
    assert set(outputs) == scripts
    assert "test accuracy" in outputs["mnist-jax-train"]
    assert '"commit": null' in (run_dir / "record.json").read_text()
    assert "predicted" in outputs["mnist-jax-predict"]
    assert "**DIGITS on" in outputs["mnist-jax-compare"]
    assert (out / "report.html").stat().st_size > 100_000
    assert "train epoch images/s" in outputs["mnist-jax-throughput"]
