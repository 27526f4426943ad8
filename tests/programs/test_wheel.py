"""Tests of the installed wheel, in an environment without the checkout."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from helpers.processes import ROOT

TRAIN = """
import mnist_jax
mnist_jax.setup(compile_cache=False)
config = mnist_jax.TrainConfig(dataset="digits", hidden=(16,), epochs=1)
[run] = mnist_jax.train(config, run_dir="run")
print(mnist_jax.__file__, run.record.environment.commit)
"""


@pytest.mark.programs
def test_the_wheel_is_the_library(tmp_path: Path):
    source = tmp_path / "source"  # a copy, because a build writes into its source tree
    for name in ("mnist_jax", "experiments", "benchmarks"):
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={tmp_path}"]
    subprocess.run([*pip, *build, str(source)], check=True, cwd=tmp_path)
    shutil.rmtree(source)
    # With the wheel and the dependencies of the current environment.
    new = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", new], check=True)
    [wheel] = tmp_path.glob("*.whl")
    install = [f"--python={new / 'bin' / 'python'}", "install", "--no-deps", str(wheel)]
    subprocess.run([*pip, *install], check=True, cwd=tmp_path)
    # Python ignores .pth files in a directory that was itself added by a .pth file: so
    # the one that points to the checkout has no effect.
    [packages] = (new / "lib").glob("python*/site-packages")
    here = sysconfig.get_path("purelib")
    (packages / "dependencies.pth").write_text(f"{here}\n")
    for path in (ROOT / "mnist_jax").rglob("*"):
        if path.suffix in (".py", ".html", ".js", ".typed"):
            assert (packages / path.relative_to(ROOT)).exists(), path
    assert not list(packages.glob("*experiments*")) + list(packages.glob("*bench*"))
    process = subprocess.run(
        [new / "bin" / "python", "-c", TRAIN],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=300,
    )
    file, commit = process.stdout.split()[-2:]
    assert Path(file).is_relative_to(packages)
    assert commit == "None" and (tmp_path / "run" / "record.json").exists()
