"""Tests of the start of a program."""

import os
import subprocess
import sys
from types import SimpleNamespace

from helpers.programs import ROOT

from mnist_jax.cli import main

PROGRAM = """
from absl import flags
from mnist_jax.cli.main import run_program

def main():
    print(flags.FLAGS.count)

def run():
    flags.DEFINE_integer("count", 0, "a number")
    run_program(main)
"""
TWICE = """
import sys, program
for count in "12":
    sys.argv = ["program", f"--count={count}"]
    try:
        program.run()
    except SystemExit as exit:
        assert not exit.code
"""


def test_a_program_can_be_run_twice_in_a_process(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    output = subprocess.check_output(
        [sys.executable, "-c", TWICE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"},
        text=True,
    )
    assert output == "1\n2\n"


def test_a_variable_that_jax_refuses_on_import_is_one_sentence():
    process = subprocess.run(
        [sys.executable, "-m", "experiments.train"],
        cwd=ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    [line] = process.stderr.splitlines()
    assert line.startswith("error: ") and "; unset JAX_NUM_CPU_DEVICES or" in line


def test_the_processes_of_a_job_may_be_in_different_folders(monkeypatch):
    names = "coordinator", "cluster", "num_processes", "process_id", "cluster_timeout"
    values = {**dict.fromkeys(names), "coordinator": "node0:12345"}
    given = SimpleNamespace(**values, flags_by_module_dict=dict)
    compared = []
    monkeypatch.setattr(main, "FLAGS", given)
    monkeypatch.setattr(main, "keep_stdout", lambda keep: None)
    monkeypatch.setattr(main.cluster, "start", lambda *_: None)
    monkeypatch.setattr(main.cluster, "agree", lambda *given: compared.append(given))
    for program in ("/home/a/experiments/train.py", "/b/experiments/train.py"):
        monkeypatch.setattr(sys, "argv", [program])
        main.start_job()
    assert compared[0] == compared[1] and compared[0][1]["the program"] == "train.py"
