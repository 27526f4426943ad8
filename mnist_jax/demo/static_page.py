"""Exports a trained network as one HTML file that runs it in the browser."""

import base64
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from mnist_jax.config import MODELS
from mnist_jax.demo.page import (
    accuracy_note,
    build_page,
    check_drawable,
    network_name,
    read_source,
)
from mnist_jax.errors import InputError
from mnist_jax.models.layer_specs import layer_specs
from mnist_jax.models.layers import Conv, LSTMLayer
from mnist_jax.models.networks import split_params
from mnist_jax.records.files import write_file
from mnist_jax.training.run_dir import TrainedRun

# The file may run its own scripts only, and may make no request at all.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; base-uri 'none'; form-action 'none'"
)


def write_static_page(run: TrainedRun, path: Path) -> None:
    """Writes the demo page with a run's network in it, which needs no server.

    Args:
        run: as returned by `load_run`, of a built-in network.
        path: the HTML file.

    Raises:
        InputError: the network is not a built-in one or not for images of 28x28 in 10
            classes, or the file cannot be written.
    """
    if run.config.model not in MODELS:
        raise InputError(
            f"cannot export --model={run.config.model} as HTML: the page runs the "
            f"built-in networks ({', '.join(MODELS)}) only; serve this run with "
            "`python -m experiments.demo`"
        )
    check_drawable("this run", run)
    layers, weights = _pack(_layers(run))
    label = {
        "name": network_name(run),
        "note": accuracy_note(run),
        "classes": run.class_names,
    }
    scaling = run.preprocess
    pixels = {"kind": scaling.pixels, "mean": scaling.mean, "std": scaling.std}
    description = {
        "label": label,
        "pixels": pixels,
        "crop": run.config.crop,
        "layers": layers,
    }
    # A name with "</script>" would end the script.
    text = json.dumps(description, allow_nan=False).replace("<", "\\u003c")
    encoded = base64.b64encode(weights.astype("<f4").tobytes()).decode()
    data = f'"use strict";\nconst RUN = {text};\nconst WEIGHTS = "{encoded}";\n'
    page = build_page(
        [data, read_source("drawing.js"), read_source("network.js")],
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
    )
    write_file(path, page)


def _layers(run: TrainedRun) -> list[dict[str, Any]]:
    """Returns the layers of a built-in network, as arguments for `network.js`."""
    params, others = split_params(
        run.model, jax.device_get(run.params), run.shapes.image
    )
    specs = layer_specs(run.config, run.shapes)
    layers: list[dict[str, Any]] = []
    for spec in specs:
        match spec.module:
            case Conv(stage=stage):
                names = "strides", "padding", "activation"
                layer = {name: getattr(stage, name) for name in names}
                layers.append({"kind": "conv", **layer, **params[spec.name]})
                if stage.pool > 1:
                    layers.append({"kind": "maxPool", "size": stage.pool})
            case nn.BatchNorm(epsilon=epsilon):
                running = others["batch_stats"][spec.name]
                layer = {"mean": running["mean"], "variance": running["var"]}
                layer |= {"kind": "batchNorm", "epsilon": epsilon}
                layers.append({**layer, **params[spec.name]})
            case LSTMLayer(activation=activation, return_sequences=sequences):
                layer = {"activation": activation, "sequences": sequences}
                layers.append({"kind": "lstm", **layer, **params[spec.name]})
            case nn.Dense():
                activation = "linear" if spec is specs[-1] else "relu"
                layer = {"kind": "dense", "activation": activation}
                layers.append({**layer, **params[spec.name]})
    return layers


def _pack(layers: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Replaces arrays by their shapes and offsets in one array, and returns both."""
    packed, arrays, offset = [], [np.zeros(0, np.float32)], 0
    for layer in layers:
        described = dict(layer)
        for name, value in layer.items():
            if isinstance(value, np.ndarray):
                described[name] = {"shape": value.shape, "offset": offset}
                arrays.append(value.ravel())
                offset += value.size
        packed.append(described)
    return packed, np.concatenate(arrays)
