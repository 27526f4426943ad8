"""Reads the documents: their code blocks, the commands in them, their prose."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
)
_FENCED = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PROGRAM = r"python -m ((?:experiments|benchmarks)[\w.]*)"


class Code(NamedTuple):
    """A fenced block."""

    language: str  # empty if the fence names none
    text: str


def code_blocks(text: str) -> list[Code]:
    """Returns the fenced blocks of a page in order."""
    return [Code(*groups) for groups in _FENCED.findall(text)]


def commands(block: Code) -> list[list[str]]:
    """Returns the words after `python -m` of each such command of a block."""
    lines = block.text.replace("\\\n", " ").splitlines()
    found = [re.match(rf"(?:\$ )?(?:[\w./]*/)?{_PROGRAM}.*", line) for line in lines]
    return [shlex.split(m[0], comments=True) for m in found if m]


def prose(text: str) -> str:
    """Returns a page without its fenced blocks."""
    return _FENCED.sub("", text)


def inline_code(text: str) -> list[str]:
    """Returns the code spans of a page's prose."""
    return re.findall(r"`([^`]+)`", prose(text))


def without_blocks(text: str) -> str:
    """Returns a page without fenced blocks and generated tables."""
    return re.sub(
        r"<!-- ([^/].*?) -->.*?<!-- /\1 -->", "", prose(text), flags=re.DOTALL
    )


def programs(text: str) -> list[tuple[str, list[str]]]:
    """Returns each program that a page runs, with the names of the flags given."""
    found = [words for block in code_blocks(text) for words in commands(block)]
    for span in inline_code(text):
        if match := re.match(rf"{_PROGRAM}.*", " ".join(span.split())):
            found.append(match[0].split())
    return [
        (
            words[words.index("-m") + 1],
            [w[2:].partition("=")[0] for w in words if w.startswith("--")],
        )
        for words in found
    ]
