"""The one-way flow of imports, and that importing does nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mnist_jax

FOLDER = Path(mnist_jax.__file__).parent
# Each module imports only modules that stand before it.
ORDER = [
    "errors",
    "files",
    "cache",
    "digits",
    "own_digits",
    "config",
    "flops",
    "idx",
    "download",
    "data",
    "fast_conv",
    "fast_lstm",
    "layers",
    "models",
    "steps",
    "epochs",
    "compiling",
    "records",
    "checkpoint",
    "fit",
    "runs",
    "tensorboard",
    "predictions",
    "tables",
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
KNOWS_TIME = {"compiling", "fit", "download", "demo"}
KNOWS_JIT = {"fast_conv", "epochs", "fit", "predictions", "testing"}


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
