"""Flax NNX modules as linen modules, by Flax's own bridge."""

import inspect
from collections.abc import Mapping, Set
from typing import Any

import jax
from flax import nnx
from flax.core import FrozenDict
from flax.nnx.bridge import ToLinen
from flax.traverse_util import flatten_dict, unflatten_dict


def call_arguments(network: Any) -> Set[str]:
    """Returns the names of the arguments that a module or class is called with."""
    return inspect.signature(network.__call__).parameters.keys()


class NNXNetwork(ToLinen):
    """An NNX module that maps images `[B,H,W]` to logits `[B,classes]`.

    Its parameters and batch statistics become linen's collections. Dropout and batch
    normalization are set for training or evaluation by `module.train()` and `.eval()`;
    `train` is also passed to a `__call__` that takes it.
    """

    def __call__(  # type: ignore[override]
        self, images: jax.Array, train: bool = False, **options: Any
    ) -> jax.Array:
        """Returns the logits of images."""
        if "train" in call_arguments(self.nnx_class):
            options["train"] = train

        def run(module: Any, images: jax.Array) -> jax.Array:
            module.train() if train else module.eval()
            return module(images, **options)

        return super().__call__(images, nnx_method=run)


def wrap_nnx(cls: type[nnx.Module], fields: Mapping[str, Any]) -> NNXNetwork:
    """Returns a linen module that creates `cls(**fields, rngs=...)`."""
    # Without its metadata, a variable is a plain array, as linen's are.
    return NNXNetwork(cls, kwargs=FrozenDict(fields), metadata_fn=None)


def join_params(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Moves variables of subclasses of `nnx.Param`, such as LoRA's, to `params`."""

    def collection(name: str) -> str:
        kind = nnx.variable_type_from_name(name, allow_register=True)
        return "params" if issubclass(kind, nnx.Param) else name

    flat = flatten_dict(variables)
    return unflatten_dict({(collection(k), *path): v for (k, *path), v in flat.items()})
