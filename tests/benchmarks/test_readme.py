"""The documents agree with the records and the code: tables, files, flags, links."""

import re
import tomllib
from pathlib import Path

import pytest
from helpers.documents import PAGES, commands, inline_code, prose
from helpers.processes import ROOT
from helpers.programs import PROGRAMS, flags_of

from benchmarks.readme import BLOCKS, DOCUMENTS, RESULTS, with_tables
from mnist_jax.records.schema import read_jsonl

FOLDERS = ("mnist_jax", "experiments", "benchmarks", "tests", "docs", "constraints")
# Files that the programs write, and examples of the user's own.
WRITTEN = {
    *("metrics.jsonl", "compare.jsonl", "compare.md", "throughput.jsonl"),
    *("published.jsonl", "published.md", "peers.jsonl", "report.html"),
    "data_dir.txt",
    *("sweep.md", "sweep.csv", "sweep.jsonl", "best.cfg", "journal.log"),
    *("digits.png", "first_digits.png", "my7.png", "seen.png"),
}
OTHER_FLAGS = {"logdir", "help", "flagfile", "head"}  # of TensorBoard, absl and Ray

every_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_tables_are_those_of_the_records(path):
    assert with_tables(path.read_text()) == path.read_text()


def test_every_block_is_on_one_page():
    texts = [path.read_text() for path in DOCUMENTS]
    for name in BLOCKS:
        assert sum(text.count(f"<!-- {name} -->") for text in texts) == 1, name
    for path in set(PAGES) - set(DOCUMENTS):
        assert "<!--" not in path.read_text(), path


def test_records_are_of_real_mnist_and_name_their_machine():
    for results, record_type, _ in BLOCKS.values():
        path = RESULTS / f"{results}.jsonl"
        records = read_jsonl(record_type, path)
        assert len(records) == len(path.read_text().splitlines()) > 0
        for record in records:
            assert record.environment.device, path
            assert getattr(record, "dataset", "mnist") == "mnist", path


@every_page
def test_every_named_file_exists(path):
    files = [file for name in FOLDERS for file in (ROOT / name).rglob("*")]
    files += ROOT.glob("*")
    known = {file.name for file in files} | WRITTEN
    text = path.read_text()
    ending = r"\.(?:py|cfg|md|jsonl|toml|txt|html|png|yml|yaml|cff)"
    names = set(re.findall(rf"`([\w./-]+{ending})`", text))
    names |= set(re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w/-]*)`", text))
    missing = {name for name in names if not (ROOT / name).exists()}
    assert {name for name in missing if "/" in name or name not in known} == set()


@every_page
def test_every_flag_in_code_is_one_of_its_program(path):
    text, some = path.read_text(), set().union(*map(flags_of, PROGRAMS))
    spans = [code.removeprefix("python -m ").split(" ") for code in inline_code(text)]
    for program, *words in (*commands(text), *spans):
        known = flags_of(program).keys() if program in PROGRAMS else some
        for flag in re.findall(r"(?<![\w-])--(\w+)", " ".join([program, *words])):
            assert flag in OTHER_FLAGS | known or flag.startswith("xla_"), flag


def anchors(path: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(path.read_text()), re.MULTILINE)
    found = [re.sub("[^a-z0-9_ -]", "", h.lower()).replace(" ", "-") for h in headings]
    assert len(set(found)) == len(found), f"{path} has two headings of one name"
    return set(found)


@every_page
def test_every_link_leads_to_a_file_and_a_heading(path):
    text = re.sub(r"`[^`]*`", "", prose(path.read_text()))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        linked = path.parent / file if file else path
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@every_page
def test_no_path_of_a_local_machine(path):
    pattern = r"(?<![\w.:/])/(?:home|root|Users|work|tmp|mnt)/\S*"
    assert re.findall(pattern, path.read_text()) == []


@every_page
def test_lines_and_tables_fit_a_screen(path):
    text = prose(path.read_text())
    if path.name != "README.md":  # generated tables are as wide as their records need
        text = re.sub(r"<!-- (\w+) -->.*?<!-- /\1 -->", "", text, flags=re.DOTALL)
    for line in text.splitlines():
        assert len(line) <= (110 if line.startswith("|") else 120), line


def test_the_citation_has_the_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
