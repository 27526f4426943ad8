"""Module structure: imports point one way and have no side effects."""

import ast
import re
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from helpers.processes import ROOT, run_python
from packaging.requirements import Requirement

FOLDER = ROOT / "mnist_jax"
# A file may import from its own level and from the levels before it.
ORDER = ["errors", "config", "records", "data", "models", "training"]
# The levels above them, also in order.
ORDER += ["reporting", "profiling", "demo", "export", "testing", "api"]
ORDER += ["pytest_plugin", "cli"]
MODULES = sorted(
    path
    for path in FOLDER.rglob("*.py")
    if path.parent != FOLDER or path.stem[0] != "_"
)
PROGRAMS = [
    path
    for folder in ("experiments", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
# What only some files and folders may do: a pattern of the code, and where it may be.
ONLY_IN = {
    "read flags": (r"absl import .*\bflags\b|absl\.flags", {"cli"}),
    "read a clock": (
        r"^import time$|from time import",
        {
            "training/distributed",  # which waits for threads
            *("training/fit", "training/jax_setup", "profiling"),
        },
    ),
    # The CPU implementations prevent fusion with a call that is not inlined.
    "jit": (
        r"\bjax\.jit\b",
        {"training/epochs", "models/conv_cpu", "profiling", "testing"},
    ),
    "donate": (r"donate_arg", {"training/epochs"}),
    "shard over a mesh": (r"shard_map", {"training/epochs", "profiling"}),
    # ruff finds other code that executes the contents of a file.
    "unpickle arrays": (r"allow_pickle(?!=False)|torch\.load", set()),
}


def name_of(path: Path) -> str:
    """Returns the path of a module within the package, such as `training/fit`."""
    return path.relative_to(FOLDER).with_suffix("").as_posix()


def imports_of(path: Path) -> set[str]:
    """Returns the dotted names that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join(filter(None, [*above, node.module]))
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def folder_of(module: str) -> str:
    return module.split("/")[0].split(".")[0]


def test_imports_point_one_way():
    assert {folder_of(name_of(path)) for path in MODULES} == set(ORDER)
    for path in MODULES:
        name, imported = name_of(path), imports_of(path)
        roots = {module.split(".")[0] for module in imported}
        assert not roots & {"experiments", "benchmarks"}, name
        internal = {m.split(".", 1)[1] for m in imported if m.startswith("mnist_jax.")}
        allowed = ORDER[: ORDER.index(folder_of(name)) + 1]
        assert {folder_of(module) for module in internal} <= set(allowed), name


def test_only_some_files_read_flags_and_clocks_compile_and_shard():
    for path in MODULES:
        name, source = name_of(path), path.read_text()
        for what, (pattern, homes) in ONLY_IN.items():
            if re.search(pattern, source, re.MULTILINE):
                assert homes & {name, folder_of(name)}, f"{name} may not {what}"


def test_no_two_files_import_each_other():
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in (*MODULES, *PROGRAMS)
    }
    imported = {name: imports_of(path) & files.keys() for name, path in files.items()}
    assert "mnist_jax.config" in imported["mnist_jax.api"]
    TopologicalSorter(imported).prepare()  # raises CycleError


def test_files_are_at_most_400_lines_long():
    for path in (*MODULES, *PROGRAMS, *(ROOT / "tests").rglob("*.py")):
        if path.stem not in ("conv_cpu", "config"):
            assert len(path.read_text().splitlines()) <= 400, path


def test_importing_touches_no_device_and_reads_no_flag():
    names = ["mnist_jax." + name_of(path).replace("/", ".") for path in MODULES]
    names = [name.removesuffix(".__init__") for name in names]
    code = f"""
import importlib
for name in {names!r}: importlib.import_module(name)
import jax._src.xla_bridge as bridge
from absl import flags
assert not bridge.backends_are_initialized()
assert not flags.FLAGS.is_parsed()
assert not set(flags.FLAGS) & {{"model", "data_dir", "run_dir"}}
"""
    unneeded = {"tensorflow", "tensorflow_datasets", "torch", "keras", "sklearn"}
    unneeded |= {"tensorboardX", "trackio", "wandb"}
    unneeded |= {"onnx", "onnxruntime", "safetensors"}
    assert_imports_none_of(unneeded, code)


def assert_imports_none_of(unneeded: set[str], code: str) -> None:
    """Asserts that code, run in a new process, imports none of some packages."""
    found = f"import sys; found = {unneeded} & set(sys.modules)"
    run_python("-c", f"{code}\n{found}; assert not found, found")


@pytest.mark.parametrize(
    "module, unneeded",
    [
        ("mnist_jax", {"jax", "flax", "numpy", "pandas", "absl"}),
        ("benchmarks.peers.worker", {"jax"}),
        ("experiments.train", {"pandas", "matplotlib", "PIL", "jinja2"}),
    ],
)
def test_modules_do_not_import_what_they_do_not_need(module, unneeded):
    assert_imports_none_of(unneeded, f"import {module}")


def test_ci_tests_the_oldest_and_newest_versions_allowed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints" / "tests.txt").read_text().splitlines()
    pins = [line for line in lines if line[0] != "#"]
    (allowed, newest_allowed), (oldest, newest) = (
        [
            {
                one.name: one.specifier
                for one in map(Requirement, requirements)
                if not one.marker or one.marker.evaluate({"python_version": python})
            }
            for python in ("3.11", "3.12")
        ]
        for requirements in (project["dependencies"], pins)
    )
    for name in ("jax", "flax", "optax"):
        assert str(oldest[name]).replace("==", ">=") in map(str, allowed[name])
        assert str(newest[name]).removeprefix("==") in newest_allowed[name]
    assert str(newest["jax"]).startswith("==0.12.")  # below 0.13
    # It cannot be imported beside the jax of Python 3.12 and newer.
    assert "0.12.9" not in newest_allowed["flax"]
