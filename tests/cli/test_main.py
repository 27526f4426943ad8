"""Tests of the start of a program."""

import sys
from types import SimpleNamespace

from mnist_jax.cli import main


def test_the_processes_of_a_job_may_be_in_different_folders(monkeypatch):
    names = "coordinator", "cluster", "num_processes", "process_id", "cluster_timeout"
    values = {**dict.fromkeys(names), "coordinator": "node0:12345"}
    given = SimpleNamespace(**values, flags_by_module_dict=dict)
    compared = []
    monkeypatch.setattr(main, "FLAGS", given)
    monkeypatch.setattr(main, "_keep_stdout", lambda keep: None)
    monkeypatch.setattr(main.cluster, "start", lambda *_: None)
    monkeypatch.setattr(main.cluster, "agree", lambda *given: compared.append(given))
    for program in ("/home/a/experiments/train.py", "/b/experiments/train.py"):
        monkeypatch.setattr(sys, "argv", [program])
        main.start_job()
    assert compared[0] == compared[1] and compared[0][1]["the program"] == "train.py"
