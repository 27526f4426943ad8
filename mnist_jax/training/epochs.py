"""Jitted training and evaluation over a split, sharded over a device mesh.

Several seeds of one network can be trained together: states, keys and image orders have
a leading axis of seeds, even for a single seed.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mnist_jax.data.augment import Augmentation
from mnist_jax.data.pixels import Preprocess
from mnist_jax.data.types import Split
from mnist_jax.models.networks import CNN, LSTM, apply_model
from mnist_jax.models.rewrite import slow_operations, without_rewriting
from mnist_jax.training.mesh import (
    BATCH,
    SEEDS,
    seed_keys,
    shard_indices,
    shard_seeds,
    step_bounds,
)
from mnist_jax.training.steps import (
    Metrics,
    TrainState,
    eval_step,
    init_state,
    train_step,
)

NO_AUGMENTATION = Augmentation()
_PREDICT_CHUNK = 1_000  # images per call; a CNN keeps about 100 kB for each
AUGMENT = 2**32 - 1  # folded into a step's key: other numbers than dropout's

# For what is too fast to gain from a higher level. The initialization of the CNN
# compiles in 0.3 s instead of 1.4 s, with the same bits (the LSTM's orthogonal kernels:
# up to their last digit).
QUICK = {"xla_backend_optimization_level": "0"}


def gather(split: Split, indices: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns images `[B,H,W] uint8`, labels and mask `[B]` for indices `[B]`.

    An index of -1 is padding: its mask is 0, so that it is not counted. Its image is
    one of the split's, since batch statistics do not know the mask.
    """
    mask = indices >= 0
    indices = jnp.where(mask, indices, jnp.arange(len(indices)))
    images = jnp.take(split.images, indices, axis=0, mode="clip")
    labels = jnp.take(split.labels, indices, axis=0, mode="clip")
    return images, labels, mask.astype(jnp.float32)


def count_microbatches(model: Any, images: int) -> int:
    """Returns the number of microbatches for a device's `images` of a batch."""
    network = without_rewriting(model)
    if isinstance(network, LSTM | CNN) and getattr(model, "impl", "") == "cpu":
        return -(-images // network.microbatch)
    return 1


def train_epoch(
    state: TrainState,
    split: Split,
    indices: jax.Array,
    key: jax.Array,
    bounds: jax.Array,
    *,
    model: nn.Module,
    tx: optax.GradientTransformation,
    preprocess: Preprocess,
    augment: Augmentation = NO_AUGMENTATION,
    label_smoothing: float = 0.0,
    classes: int = 0,
    axis_name: str | None = None,
    single: bool = False,
) -> tuple[TrainState, Metrics]:
    """Runs steps of an epoch on one device's share of each batch.

    `indices [steps,B]` come from `epoch_indices`; `bounds [2]` are the first step and
    the stop, exclusive; step `i` uses the key `fold_in(key, i)`. Images are changed by
    `augment`, then converted by `preprocess`. `label_smoothing` is the share of a label
    that is spread over all `classes`. `single` runs the first step only, without a
    loop. Other arguments are as for `train_step`.

    Returns the new state and the metrics of each step `[steps]`, 0 for steps not run.
    """
    microbatches = count_microbatches(model, indices.shape[1])

    def body(
        step: jax.Array, carry: tuple[TrainState, Metrics]
    ) -> tuple[TrainState, Metrics]:
        state, history = carry
        row = lax.dynamic_index_in_dim(indices, step, keepdims=False)
        images, labels, mask = gather(split, row)
        step_key = jax.random.fold_in(key, step)
        offset = 0 if axis_name is None else lax.axis_index(axis_name) * len(images)
        images = augment(images, jax.random.fold_in(step_key, AUGMENT), offset)
        if label_smoothing:
            labels = optax.smooth_labels(
                jax.nn.one_hot(labels, classes), label_smoothing
            )
        options: Any = dict(axis_name=axis_name, microbatches=microbatches)
        batch = preprocess(images), labels, mask, step_key
        state, metrics = train_step(state, *batch, model=model, tx=tx, **options)
        store = partial(lax.dynamic_update_index_in_dim, index=step, axis=0)
        return state, jax.tree.map(store, history, metrics)

    start = state, Metrics.zeros(len(indices))
    if single:
        return body(bounds[0], start)
    return lax.fori_loop(bounds[0], bounds[1], body, start)


def evaluate(
    variables: Any,
    split: Split,
    indices: jax.Array,
    *,
    model: nn.Module,
    preprocess: Preprocess,
    axis_name: str | None = None,
) -> Metrics:
    """Returns the metrics of one seed's network over images of a split.

    Rows of `indices [n,chunk]` that hold only -1 come last and are skipped, so that one
    program serves sets of any size.
    """
    rows = jnp.sum(jnp.any(indices >= 0, axis=1))

    def body(row: jax.Array, total: Metrics) -> Metrics:
        images, labels, mask = gather(split, indices[row])
        metrics = eval_step(variables, preprocess(images), labels, mask, model=model)
        return jax.tree.map(jnp.add, total, metrics)

    total = lax.fori_loop(0, rows, body, Metrics.zeros())
    return total if axis_name is None else lax.psum(total, axis_name)


def _is_on_cpu(mesh: Mesh) -> bool:
    return bool(mesh.devices.flat[0].platform == "cpu")


def _over_seeds(
    function: "partial[Any]", mesh: Mesh, in_axes: Sequence[int | None]
) -> Callable[..., Any]:
    """Maps a function of one seed over the arguments whose `in_axes` is 0.

    Small networks leave most of an accelerator idle, so that it computes its seeds in
    the same operations. On a CPU, one seed after the other is faster
    (docs/performance.md).
    """
    one_by_one = _is_on_cpu(mesh)

    def over_seeds(*arguments: Any) -> Any:
        pairs = list(zip(arguments, in_axes, strict=True))
        stacks = [a for a, axis in pairs if axis == 0]

        def run(stacked: list[Any]) -> Any:
            mapped = iter(stacked)
            return function(*(a if axis is None else next(mapped) for a, axis in pairs))

        if function.keywords.get("single"):
            seeds = range(len(jax.tree.leaves(stacks)[0]))
            results = [run(jax.tree.map(itemgetter(seed), stacks)) for seed in seeds]
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)
        if one_by_one:
            return lax.map(run, stacks)
        if len(jax.tree.leaves(stacks)[0]) > 1:
            return jax.vmap(run)(stacks)
        # Not every operation has a vmap (cuDNN's LSTM), and some are slower under it.
        alone = run(jax.tree.map(lambda a: a[0], stacks))
        return jax.tree.map(lambda a: a[None], alone)

    over_seeds.__name__ = function.func.__name__  # shown in traces and the cache
    return over_seeds


