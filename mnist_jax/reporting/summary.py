"""Tables that describe a network's layers and a data set's arrays."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pandas as pd

from mnist_jax.config import ConvStage, TrainConfig, parse_conv_stage
from mnist_jax.data.datasets import Dataset
from mnist_jax.models.flops import products_by_layer, training_flops
from mnist_jax.models.networks import (
    IMAGE_SHAPE,
    create_model,
    layer_names,
    usual_names,
)


def _stage_settings(stage: ConvStage) -> str:
    """Writes a convolution stage in words."""
    pool = f", max pool {stage.pool}" if stage.pool > 1 else ""
    return (
        f"{stage.kernel}x{stage.kernel}, stride {stage.strides}, "
        f"{stage.padding.lower()}, {stage.activation}{pool}"
    )


def _settings(config: TrainConfig, usual_name: str) -> str:
    """Writes a layer's settings in words."""
    kind, number = usual_name.split("_")
    index = int(number)
    if kind == "Conv":
        return _stage_settings(parse_conv_stage(config.conv[index]))
    recurrent = len(config.lstm_units) if config.model == "lstm" else 0
    position = index if kind == "LSTMLayer" else recurrent + index
    rates = config.dropout
    rate = rates[0] if len(rates) == 1 else rates[min(position, len(rates) - 1)]
    dropout = f", dropout {rate:g}" if rate else ""
    if kind == "LSTMLayer":
        output = "last state" if index == recurrent - 1 else "full sequence"
        return f"{config.activation}, {output}{dropout}"
    return "logits" if index == len(config.hidden) else f"relu{dropout}"


def layer_frame(config: TrainConfig) -> pd.DataFrame:
    """Returns a row per layer: name, kind, settings, shape, sizes, frozen or not.

    Computes no parameter. The output shape leaves the batch out; a convolution's is
    that after its pooling. `multiply-adds` are those of one image's forward pass; see
    `flops` for what counts.

    >>> layer_frame(TrainConfig(model="mlp", hidden=(32,)))["parameters"].tolist()
    [25120, 330]
    """
    model = create_model(dataclasses.replace(config, impl="plain"))

    def run(images: jax.Array) -> tuple[Any, Any]:
        params = model.init(jax.random.key(0), images)["params"]
        _, state = model.apply(
            {"params": params},
            images,
            capture_intermediates=True,
            mutable=["intermediates"],
        )
        return params, state["intermediates"]

    params, outputs = jax.eval_shape(run, jnp.zeros((1, *IMAGE_SHAPE), jnp.float32))
    return pd.DataFrame(
        {
            "layer": name,
            "kind": usual.split("_")[0],
            "settings": _settings(config, usual),
            "output shape": outputs[name]["__call__"][0].shape[1:],
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(params[name])),
            "multiply-adds": sum(products),
            "frozen": "yes" if name in config.freeze else "no",
        }
        for usual, name, products in zip(
            usual_names(config),
            layer_names(config),
            products_by_layer(config),
            strict=True,
        )
    )


def format_totals(config: TrainConfig, layers: pd.DataFrame) -> str:
    """Writes the sums over a config's `layer_frame`, and what training costs."""
    total = layers["parameters"].sum()
    frozen = layers.loc[layers["frozen"] == "yes", "parameters"].sum()
    unfrozen = " (were no layer frozen)" if frozen else ""
    return (
        f"total {total:,}, trainable {total - frozen:,}, frozen {frozen:,} parameters\n"
        f"per image: {layers['multiply-adds'].sum():,} multiply-adds forward, "
        f"{training_flops(config):,} floating-point operations to train on it once"
        f"{unfrozen}"
    )


def data_frame(dataset: Dataset) -> pd.DataFrame:
    """Returns a row per array of a data set: shape, type, least and greatest value."""
    splits = {
        "train": dataset.train,
        "validation": dataset.validation,
        "test": dataset.test,
    }
    return pd.DataFrame(
        {
            "array": f"{name} {field}",
            "shape": array.shape,
            "dtype": str(array.dtype),
            "least": array.min(),
            "greatest": array.max(),
        }
        for name, split in splits.items()
        if split is not None
        for field, array in zip(split._fields, split, strict=True)
    )
