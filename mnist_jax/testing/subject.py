"""A network under test: its variables, logits and training, shared by its checks."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn

from mnist_jax.config import MODELS, TrainConfig
from mnist_jax.data.batches import epoch_indices
from mnist_jax.data.types import Shapes, Split
from mnist_jax.errors import InputError
from mnist_jax.models.custom import create_custom, instantiate
from mnist_jax.models.layers import resolve_impl
from mnist_jax.models.networks import create_model, init_model
from mnist_jax.models.rewrite import Rewritten
from mnist_jax.testing.steps import make_split, preprocess
from mnist_jax.training.epochs import (
    QUICK,
    Programs,
    compute_logits,
    jit,
    make_programs,
)
from mnist_jax.training.mesh import make_mesh, replicate
from mnist_jax.training.prepare import fill_zeros
from mnist_jax.training.steps import Metrics, TrainState

BATCH, IMAGES, STEPS = 16, 32, 200
# With a larger epsilon than usual: a gradient that is 0 but for rounding, such as that
# of the bias of an attention's keys, moves its parameter little.
TX = optax.adam(optax.cosine_decay_schedule(1e-2, STEPS), eps=1e-3)
TOLERANCE = 1e-5  # of parameters after three steps, which each move them up to 1e-2


@dataclasses.dataclass(frozen=True)
class Network:
    """A network under test, and what its checks share."""

    name: str
    model: nn.Module
    rounded: nn.Module  # the same with precision="bfloat16"
    shapes: Shapes

    @functools.cached_property
    def variables(self) -> Any:
        """The initial variables of seed 0."""
        init = partial(init_model, self.model, image_shape=self.shapes.image)
        return jit(init, QUICK)(jax.random.key(0))

    @functools.cached_property
    def filled(self) -> Any:
        """The same with noise in place of zeros, which would hide what follows them."""
        return fill_zeros(self.variables)

    @functools.cached_property
    def batch(self) -> Split:
        """16 images `[16,H,W] uint8`: black, white, and others with black rows."""
        return make_split(BATCH, shapes=self.shapes)

    @functools.cached_property
    def split(self) -> Split:
        """The 32 images to train on."""
        return make_split(IMAGES, shapes=self.shapes)

    @functools.cached_property
    def logits(self) -> Callable[[Any, np.ndarray], jax.Array]:
        """The jitted logits of variables and images in evaluation."""
        return jit(partial(compute_logits, model=self.model, preprocess=preprocess))

    def start(self, seeds: Sequence[int], devices: int = 1) -> tuple[TrainState, Any]:
        """Returns the initial states of seeds, and their keys of an epoch."""
        programs = _make_programs(self.model, self.shapes, devices)
        states, keys = programs.init_run(seeds)
        return states, programs.epoch_keys(keys, 0)

    def train(
        self, seeds: Sequence[int], steps: int, devices: int = 1
    ) -> tuple[TrainState, Metrics]:
        """Returns the states `[seeds,...]` after some steps, and their metrics."""
        programs = _make_programs(self.model, self.shapes, devices)
        states, keys = self.start(seeds, devices)
        split = replicate(self.split, programs.mesh)
        indices = programs.shard(np.stack([epoch_order(seed) for seed in seeds]))
        return programs.run_steps(states, split, indices, keys, 0, steps)


@functools.lru_cache(maxsize=4)
def _make_programs(model: nn.Module, shapes: Shapes, devices: int) -> Programs:
    return make_programs(model, TX, preprocess, make_mesh(devices), shapes.image)


def epoch_order(seed: int) -> np.ndarray:
    """Returns indices `[200,16]` of the images of each step; the third is smaller."""
    epochs = range(STEPS * BATCH // IMAGES)
    order = [epoch_indices(seed, epoch, IMAGES, BATCH) for epoch in epochs]
    indices = np.concatenate(order)
    indices[2, 11:] = -1
    return indices


def first_seed(tree: Any) -> Any:
    """Returns the arrays of the first seed."""
    return jax.tree.map(itemgetter(0), tree)


@functools.lru_cache(maxsize=2)  # one compilation serves all checks of a network
def create_network(
    network: Any, args: tuple[str, ...], shapes: Shapes, sha256: str | None
) -> Network:
    """Returns a network under test.

    Arguments are as for `check_model`; `sha256` is that of a custom network's source,
    so that changed code is loaded again.
    """
    if network in MODELS:
        config = TrainConfig(model=network)
        half = dataclasses.replace(config, precision="bfloat16")
        built: Any = [create_model(each, shapes) for each in (config, half)]
        return Network(network, built[0], built[1], shapes)
    name, model = getattr(network, "__name__", str(network)), network
    if isinstance(network, str):
        model = create_custom(network, sha256, args, shapes)
    elif inspect.isclass(network):
        model = instantiate(network, args, shapes)
    else:
        name = type(network).__name__
    if not isinstance(model, nn.Module):
        raise InputError(
            "check_model takes a linen module, the class of a linen or NNX module, or "
            f"the name of one; got {network}"
        )
    impl = resolve_impl("auto")
    built = [Rewritten(model, impl, half) for half in (False, True)]
    return Network(name, built[0], built[1], shapes)