@dataclasses.dataclass(frozen=True)
class Programs:
    """A network's programs for the devices of a mesh, jitted or compiled.

    An epoch may be run in chunks of any size, so that a caller can report progress: the
    chunks run the same steps with the same keys as the whole epoch.
    """

    mesh: Mesh
    init: Any  # keys [seeds] -> states
    train: Any  # see `run_steps`
    one_step: Any  # the same for the first step only, without a loop
    evaluate: Any  # variables [seeds,...], split, `eval_indices` -> metrics [seeds]
    # Operations that XLA:CPU compiles to slow code inside a loop. If there are any,
    # `compile` replaces `train` by `one_step`.
    slow_in_loops: tuple[str, ...] = ()

    def init_run(self, seeds: Sequence[int]) -> tuple[TrainState, jax.Array]:
        """Returns each seed's initial state and run key: `[seeds,...]`."""
        init_keys, run_keys = jax.vmap(jax.random.split, out_axes=1)(seed_keys(seeds))
        return shard_seeds(self.init(init_keys), self.mesh), run_keys

    def epoch_keys(self, run_keys: jax.Array, epoch: int) -> jax.Array:
        """Returns the keys `[seeds]` of an epoch."""
        keys = jax.vmap(jax.random.fold_in, (0, None))(run_keys, epoch)
        return shard_seeds(keys, self.mesh)

    def shard(self, orders: np.ndarray) -> jax.Array:
        """Puts the `epoch_indices` of all seeds, `[seeds,steps,B]`, on the devices."""
        return shard_indices(orders, self.mesh)

    def run_steps(
        self,
        states: TrainState,
        split: Split,
        indices: jax.Array,
        keys: jax.Array,
        start: int = 0,
        stop: int | None = None,
    ) -> tuple[TrainState, Metrics]:
        """Runs steps `start` to `stop`, exclusive (default: to the end of the epoch).

        Returns the new states and the metrics `[seeds,steps]`, 0 for steps not run. The
        states are donated, the split is replicated, `indices` come from `shard` and
        `keys` from `epoch_keys`. With several host devices, wait for the metrics before
        the next call: two calls in flight can deadlock XLA:CPU's threads, since the
        devices synchronize at every step.
        """
        stop = indices.shape[1] if stop is None else stop
        if not self.slow_in_loops:
            bounds = step_bounds(start, stop, self.mesh)
            return self.train(states, split, indices, keys, bounds)
        history = []
        for step in range(start, stop):
            bounds = step_bounds(step, step + 1, self.mesh)
            states, metrics = self.train(states, split, indices, keys, bounds)
            history.append(jax.device_get(metrics))
        return states, jax.tree.map(lambda *steps: np.sum(steps, axis=0), *history)

    def compile(
        self, orders: np.ndarray, train: Split, held_out: Split, eval_rows: jax.Array
    ) -> "Programs":
        """Compiles the programs ahead of time for arguments of these shapes."""
        seeds = seed_keys(range(len(orders)))
        sharding = NamedSharding(self.mesh, P(SEEDS))
        states = jax.tree.map(
            lambda leaf: leaf.update(sharding=sharding),
            jax.eval_shape(self.init, seeds),
        )
        keys = shard_seeds(seeds, self.mesh)
        bounds = step_bounds(0, orders.shape[1], self.mesh)
        indices = self.shard(orders)
        steps = self.train.trace(states, train, indices, keys, bounds)
        slow: tuple[str, ...] = ()
        if _is_on_cpu(self.mesh):
            slow = tuple(sorted(slow_operations(steps.jaxpr.jaxpr)))
        if slow:
            steps = self.one_step.trace(states, train, indices, keys, bounds)
        with ThreadPoolExecutor() as pool:  # the longest first
            run = pool.submit(steps.lower().compile)
            measure = self.evaluate.lower(states.variables, held_out, eval_rows)
            evaluate = pool.submit(measure.compile)
            init = pool.submit(self.init.lower(seeds).compile)
        return dataclasses.replace(
            self,
            init=init.result(),
            train=run.result(),
            evaluate=evaluate.result(),
            slow_in_loops=slow,
        )


