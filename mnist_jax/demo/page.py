"""The demo: one HTML file to draw digits on, with trained networks inside."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mnist_jax.config import MODELS
from mnist_jax.data.types import DIGIT_SETS, MNIST
from mnist_jax.errors import InputError
from mnist_jax.models.layer_specs import plain_layers
from mnist_jax.records.files import write_file
from mnist_jax.training.run_dir import TrainedRun


def write_page(runs: Mapping[str, TrainedRun], path: Path) -> None:
    """Writes the page for runs by the names to show.

    It makes no request and computes in float32.
    """
    networks = [_describe(name, run) for name, run in runs.items()]
    text = json.dumps(networks, default=_encode_array, allow_nan=False)
    # A name with "</script>" would end the element.
    data = text.replace("<", "\\u003c")
    page, drawing, network = (
        Path(__file__).with_name(name).read_text("utf-8")
        for name in ("page.html", "drawing.js", "network.js")
    )
    scripts = (
        f'<script type="application/json" id="networks">{data}</script>\n'
        f"<script>\n{drawing}\n{network}</script>"
    )
    write_file(path, page.replace("<!-- networks -->", scripts))


def _describe(name: str, run: TrainedRun) -> dict[str, Any]:
    """Returns what the page has to know of a run."""
    model, dataset = run.config.model, run.record.dataset
    if model not in MODELS or run.shapes != MNIST:
        height, width = run.shapes.image
        raise InputError(
            f"{name} is {model} for images of {height}x{width} in {run.shapes.classes} "
            f"classes, but the page is for {', '.join(MODELS)}, 28x28 and 10 classes"
        )
    note = f"{model.upper()}, test accuracy {run.record.test_accuracy:.2%}"
    if dataset not in DIGIT_SETS:
        note += f"; trained on {dataset}, so drawings of digits may mean nothing to it"
    pixels, mean, std = run.preprocess
    return {
        "name": name,
        "note": note,
        "classes": run.record.class_names,
        "pixels": {"kind": pixels, "mean": mean, "std": std},
        "crop": run.config.crop,
        "layers": plain_layers(run.config, run.shapes, run.variables),
    }


def _encode_array(array: np.ndarray) -> dict[str, Any]:
    data = base64.b64encode(array.astype("<f4").tobytes()).decode()
    return {"shape": array.shape, "base64": data}
