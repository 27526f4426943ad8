"""The one-way flow of imports, and that importing does nothing."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mnist_jax

FOLDER = Path(mnist_jax.__file__).parent
# Each module imports only modules that stand before it.
ORDER = [
    "errors",
    "files",
    "memory",
    "peak",
    "cache",
    "digits",
    "own_digits",
    "config",
    "flops",
    "idx",
    "download",
    "data",
    "winograd",
    "fast_conv",
    "fast_lstm",
    "layers",
    "models",
    "steps",
    "epochs",
    "compiling",
    "lowering",
    "records",
    "checkpoint",
    "prepare",
    "fit",
    "snapshots",
    "runs",
    "tensorboard",
    "predictions",
    "tables",
    "profiling",
    "summary",
    "plots",
    "report",
    "progress",
    "demo",
    "startup",
    "testing",
    "console",
]
KNOWS_FLAGS = {"config", "startup"}
KNOWS_TIME = {"compiling", "fit", "files", "download", "demo", "peak", "profiling"}
KNOWS_JIT = {"fast_conv", "epochs", "lowering", "prepare", "predictions", "testing"}
KNOWS_JIT |= {"peak"}


def imports_of(path: Path) -> set[str]:
    """Returns the dotted names that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
            names.add(str(node.module))
    return names


def test_every_module_has_its_place():
    assert sorted(ORDER) == sorted(
        path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__"
    )


@pytest.mark.parametrize("module", ORDER)
def test_imports_point_one_way(module):
    imported = imports_of(FOLDER / f"{module}.py")
    own = {name.split(".")[1] for name in imported if name.startswith("mnist_jax.")}
    assert own <= set(ORDER[: ORDER.index(module)])
    assert not {n for n in imported if n.split(".")[0] in ("experiments", "benchmarks")}
    if module not in KNOWS_FLAGS:
        assert "absl.flags" not in imported
    if module not in KNOWS_TIME:
        assert "time" not in imported
    if module not in KNOWS_JIT:
        assert "jax.jit(" not in (FOLDER / f"{module}.py").read_text()


def test_importing_touches_no_device_and_reads_no_flag():
    code = (
        "import sys, importlib\n"
        f"for name in {ORDER!r}: importlib.import_module('mnist_jax.' + name)\n"
        "import jax._src.xla_bridge as bridge\n"
        "from absl import flags\n"
        "assert not bridge.backends_are_initialized()\n"
        "assert not flags.FLAGS.is_parsed()\n"
        "assert not set(flags.FLAGS) & {'model', 'data_dir', 'run_dir'}\n"
        "heavy = {'tensorflow', 'tensorflow_datasets', 'torch', 'keras', 'sklearn'}\n"
        "heavy |= {'tensorboardX'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_training_starts_without_what_only_tables_and_pictures_need():
    code = (
        "import sys, experiments.train\n"
        "unneeded = {'pandas', 'matplotlib', 'PIL', 'jinja2'} & set(sys.modules)\n"
        "assert not unneeded, unneeded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=FOLDER.parent)


def test_the_matrix_tries_the_oldest_versions_allowed():
    root = Path(__file__).parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    oldest = (root / "constraints" / "python3.11.txt").read_text().splitlines()
    for name in ("jax", "flax", "optax"):
        [wanted] = [d for d in project["dependencies"] if re.match(rf"{name}\b", d)]
        assert wanted.split(",")[0].replace(">=", "==") in oldest
    newest = (root / "constraints" / "python3.12.txt").read_text()
    assert re.search(r"^jax==0\.12\.", newest, re.MULTILINE)  # below 0.13


# What makes a program out of the content of a file.
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
UNSAFE_LOADS = {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.load"}
PROGRAM_FILES = [
    path
    for folder in (FOLDER, FOLDER.parent / "experiments", FOLDER.parent / "benchmarks")
    for path in sorted(folder.glob("*.py"))
]


def unsafe_parts(source: str) -> list[str]:
    """Returns what in a source would run, or unpickle, what a file holds."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names.append(getattr(node, "module", None) or "")
            found += [n for n in names if n.split(".")[0] in UNSAFE_MODULES]
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        if name in UNSAFE_CALLS | UNSAFE_LOADS:
            found.append(name)
        if name in ("np.load", "numpy.load", "read_array", "np.lib.format.read_array"):
            allowed = keywords.get("allow_pickle")
            if not (isinstance(allowed, ast.Constant) and allowed.value is False):
                found.append(f"{name} without allow_pickle=False")
    return found


@pytest.mark.parametrize("path", PROGRAM_FILES, ids=lambda path: path.stem)
def test_no_file_is_run_or_unpickled(path):
    assert unsafe_parts(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib.memory",
        "eval(open('x').read())",
        "exec(text)",
        "yaml.load(file)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
    ],
)
def test_unsafe_sources_are_found(source):
    assert unsafe_parts(source)
    assert unsafe_parts("np.load(path, allow_pickle=False); json.loads(text)") == []