def compiler_options(platform: str) -> dict[str, str]:
    """Returns the options to compile with, so that results are right.

    XLA:CPU of jaxlib 0.10.2 to 0.12.0.1 fuses a matrix product with the sum over it,
    and the result can be uninitialized memory (jax-ml/jax#39103, #39257). The option
    leaves products alone in their fusion. `tests/training/test_compiler.py` reproduces
    the fault; remove the option once that passes without it on every version.
    """
    if platform != "cpu":
        return {}
    return {
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
    }


def jit(function: Callable[..., Any], options: Mapping[str, str] = {}) -> Any:
    """Returns `jax.jit` of a function that runs a network.

    It is compiled with `compiler_options` and more, such as `QUICK`.
    """
    options = {**compiler_options(jax.default_backend()), **options}
    return jax.jit(function, compiler_options=options)


def make_programs(
    model: nn.Module,
    tx: optax.GradientTransformation,
    preprocess: Preprocess,
    mesh: Mesh,
    image_shape: tuple[int, ...],
    **recipe: Any,
) -> Programs:
    """Returns the jitted programs of a network on a mesh.

    Each row of the mesh trains its share of the seeds. Arguments are as for
    `train_epoch`; `recipe` holds its `augment`, `label_smoothing` and `classes`.
    """
    # A sum over one device would still copy every gradient: 12 % of an MLP's step.
    axis_name = BATCH if mesh.shape[BATCH] > 1 else None
    shared: dict[str, Any] = dict(
        model=model, preprocess=preprocess, axis_name=axis_name
    )
    # With check_vma, gradients with respect to replicated parameters are already summed
    # over the mesh before `train_step` sums them.
    over_mesh = partial(jax.shard_map, mesh=mesh, out_specs=P(SEEDS), check_vma=False)
    run, one_step = (
        over_mesh(
            _over_seeds(
                partial(train_epoch, tx=tx, single=single, **shared, **recipe),
                mesh,
                (0, None, 0, 0, None),
            ),
            in_specs=(P(SEEDS), P(), P(SEEDS, None, BATCH), P(SEEDS), P()),
        )
        for single in (False, True)
    )
    measure = over_mesh(
        _over_seeds(partial(evaluate, **shared), mesh, (0, None, None)),
        in_specs=(P(SEEDS), P(), P(None, BATCH)),
    )
    init = partial(lax.map, partial(init_state, model, tx, image_shape=image_shape))
    options = compiler_options(mesh.devices.flat[0].platform)
    return Programs(
        mesh,
        jax.jit(init, compiler_options=options | QUICK),
        jax.jit(run, donate_argnums=0, compiler_options=options),
        jax.jit(one_step, donate_argnums=0, compiler_options=options),
        jax.jit(measure, compiler_options=options),
    )


def compute_logits(
    variables: Any, images: jax.Array, *, model: nn.Module, preprocess: Preprocess
) -> jax.Array:
    """Returns the logits `[N,classes] float32` of images `[N,H,W] uint8`."""
    logits, _ = apply_model(model, variables, preprocess(images), train=False)
    return logits.astype(jnp.float32)


def predict(variables: Any, images: jax.Array, **network: Any) -> jax.Array:
    """Returns the probabilities `[N,classes]`; arguments as for `compute_logits`."""
    return jax.nn.softmax(compute_logits(variables, images, **network))


@functools.lru_cache(maxsize=16)
def make_predict(
    model: nn.Module, preprocess: Preprocess
) -> Callable[[Any, np.ndarray], jax.Array]:
    """Returns `predict` of variables and images `[N,H,W] uint8`, jitted."""
    return jit(partial(predict, model=model, preprocess=preprocess))


def predict_images(
    model: nn.Module, preprocess: Preprocess, variables: Any, images: np.ndarray
) -> np.ndarray:
    """Returns the probabilities `[N,classes] float32` of images `[N,H,W] uint8`."""
    run = make_predict(model, preprocess)
    if not len(images):
        one = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)
        return np.empty((0, jax.eval_shape(run, variables, one).shape[1]), np.float32)
    starts = range(0, len(images), _PREDICT_CHUNK)
    chunks = [images[start : start + _PREDICT_CHUNK] for start in starts]
    return np.concatenate([np.asarray(run(variables, chunk)) for chunk in chunks])
