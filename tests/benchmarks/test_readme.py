"""The README and the presets agree with the records; their names and commands exist."""

import re
from pathlib import Path

import pytest
from helpers.programs import flags_of

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
    for block in BLOCKS.values():
        path = RESULTS / f"{block.results}.jsonl"
        records = read_jsonl(block.record, path)
        assert len(records) == len(path.read_text().splitlines()) > 0
        for record in records:
            assert record.environment.device, path
            assert getattr(record, "dataset", "mnist") == "mnist", path


def test_every_named_file_exists():
    names = re.findall(r"`([\w/]+\.(?:py|cfg|md|jsonl))`", README)
    folders = [ROOT / name for name in ("mnist_jax", "experiments", "benchmarks")]
    known = {path.name for folder in folders for path in folder.rglob("*.*")}
    missing = {name for name in names if name not in known}
    assert {name for name in missing if not (ROOT / name).exists()} <= {"metrics.jsonl"}


def test_every_flag_in_a_command_is_a_flag_of_the_program():
    commands = re.findall(r"python -m ([\w.]+)((?: --[\w]+=?\S*)*)", README)
    assert len(commands) > 5
    for program in {program for program, _ in commands}:
        known = flags_of(program)
        for _, flags in [command for command in commands if command[0] == program]:
            for flag in re.findall(r"--(\w+)", flags):
                assert flag in [*known, "flagfile"], (program, flag)


def test_the_example_of_an_own_network_runs():
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(code, names)  # the README's own text
    names["test_linear"]()
