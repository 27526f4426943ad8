"""Tests of flag files, and of the errors about what they contain."""

from pathlib import Path

import pytest
from absl import flags
from helpers.programs import run

from mnist_jax.cli.parsing import parse_flags
from mnist_jax.errors import InputError


def parse(*words: str) -> dict[str, object]:
    """Parses a command line of two flags; returns their values."""
    values = flags.FlagValues()
    flags.DEFINE_integer("epochs", 5, "", flag_values=values)
    flags.DEFINE_string("model", "mlp", "", flag_values=values)
    parse_flags(["program", *words], values)
    return {name: values[name].value for name in ("epochs", "model")}


def test_the_last_flag_counts_also_of_nested_files(tmp_path: Path):
    inner, outer = tmp_path / "inner.cfg", tmp_path / "outer.cfg"
    inner.write_text("# a comment\n\n--epochs=2\n")
    # As saved by an editor of Windows.
    outer.write_bytes(f"\ufeff--model=cnn\r\n--flagfile={inner}\r\n".encode())
    assert parse(f"--flagfile={outer}") == {"epochs": 2, "model": "cnn"}
    assert parse("--epochs=1", "--flagfile", str(outer))["epochs"] == 2
    assert parse(f"--flagfile={outer}", "--epochs=1")["epochs"] == 1


@pytest.mark.parametrize(
    "content, message",
    [
        ("--flagfile={}", "--flagfile={} includes itself"),
        ("--epochs=x", "^{}: flag --epochs=x: invalid literal"),
        ("--epoch=1", "^{}: Unknown command line flag 'epoch'. Did you mean: epochs"),
        ("epochs=1", "^{}: epochs=1 is not a flag"),
        ("--epochs", "^{}: Missing value for flag --epochs"),
        ("--model=\udcff", "--flagfile={} is not UTF-8 text"),
    ],
)
def test_an_error_in_a_flag_file_names_the_file(content, message, tmp_path: Path):
    file = tmp_path / "flags.cfg"
    outer = tmp_path / "outer.cfg"
    file.write_text(content.format(file), errors="surrogateescape")
    outer.write_text(f"--flagfile={tmp_path}/../{tmp_path.name}/flags.cfg\n")
    for name in (file, outer):
        with pytest.raises(InputError, match=message.format(".*flags.cfg")):
            parse(f"--flagfile={name}")


def test_an_error_of_the_command_line_names_no_file(tmp_path: Path):
    (file := tmp_path / "flags.cfg").write_text("--epochs=3\n")
    with pytest.raises(InputError, match="^flag --epochs=x"):
        parse(f"--flagfile={file}", "--epochs=x")


def test_an_error_of_a_config_names_the_flag_file(tmp_path: Path):
    (file := tmp_path / "flags.cfg").write_text("--epochs=-1\n")
    for words, start in (
        ([], f"error: {file}: --epochs"),
        (["--epochs=0"], "error: --"),
    ):
        error = run("experiments.train", f"--flagfile={file}", *words, ok=False).stderr
        assert error.startswith(start)
