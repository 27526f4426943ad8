"""The layers of a network, as a trace of its forward pass finds them."""

from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from mnist_jax.config import ConvStage, TrainConfig, parse_conv_stage
from mnist_jax.data.types import Shapes
from mnist_jax.models.flops import forward_products, plain_model
from mnist_jax.models.layers import Dropout, LSTMLayer
from mnist_jax.models.networks import variable_shapes


class LayerSpec(NamedTuple):
    """A layer with parameters, in the plain implementation."""

    name: str  # of its parameters
    # Has its settings; of the CNN's convolutions, the stage. None for a parameter of
    # the network.
    module: nn.Module | ConvStage | None
    output_shape: tuple[int, ...] | None  # of an image; None if it is not one array
    parameters: int
    multiply_adds: int  # of an image's forward pass
    dropout: float  # rate of the dropout that follows


def layer_specs(config: TrainConfig, shapes: Shapes) -> list[LayerSpec]:
    """Returns the layers of a network in the order in which it calls them.

    Computes no parameter values. Parameters that belong to no layer come last.

    >>> specs = layer_specs(TrainConfig(model="cnn"), Shapes((28, 28), 10))
    >>> [spec.name for spec in specs], specs[0].module.filters
    (['Conv_0', 'Conv_1', 'Conv_2', 'Dense_0', 'Dense_1'], 32)
    """
    model = plain_model(config, shapes)
    called: list[str] = []
    modules: dict[str, Any] = {}
    outputs: dict[str, Any] = {}
    rates: dict[str, float] = {}

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output, module = call(*args, **kwargs), context.module
        if isinstance(module, Dropout) and called:
            rates[called[-1]] = module.rate
        elif len(module.path) == 1:
            called.append(module.name)
            modules.setdefault(module.name, module)
            if context.method_name == "__call__" and hasattr(output, "shape"):
                outputs.setdefault(module.name, output.shape[1:])
        return output

    params = variable_shapes(model, shapes.image)["params"]
    with nn.intercept_methods(note):
        products = forward_products(model, shapes.image)
    for index, text in enumerate(config.conv if config.model == "cnn" else ()):
        name, stage = f"Conv_{index}", parse_conv_stage(text)
        height, width, filters = outputs[name]
        modules[name] = stage
        outputs[name] = height // stage.pool, width // stage.pool, filters
    return [
        LayerSpec(
            name,
            modules.get(name),
            outputs.get(name),
            sum(leaf.size for leaf in jax.tree.leaves(params[name])),
            sum(count for layer, count in products if layer == name),
            rates.get(name, 0.0),
        )
        for name in dict.fromkeys([*modules, *params])
        if name in params
    ]


def plain_layers(
    config: TrainConfig, shapes: Shapes, variables: Any
) -> list[dict[str, Any]]:
    """Returns the layers of a built-in network, from its scaled pixels to its logits.

    Each layer has its `kind`, its settings, and its arrays by their names in Flax. The
    statistics of batch normalization are part of its `scale` and `bias`.
    """
    specs = layer_specs(config, shapes)
    layers: list[dict[str, Any]] = []
    for spec in specs:
        arrays = {
            name: np.float32(leaf)
            for trees in variables.values()
            for name, leaf in trees.get(spec.name, {}).items()
        }
        match spec.module:
            case ConvStage() as stage:
                names = "strides", "padding", "activation"
                settings = {name: getattr(stage, name) for name in names}
                layers.append({"kind": "conv", **settings, **arrays})
                if stage.pool > 1:
                    layers.append({"kind": "maxPool", "size": stage.pool})
            case nn.BatchNorm(epsilon=epsilon):
                scale = arrays["scale"] / np.sqrt(arrays["var"] + epsilon)
                bias = arrays["bias"] - arrays["mean"] * scale
                layers.append({"kind": "batchNorm", "scale": scale, "bias": bias})
            case LSTMLayer(activation=activation, return_sequences=sequences):
                settings = {"activation": activation, "sequences": sequences}
                layers.append({"kind": "lstm", **settings, **arrays})
            case nn.Dense():
                if spec.name == "Dense_0":
                    layers.append({"kind": "flatten"})
                activation = "linear" if spec is specs[-1] else "relu"
                layers.append({"kind": "dense", "activation": activation, **arrays})
    return layers
