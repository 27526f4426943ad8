"""Tests of the installed wheel, in an environment without the checkout."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from helpers.programs import ROOT

pytestmark = pytest.mark.programs

TRAIN = """
import mnist_jax
mnist_jax.setup(compile_cache=False)
config = mnist_jax.TrainConfig(dataset="digits", hidden=(16,), epochs=1)
[run] = mnist_jax.train(config, run_dir="run")
print(mnist_jax.__file__, run.record.environment.commit)
"""


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


def test_the_wheel_is_the_library(environment: Path, tmp_path):
    [packages] = (environment / "lib").glob("python*/site-packages")
    for path in (ROOT / "mnist_jax").rglob("*"):
        if path.suffix in (".py", ".html", ".js", ".typed"):
            assert (packages / path.relative_to(ROOT)).exists(), path
    assert not list(packages.glob("*experiments*")) + list(packages.glob("*bench*"))
    process = subprocess.run(
        [environment / "bin" / "python", "-c", TRAIN],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    file, commit = process.stdout.split()[-2:]
    assert Path(file).is_relative_to(packages)
    assert commit == "None" and (tmp_path / "run" / "record.json").exists()
