"""Reads the documents: their code blocks, the commands in them, their prose."""

import re
import shlex
from typing import NamedTuple

from helpers.processes import ROOT

PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
)
_FENCED = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMAND = r"(?:\$ )?(?:[\w./]*/)?python -m ((?:experiments|benchmarks)[\w.]* ?.*)"


class Code(NamedTuple):
    """A fenced block."""

    language: str  # empty if the fence names none
    text: str


def code_blocks(text: str) -> list[Code]:
    """Returns the fenced blocks of a page in order."""
    return [Code(*groups) for groups in _FENCED.findall(text)]


def commands(text: str) -> list[list[str]]:
    """Returns the words after `python -m` of each such command in the blocks."""
    blocks = [block.text.replace("\\\n", " ") for block in code_blocks(text)]
    found = [re.match(_COMMAND, line) for line in "\n".join(blocks).splitlines()]
    return [shlex.split(match[1], comments=True) for match in found if match]


def prose(text: str) -> str:
    """Returns a page without its fenced blocks."""
    return _FENCED.sub("", text)


def inline_code(text: str) -> list[str]:
    """Returns the code spans of a page's prose, each in one line."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(text))]
