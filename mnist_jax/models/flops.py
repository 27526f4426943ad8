"""Floating-point operations (FLOPs) of a network, counted in its jaxpr.

A multiply-add counts as two operations. Bias, activation, pooling, loss and optimizer
are elementwise and not counted. A convolution counts every output position, even where
pooling drops a border row. An LSTM counts the product with its state at every row, even
the first, where the state is 0. An implementation that skips such work is faster; the
network has no fewer FLOPs.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend.core import jaxprs_in_params

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Shapes
from mnist_jax.models.networks import apply_model, create_model, variable_shapes
from mnist_jax.models.rewrite import slow_operations, without_rewriting


def plain_model(config: TrainConfig, shapes: Shapes) -> nn.Module:
    """Returns a config's network in its plain implementation, in float32."""
    config = dataclasses.replace(config, impl="plain", precision="float32")
    return create_model(config, shapes)


def forward_products(
    model: nn.Module, image_shape: tuple[int, ...]
) -> list[tuple[str, int]]:
    """Returns `count_products` of a network's forward pass of one image."""
    return count_products(_forward_jaxpr(model, image_shape))


def has_convolutions(model: nn.Module, image_shape: tuple[int, ...]) -> bool:
    """Returns whether a network, as its author wrote it, has convolutions."""
    jaxpr = _forward_jaxpr(without_rewriting(model), image_shape)
    return "conv_general_dilated" in slow_operations(jaxpr)


def _forward_jaxpr(model: nn.Module, image_shape: tuple[int, ...]) -> Any:
    """Returns the jaxpr of a network's forward pass of one image."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    trace = jax.make_jaxpr(lambda v, x: apply_model(model, v, x, train=False)[0])
    return trace(variable_shapes(model, image_shape), image).jaxpr


def count_products(jaxpr: Any, layer: str = "") -> list[tuple[str, int]]:
    """Returns the matrix products and convolutions of a jaxpr.

    Each has the layer that computes it, empty if the network does, and its
    multiply-adds. `layer` is the one that an inner jaxpr is of.
    Those of a `while_loop`'s body count once, those of all branches of a `cond` count.
    """
    counts = []
    for eqn in jaxpr.eqns:
        _, name, *_ = f"{eqn.source_info.name_stack}//".split("/")  # Network/Layer/...
        name = layer or name.partition(".")[0]  # without the name of a method
        out_size = eqn.outvars[0].aval.size if eqn.outvars else 0
        if eqn.primitive.name == "dot_general":
            (contracting, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            inner_size = math.prod(shape[axis] for axis in contracting)
            counts.append((name, out_size * inner_size))
        elif eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval
            filters_axis = eqn.params["dimension_numbers"].rhs_spec[0]
            inner_size = kernel.size // kernel.shape[filters_axis]
            counts.append((name, out_size * inner_size))
        repeats = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for inner in jaxprs_in_params(eqn.params):
            products = count_products(inner, name)
            counts += [(layer, repeats * count) for layer, count in products]
    return counts


def multiply_adds(config: TrainConfig, shapes: Shapes) -> list[int]:
    """Returns the multiply-adds of each matrix product in one image's forward pass.

    The first entry is the product with the image.

    >>> multiply_adds(TrainConfig(model="lstm"), Shapes((28, 28), 10))
    [401408, 1835008, 1280]
    """
    products = forward_products(plain_model(config, shapes), shapes.image)
    return [count for _, count in products]


def training_flops(config: TrainConfig, shapes: Shapes) -> int:
    """Counts the FLOPs of one image in one epoch of training.

    Each product has two gradients of the same size, so training takes three times the
    forward pass, minus the gradient with respect to the image, which is not computed.

    >>> training_flops(TrainConfig(hidden=(128, 128)), Shapes((28, 28), 10))
    507392
    """
    counts = multiply_adds(config, shapes)
    return 2 * (3 * sum(counts) - sum(counts[:1]))
