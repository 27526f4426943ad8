"""Floating-point operations (FLOPs) of a network, by formula or from its jaxpr.

A multiply-add counts as two operations. Bias, activation, pooling, loss and optimizer
are elementwise and not counted.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mnist_jax.config import MODELS, TrainConfig, parse_conv_stage
from mnist_jax.data.types import Shapes
from mnist_jax.models.networks import apply_model, create_model, param_shapes


def products_by_layer(config: TrainConfig, shapes: Shapes) -> list[list[int]]:
    """Counts the multiply-adds of one image's forward pass, layer by layer.

    A convolution counts every output position, even where pooling drops a border row.
    An LSTM counts the product with its state at every row, even the first, where the
    state is 0. An implementation that skips such work is faster; the network has no
    fewer FLOPs.

    Returns:
        For each layer, in the order of `networks.layer_names`, one number per matrix
        product: two for an LSTM (input, state), none for batch normalization, one for
        other layers.

    >>> products_by_layer(TrainConfig(model="lstm"), Shapes((28, 28), 10))
    [[401408, 1835008], [1280]]
    """
    layers = []
    rows, width = (side - 2 * config.crop for side in shapes.image)
    if config.model == "lstm":
        for units in config.lstm_units:
            layers.append([rows * width * 4 * units, rows * units * 4 * units])
            width = units
    elif config.model == "cnn":
        channels = 1
        for stage in map(parse_conv_stage, config.conv):
            reach = stage.kernel if stage.padding == "VALID" else 1
            rows, width = ((n - reach) // stage.strides + 1 for n in (rows, width))
            layers.append([rows * width * stage.kernel**2 * channels * stage.filters])
            layers += [[]] * stage.bn
            rows, width = rows // stage.pool, width // stage.pool
            channels = stage.filters
        width *= rows * channels
    else:
        width *= rows
    for units in (*config.hidden, shapes.classes):
        layers.append([width * units])
        width = units
    return layers


def multiply_adds(config: TrainConfig, shapes: Shapes) -> list[int]:
    """Returns the multiply-adds of each matrix product in one image's forward pass.

    The first entry is the product with the image.

    >>> multiply_adds(TrainConfig(model="mlp", hidden=(128, 128)), Shapes((28, 28), 10))
    [100352, 16384, 1280]
    """
    if config.model not in MODELS:
        plain = dataclasses.replace(config, impl="plain", precision="float32")
        return _traced_products(create_model(plain, shapes), shapes.image)
    return [count for layer in products_by_layer(config, shapes) for count in layer]


@functools.cache
def _traced_products(model: nn.Module, image_shape: tuple[int, ...]) -> list[int]:
    """Counts the products of a network that has no formula, from its jaxpr."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    trace = jax.make_jaxpr(lambda p, x: apply_model(model, p, x, train=False)[0])
    return _count_products(trace(param_shapes(model, image_shape), image).jaxpr)


def _count_products(jaxpr: Any) -> list[int]:
    """Counts multiply-adds: a `while_loop`'s body once, all branches of a `cond`."""
    counts = []
    for eqn in jaxpr.eqns:
        out_size = eqn.outvars[0].aval.size if eqn.outvars else 0
        if eqn.primitive.name == "dot_general":
            (contracting, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            counts.append(out_size * math.prod(shape[axis] for axis in contracting))
        elif eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval
            filters_axis = eqn.params["dimension_numbers"].rhs_spec[0]
            counts.append(out_size * kernel.size // kernel.shape[filters_axis])
        repeats = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for value in eqn.params.values():
            for item in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(item, "jaxpr", item)
                if hasattr(inner, "eqns"):
                    counts += [repeats * count for count in _count_products(inner)]
    return counts


def training_flops(config: TrainConfig, shapes: Shapes) -> int:
    """Counts the FLOPs of one image in one epoch of training.

    Each product has two gradients of the same size, so training takes three times the
    forward pass, minus the gradient with respect to the image, which is not computed.

    >>> training_flops(TrainConfig(hidden=(128, 128)), Shapes((28, 28), 10))
    507392
    """
    counts = multiply_adds(config, shapes)
    return 2 * (3 * sum(counts) - sum(counts[:1]))
