"""The activations of convolution stages and LSTM layers, by their flag's name."""

import jax
import jax.numpy as jnp

ACTIVATIONS = {"linear": lambda y: y, "relu": jax.nn.relu, "tanh": jnp.tanh}
