"""Flax NNX modules as linen modules, by Flax's own bridge."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from flax.core import FrozenDict
from flax.nnx.bridge import ToLinen


class NNXNetwork(ToLinen):
    """An NNX module that maps images `[B,H,W]` to logits `[B,classes]`.

    Its parameters and batch statistics become linen's collections. Dropout and batch
    normalization are set for training or evaluation by `module.train()` and `.eval()`.
    """

    def __call__(  # type: ignore[override]
        self, images: jax.Array, train: bool = False
    ) -> jax.Array:
        """Returns the logits of images."""

        def run(module: Any, images: jax.Array) -> jax.Array:
            module.train() if train else module.eval()
            return module(images)

        return super().__call__(images, nnx_method=run)


def wrap_nnx(cls: type[nnx.Module], fields: Mapping[str, Any]) -> NNXNetwork:
    """Returns a linen module that creates `cls(**fields, rngs=...)`."""
    # Without its metadata, a variable is a plain array, as linen's are.
    return NNXNetwork(cls, kwargs=FrozenDict(fields), metadata_fn=None)
