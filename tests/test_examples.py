"""The quickstart, as a script and as an executed notebook, and the networks."""

import json
import re
from pathlib import Path

import pytest
from helpers.documents import code_blocks
from helpers.processes import ROOT, run_python

EXAMPLES = ROOT / "examples"
SCRIPT = EXAMPLES / "quickstart.py"
NOTEBOOK = SCRIPT.with_suffix(".ipynb").read_text()
CELLS = json.loads(NOTEBOOK)["cells"]


def test_the_notebook_is_the_script():
    cells = []
    for cell in SCRIPT.read_text().split("# %%")[1:]:
        head, _, text = cell.partition("\n")
        kind = "markdown" if "[markdown]" in head else "code"
        if kind == "markdown":
            text = re.sub("^# ?", "", text, flags=re.MULTILINE)
        cells.append((kind, text.strip()))
    found = [(cell["cell_type"], "".join(cell["source"]).strip()) for cell in CELLS]
    assert found == cells


def test_the_notebook_was_executed_on_mnist():
    outputs = [output for cell in CELLS for output in cell.get("outputs", [])]
    assert not [o for o in outputs if o["output_type"] == "error"]
    text = "".join("".join(o.get("text", [])) for o in outputs)
    assert "10,000 test images" in text and "test_accuracy" in text
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 2
    assert str(Path.home()) not in NOTEBOOK


@pytest.mark.programs
def test_the_quickstart_runs(tmp_path):
    code = SCRIPT.read_text()
    for whole, quick in (
        ('DATASET = "auto"', 'DATASET = "digits"'),
        ('model="cnn"', 'model="cnn", conv=("4:pool2", "4")'),
        ('("mlp", "lstm", "cnn")', '("mlp",)'),
    ):
        assert whole in code
        code = code.replace(whole, quick)
    process = run_python("-c", code, cwd=tmp_path)
    assert (tmp_path / "mistakes.png").stat().st_size > 5_000
    assert "steady_epoch_seconds" in process.stdout


def test_the_network_of_the_readme_is_the_example():
    blocks = code_blocks((ROOT / "README.md").read_text())
    [block] = [block.text for block in blocks if "class ResidualMLP" in block.text]
    assert block in (EXAMPLES / "residual_mlp.py").read_text()
