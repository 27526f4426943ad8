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
from helpers import processes
from helpers.documents import PAGES, ROOT, code_blocks, commands
from helpers.programs import flags_of, run
from PIL import Image, ImageDraw

# Programs whose commands are only parsed, and why.
PARSED_ONLY = {
    "benchmarks.peers": "needs PyTorch, Keras, TensorFlow and an hour; see test_peers",
    "benchmarks.readme": "rewrites the documents in the checkout; see test_readme",
    "benchmarks.speedrun": "trains on all of MNIST many times; see test_speedrun",
    "benchmarks.regress": "trains with two commits for minutes; see test_regress",
}
# Or a Ray cluster; new processes take seconds to start, see test_sweeps.
# Flags with which commands are only parsed: they need more, or are in test_profiling.
PARSED_FLAGS = (
    *("--platform=gpu", "--platform=tpu", "--engine=ray", "--workers=2"),
    "--profile",
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
SMALL_CNN = "4:pool2", "4"  # stages that compile in half the time
SEEDS = 2  # instead of the number that a command gives
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


def quick_arguments(words: list[str], folder: Path) -> list[str]:
    """Returns a command's arguments for little work, with its paths in a folder."""
    program, *arguments = words[words.index("-m") + 1 :]
    known = flags_of(program)
    quick = []
    for argument in arguments:
        name, _, value = argument.removeprefix("--").partition("=")
        if name in PATHS:
            argument = f"--{name}={folder / value}"
        elif name == "samples":
            argument = "--samples=2"
        elif name == "seeds":
            argument = f"--seeds={SEEDS}"
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
    return quick


def run_command(words: list[str], folder: Path) -> None:
    """Runs a documented command, or parses it only."""
    program = words[words.index("-m") + 1]
    arguments = quick_arguments(words, folder)
    # A process of a job would wait for the others; see test_distributed.
    job = any(word.startswith("--coordinator") for word in arguments)
    hardware = any(flag in arguments for flag in PARSED_FLAGS)
    parsed = program in PARSED_ONLY or hardware or job
    run(program, *arguments, mode="parse" if parsed else "run")


def page_commands(path: Path) -> list[list[str]]:
    """Returns the commands of a page that have to be run.

    A command that an earlier page has too is left out, unless a later one on this page
    names the folder that it writes.
    """
    earlier = [
        words
        for page in PAGES[: PAGES.index(path)]
        for block in code_blocks(page.read_text())
        for words in commands(block)
    ]
    found = [w for block in code_blocks(path.read_text()) for w in commands(block)]
    kept = []
    for number, words in enumerate(found):
        folders = {
            w.partition("=")[2] for w in words if re.match("--(run_dir|out)=", w)
        }
        later = {w.partition("=")[2] for rest in found[number + 1 :] for w in rest}
        if words not in earlier or folders & later:
            kept.append(words)
    return kept


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


def run_python(code: str, folder: Path) -> None:
    """Runs Python code in a new process, where JAX has not started yet."""
    code = code.replace('model="cnn"', f'model="cnn", conv={SMALL_CNN}')
    processes.run_python("-c", SMALL_DATA + code, cwd=folder, PYTHONPATH=str(ROOT))


@pytest.mark.parametrize(
    "path",
    [PAGES[0], *(pytest.param(p, marks=pytest.mark.programs) for p in PAGES[1:])],
    ids=lambda path: path.name,
)
def test_commands_then_examples_run_in_order(path, tmp_path):
    draw_seven(tmp_path / "my7.png")
    if path.name == "command_line.md":
        write_own_data(tmp_path)
    for words in page_commands(path):
        run_command(words, tmp_path)
    blocks = code_blocks(path.read_text())
    code = "\n".join(block.text for block in blocks if block.language == "python")
    if code:
        tests = re.findall(r"^def (test_\w+)\(\)", code, re.MULTILINE)
        run_python(code + "".join(f"\n{name}()" for name in tests), tmp_path)


def test_there_are_commands_and_examples_to_run():
    blocks = [block for path in PAGES for block in code_blocks(path.read_text())]
    found = [words for block in blocks for words in commands(block)]
    programs = {words[words.index("-m") + 1] for words in found}
    assert set(PARSED_ONLY) < programs and len(found) > 30
    files = [*(ROOT / "experiments").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    documented = {
        f"{path.parent.name}.{path.stem}"
        for path in files
        if "\ndef run()" in path.read_text()
        and path.stem != "starts"  # which throughput starts
    }
    packages = {"benchmarks.published", "benchmarks.peers"}
    assert documented | packages == programs
    assert any(block.language == "python" for block in blocks)
