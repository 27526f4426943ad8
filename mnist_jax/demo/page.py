"""The page to draw on, which the server and static files share."""

from collections.abc import Sequence
from importlib import resources

from mnist_jax.config import MODELS
from mnist_jax.data.types import DIGIT_SETS, MNIST
from mnist_jax.errors import InputError
from mnist_jax.training.run_dir import TrainedRun

_SCRIPTS = "<!-- scripts that define listModels() and classify(canvas) -->"


def read_source(name: str) -> str:
    """Returns the text of a file in this folder."""
    return resources.files("mnist_jax.demo").joinpath(name).read_text("utf-8")


def build_page(scripts: Sequence[str], head: str = "") -> str:
    """Returns the page as HTML.

    Args:
        scripts: JavaScript that defines `listModels()` and `classify(canvas)`, from
            which the page gets its networks and their predictions.
        head: HTML before these scripts.
    """
    before, after = read_source("page.html").split(_SCRIPTS)
    elements = [f"<script>\n{script}</script>" for script in scripts]
    return "\n".join(filter(None, [before.rstrip(), head, *elements])) + after


def check_drawable(name: str, run: TrainedRun) -> None:
    """Raises InputError if a run's network is not for drawings in ten classes.

    Args:
        name: of the run, for the message.
        run: the run.
    """
    if run.shapes != MNIST:
        height, width = run.shapes.image
        raise InputError(
            f"{name} is a network for images of {height}x{width} in "
            f"{run.shapes.classes} classes, but drawings become 28x28 and the page "
            "shows 10 classes; give a network for 28x28 and 10 classes"
        )


def network_name(run: TrainedRun) -> str:
    """Returns the name of a run's network, as on the page."""
    model = run.config.model
    return model.upper() if model in MODELS else run.config.name


def accuracy_note(run: TrainedRun) -> str:
    """Returns the test accuracy of a run, and a warning if it does not know digits."""
    note = f"test accuracy {run.record.test_accuracy:.2%}"
    if (dataset := run.record.dataset) not in DIGIT_SETS:
        note += f"; trained on {dataset}, so drawings of digits may mean nothing to it"
    return note
