"""The README and the presets agree with the records; their names and commands exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.published.systems import PRESETS, SYSTEMS
from benchmarks.readme import (
    BLOCKS,
    DOCUMENTS,
    RESULTS,
    preset_with_figures,
    with_tables,
)
from mnist_jax.records.schema import read_jsonl

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_tables_are_those_of_the_records(path):
    assert with_tables(path.read_text()) == path.read_text()


def test_every_block_has_its_place():
    texts = [path.read_text() for path in DOCUMENTS]
    for name in BLOCKS:
        assert sum(text.count(f"<!-- {name} -->") for text in texts) == 1, name


@pytest.mark.parametrize("name", SYSTEMS)
def test_preset_figures_are_those_of_the_records(name):
    text = (PRESETS / f"{name}.cfg").read_text()
    assert preset_with_figures(name, text) == text


def test_records_are_of_real_mnist_and_name_their_machine():
    for path in RESULTS.glob("*.jsonl"):
        for record in read_jsonl(path):
            assert record["environment"]["device"], path
            assert record.get("dataset", "mnist") == "mnist", path


def test_every_named_file_exists():
    names = re.findall(r"`([\w/]+\.(?:py|cfg|md|jsonl))`", README)
    missing = [
        name
        for name in names
        if not any(
            (ROOT / folder / name).exists()
            for folder in ("", "mnist_jax", "benchmarks")
        )
    ]
    assert set(missing) <= {"metrics.jsonl", "compare.jsonl", "details.jsonl"}


def test_every_flag_in_a_command_is_a_flag_of_the_program():
    commands = re.findall(r"python -m ([\w.]+)((?: --[\w]+=?\S*)*)", README)
    assert len(commands) > 5
    for program in {program for program, _ in commands}:
        text = subprocess.run(
            [sys.executable, "-m", program, "--helpfull"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        ).stdout
        for _, flags in [command for command in commands if command[0] == program]:
            for flag in re.findall(r"--(\w+)", flags):
                assert f"--{flag}:" in text or f"--[no]{flag}:" in text, (program, flag)


def test_the_example_of_an_own_network_runs():
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(code, names)  # the README's own text
    names["test_linear"]()
