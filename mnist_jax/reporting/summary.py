"""Tables of a network's layers and a dataset's arrays."""

import pandas as pd
from flax import linen as nn

from mnist_jax.config import MODELS, ConvStage, TrainConfig
from mnist_jax.data.datasets import Dataset
from mnist_jax.data.types import Shapes
from mnist_jax.models.flops import multiply_adds, training_flops
from mnist_jax.models.layer_specs import LayerSpec, layer_specs
from mnist_jax.models.layers import LSTMLayer


def _describe(spec: LayerSpec, is_custom: bool, is_last: bool) -> str:
    """Formats a layer's settings, or in a custom network its kind."""
    if is_custom:
        return "parameter" if spec.module is None else type(spec.module).__name__
    settings = []
    match spec.module:
        case ConvStage() as stage:
            settings = [f"{stage.kernel}x{stage.kernel}"]
            settings += [f"stride {stage.strides}"] * (stage.strides > 1)
            settings += [stage.padding.lower(), stage.activation]
            settings += [f"pool {stage.pool}"] * (stage.pool > 1)
        case LSTMLayer(activation=activation, return_sequences=sequences):
            settings = [activation, "full sequence" if sequences else "last state"]
        case nn.Dense():
            settings = ["logits" if is_last else "relu"]
    return ", ".join(settings + [f"dropout {spec.dropout:g}"] * (spec.dropout > 0))


def layer_frame(config: TrainConfig, shapes: Shapes) -> pd.DataFrame:
    """Returns one row per layer: name, settings or kind, output shape, sizes, frozen.

    Computes no parameter values. The output shape omits the batch dimension and
    includes a convolution's pooling. `multiply-adds` are per image and forward pass;
    see `flops` for what is counted. A custom network's layers have the name of their
    class as kind, but no settings.

    >>> frame = layer_frame(TrainConfig(hidden=(32,)), Shapes((28, 28), 10))
    >>> frame["parameters"].tolist()
    [25120, 330]
    """
    specs, is_custom = layer_specs(config, shapes), config.model not in MODELS
    title = "kind" if is_custom else "settings"
    return pd.DataFrame(
        {
            "layer": spec.name,
            title: _describe(spec, is_custom, spec is specs[-1]),
            "output shape": spec.output_shape or "-",
            "parameters": spec.parameters,
            "multiply-adds": spec.multiply_adds,
            "frozen": "yes" if spec.name in config.freeze else "no",
        }
        for spec in specs
    )


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
