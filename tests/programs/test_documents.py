"""Every command and every Python example of the documents runs, in the order given.

A page is read from its top in an empty folder, on the small digits: what one command
writes, a later one may use. The Python examples of a page share their names, and run
after its commands.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.documents import PAGES, code_blocks, commands
from helpers.processes import ROOT, run_python
from helpers.programs import PROGRAMS, flags_of, run
from PIL import Image, ImageDraw

# Programs whose commands are only parsed, and why.
PARSED_PROGRAMS = {
    "benchmarks.peers": "needs PyTorch, Keras, TensorFlow and an hour; see test_peers",
    "benchmarks.readme": "rewrites the documents in the checkout; see test_readme",
    "benchmarks.speedrun": "trains on all of MNIST many times; see test_speedrun",
    "benchmarks.regress": "trains with two commits for minutes; see test_programs",
}
# Flags with which they are only parsed: they need hardware, a cluster or the other
# processes of a job, or are in test_sweeps, test_profiling and test_distributed.
PARSED_FLAGS = re.compile(
    "--(platform=[gt]pu|engine=ray|workers=2|profile|coordinator=.*)"
)
# Appended to each command whose program has the flag, so that it takes seconds.
QUICK = {
    "batch_sizes": "32",
    "dataset": "digits",
    "epochs": "1",
    "images": "256",
    "models": "mlp",
    "open": "false",
    "platform": "cpu",
    "repeats": "1",
    "starts": "0",
    "systems": "av_dnn",
}
INSTEAD = {"samples": "2", "seeds": "2"}  # of the values that commands give
SMALL_CNN = "4:pool2", "4"  # stages that compile in half the time
# Lets `load_dataset` return the digits, whatever dataset it is asked for.
SMALL_DATA = """
import dataclasses
from unittest import mock
from mnist_jax.data import datasets
# By the name of MNIST, whose default is fewer epochs.
_digits = dataclasses.replace(datasets.load_dataset("digits"), name="mnist")
_few = _digits.train._replace(images=_digits.train.images[:256])
_few = _few._replace(labels=_digits.train.labels[:256])
_digits = dataclasses.replace(_digits, train=_few)
mock.patch.object(datasets, "_load_published", lambda *_: _digits).start()
"""
PATHS = ("run_dir", "init_from", "out", "picture", "image")


def run_command(words: list[str], folder: Path) -> None:
    """Runs a command with little work and its paths in a folder, or parses it only."""
    program, *arguments = words
    known = flags_of(program)
    quick = []
    for argument in arguments:
        name, _, value = argument.removeprefix("--").partition("=")
        if name in PATHS:
            argument = f"--{name}={folder / value}"
        elif name in INSTEAD:
            argument = f"--{name}={INSTEAD[name]}"
        quick.append(argument)
    quick += [
        f"--{name}={value}"
        for name, value in QUICK.items()
        if name in known and not (name == "models" and "examples/" in " ".join(words))
    ]
    if "--model=cnn" in arguments and not any("--conv" in word for word in arguments):
        quick.append(f"--conv={','.join(SMALL_CNN)}")
    given = any(word.startswith("--out=") for word in arguments)
    beside = program in ("experiments.demo", "experiments.export")  # the run
    if "out" in known and not given and not beside:
        quick.append(f"--out={folder / 'results'}")
    parsed = program in PARSED_PROGRAMS or any(map(PARSED_FLAGS.fullmatch, quick))
    run(program, *quick, mode="parse" if parsed else "run")


def draw_seven(path: Path) -> None:
    """Draws the picture that the user of the documents has."""
    image = Image.new("L", (300, 400), 235)
    line = [(80, 90), (220, 90), (130, 320)]
    ImageDraw.Draw(image).line(line, fill=30, width=22, joint="curve")
    image.save(path)


def write_own_data(folder: Path) -> None:
    """Writes the folder of pictures and the CSV file of the user of the documents."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "pictures" / name).mkdir(parents=True)
        for index in range(100):
            image = Image.fromarray(rng.integers(0, 256, (6, 8)).astype(np.uint8))
            image.save(folder / "pictures" / name / f"{index}.png")
    pixels = pd.DataFrame(rng.integers(0, 256, (400, 784)))
    pixels.assign(label=np.arange(400) // 200).to_csv(
        folder / "pixels.csv", index=False
    )


@pytest.mark.parametrize(
    "path",
    [PAGES[0], *(pytest.param(p, marks=pytest.mark.programs) for p in PAGES[1:])],
    ids=lambda path: path.name,
)
def test_commands_then_examples_run_in_order(path, tmp_path):
    draw_seven(tmp_path / "my7.png")
    if path.name == "command_line.md":
        write_own_data(tmp_path)
    text = path.read_text()
    for words in commands(text):
        run_command(words, tmp_path)
    blocks = [block for block in code_blocks(text) if block.language == "python"]
    code = "\n".join(block.text for block in blocks)
    if code:
        tests = re.findall(r"^def (test_\w+)\(\)", code, re.MULTILINE)
        code = code.replace('model="cnn"', f'model="cnn", conv={SMALL_CNN}')
        code = "".join([SMALL_DATA, code, *(f"\n{name}()" for name in tests)])
        run_python("-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT))


def test_there_are_commands_of_every_program_and_examples_to_run():
    texts = [path.read_text() for path in PAGES]
    found = [words for text in texts for words in commands(text)]
    assert {words[0] for words in found} == PROGRAMS.keys() > PARSED_PROGRAMS.keys()
    assert len(found) > 30
    blocks = [block for text in texts for block in code_blocks(text)]
    assert any(block.language == "python" for block in blocks)
