"""Tables of a network's layers and a dataset's arrays."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pandas as pd
from flax import linen as nn

from mnist_jax.config import MODELS, ConvStage, TrainConfig, parse_conv_stage
from mnist_jax.data.datasets import Dataset
from mnist_jax.data.types import Shapes
from mnist_jax.models.custom import call_options, init_variables
from mnist_jax.models.flops import multiply_adds, products_by_layer, training_flops
from mnist_jax.models.networks import create_model, layer_names, usual_names


def _stage_settings(stage: ConvStage) -> str:
    """Formats the settings of a convolution stage."""
    stride = f", stride {stage.strides}" if stage.strides > 1 else ""
    pool = f", pool {stage.pool}" if stage.pool > 1 else ""
    return (
        f"{stage.kernel}x{stage.kernel}{stride}, {stage.padding.lower()}, "
        f"{stage.activation}{pool}"
    )


def _settings(config: TrainConfig, usual_name: str) -> str:
    """Formats the settings of a layer."""
    kind, number = usual_name.split("_")
    index = int(number)
    if kind == "Conv":
        return _stage_settings(parse_conv_stage(config.conv[index]))
    if kind == "BatchNorm":
        return ""
    recurrent = len(config.lstm_units) if config.model == "lstm" else 0
    position = index if kind == "LSTMLayer" else recurrent + index
    rates = config.dropout
    rate = rates[0] if len(rates) == 1 else rates[min(position, len(rates) - 1)]
    dropout = f", dropout {rate:g}" if rate else ""
    if kind == "LSTMLayer":
        output = "last state" if index == recurrent - 1 else "full sequence"
        return f"{config.activation}, {output}{dropout}"
    return "logits" if index == len(config.hidden) else f"relu{dropout}"


def layer_frame(config: TrainConfig, shapes: Shapes) -> pd.DataFrame:
    """Returns one row per layer: name, settings or kind, output shape, sizes, frozen.

    Computes no parameter values. The output shape omits the batch dimension and
    includes a convolution's pooling. `multiply-adds` are per image and forward pass;
    see `flops` for what is counted. A custom network's layers have the name of their
    class as kind, but no settings and multiply-adds.

    >>> frame = layer_frame(TrainConfig(hidden=(32,)), Shapes((28, 28), 10))
    >>> frame["parameters"].tolist()
    [25120, 330]
    """
    model = create_model(dataclasses.replace(config, impl="plain"), shapes)
    options = call_options(model, False)
    kinds: dict[str, str] = {}

    def note_kind(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        path = context.module.path
        if len(path) == 1:
            kinds[path[0]] = type(context.module).__name__
        return call(*args, **kwargs)

    def run(images: jax.Array) -> tuple[Any, Any]:
        variables = init_variables(model, jax.random.key(0), images)
        _, state = model.apply(
            variables,
            images,
            capture_intermediates=True,
            mutable=["intermediates"],
            **options,
        )
        return variables["params"], state["intermediates"]

    images = jnp.zeros((1, *shapes.image), jnp.float32)
    with nn.intercept_methods(note_kind):
        params, outputs = jax.eval_shape(run, images)
    frame = pd.DataFrame(
        {
            "layer": name,
            "output shape": _output_shape(outputs.get(name, {})),
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(params[name])),
            "frozen": "yes" if name in config.freeze else "no",
        }
        for name in layer_names(config, shapes)
    )
    if config.model in MODELS:
        settings = [_settings(config, usual) for usual in usual_names(config, shapes)]
        counts = [sum(products) for products in products_by_layer(config, shapes)]
        frame.insert(1, "settings", settings)
        frame.insert(4, "multiply-adds", counts)
    else:
        names = [kinds.get(name, "parameter") for name in frame["layer"]]
        frame.insert(1, "kind", names)
    return frame


def _output_shape(outputs: Any) -> Any:
    """Returns the shape of a layer's first output, if it is an array."""
    first, *_ = outputs.get("__call__", [None])
    return first.shape[1:] if hasattr(first, "shape") else "-"


def format_totals(config: TrainConfig, layers: pd.DataFrame, shapes: Shapes) -> str:
    """Formats the totals of a config's `layer_frame`, and the cost of training."""
    total = layers["parameters"].sum()
    frozen = layers.loc[layers["frozen"] == "yes", "parameters"].sum()
    unfrozen = " (as if no layer were frozen)" if frozen else ""
    forward, training = multiply_adds(config, shapes), training_flops(config, shapes)
    return (
        f"total {total:,}, trainable {total - frozen:,}, frozen {frozen:,} parameters\n"
        f"forward pass: {sum(forward):,} multiply-adds per image\n"
        f"training: {training:,} floating-point operations per image{unfrozen}"
    )


def data_frame(dataset: Dataset) -> pd.DataFrame:
    """Returns one row per array of a dataset: shape, dtype, min and max."""
    return pd.DataFrame(
        {
            "array": f"{name} {field}",
            "shape": array.shape,
            "dtype": str(array.dtype),
            "min": array.min(),
            "max": array.max(),
        }
        for name, split in dataset.splits().items()
        for field, array in zip(split._fields, split, strict=True)
    )
