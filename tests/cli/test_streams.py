"""Tests that problems of standard output and error end no program."""

import subprocess
import sys

import pytest
from helpers.programs import ROOT

# Prints more than a pipe holds, then writes a file. Its first line says what
# `output_error` returned.
PROGRAM = """
import sys
from mnist_jax.cli.streams import output_error, protect_streams
protect_streams()
with open(sys.argv[1], "w") as file:
    for _ in range(20_000):
        print("\\xb1\\udcff", flush=True)
    print("progress", file=sys.stderr)
    print(output_error(), file=file)
"""


@pytest.mark.parametrize(
    "redirection, error, output",
    [
        ("", "None", "\\xb1\\udcff\n" * 20_000),
        (">&-", "None", ""),
        ("2>&-", "None", "\\xb1\\udcff\n" * 20_000),
        (">&- 2>&-", "None", ""),
        (">/dev/full", "[Errno 28] No space left on device", ""),
        ("2>/dev/full", "None", "\\xb1\\udcff\n" * 20_000),
        ("| head -1", "None", "\\xb1\\udcff\n"),
        ("2>&1 | head -1", "None", "\\xb1\\udcff\n"),
    ],
)
def test_a_stream_that_cannot_be_written_loses_nothing_else(
    tmp_path, redirection, error, output
):
    process = subprocess.run(
        f'"$PYTHON" -c "$PROGRAM" "$FILE" {redirection}',
        shell=True,
        env={
            "PYTHON": sys.executable,
            "PYTHONIOENCODING": "ascii",
            "PYTHONPATH": str(ROOT),
            "PROGRAM": PROGRAM,
            "FILE": str(tmp_path / "file"),
            "PATH": "/bin:/usr/bin",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode == 0 and "Traceback" not in process.stderr
    assert process.stdout.removesuffix("progress\n") == output
    assert (tmp_path / "file").read_text() == f"{error}\n"
