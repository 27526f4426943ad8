"""What is installed: the wheel alone, in an environment without the checkout."""

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
    """An environment with the wheel, and of this one only the dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # since a build leaves files in its tree
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
    # A folder that a .pth file names has its own .pth files left alone, among them the
    # one that leads to the checkout.
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


def test_every_folder_and_file_of_the_package_is_in_the_wheel(environment: Path):
    [installed] = (environment / "lib").glob("python*/site-packages/mnist_jax")
    for name in ("mnist_jax", "mnist_jax.experiments", "mnist_jax.benchmarks"):
        source = ROOT / name.split(".")[-1]
        there = installed.parent.joinpath(*name.split("."))
        for path in source.rglob("*"):
            if path.suffix in (".py", ".html", ".cfg", ".typed"):
                assert (there / path.relative_to(source)).exists(), path


def test_the_console_scripts_run(environment: Path, tmp_path):
    scripts = set(PROJECT["project"]["scripts"])
    run_dir, out = tmp_path / "run", tmp_path / "out"
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
    assert "predicted" in outputs["mnist-jax-predict"]
    assert "**DIGITS on" in outputs["mnist-jax-compare"]
    assert (out / "report.html").stat().st_size > 100_000
    assert "train epoch images/s" in outputs["mnist-jax-throughput"]


def test_installed_programs_know_no_checkout(environment: Path, tmp_path):
    run_script(environment, "mnist-jax-train", *DIGITS, f"--run_dir={tmp_path}")
    assert '"commit": null' in (tmp_path / "record.json").read_text()
