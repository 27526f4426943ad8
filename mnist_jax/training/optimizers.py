"""Optax optimizers and learning rate schedules for a config."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mnist_jax.config import TrainConfig
from mnist_jax.training.steps import TrainState


def scale_by_adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, keras: bool = False
) -> optax.GradientTransformation:
    """Adam with a single division for each parameter.

    The update of `optax.scale_by_adam`, `m/(1-b1^t) / (sqrt(v/(1-b2^t)) + eps)`, has
    three, which cost an MLP 8 % of its step at batch 32 (docs/performance.md). It is
    equal to `rate * m / (sqrt(v) + e)`, where `rate = sqrt(1-b2^t) / (1-b1^t)` and
    `e = eps * sqrt(1-b2^t)`. With `keras`, `e = eps`, as Keras adds it before the bias
    correction (keras/src/optimizers/adam.py, Keras 3.15): with raw pixels the two
    diverge within 30 steps.
    """

    def init(params: Any) -> optax.ScaleByAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(
        grads: Any, state: optax.ScaleByAdamState, params: Any = None
    ) -> tuple[Any, optax.ScaleByAdamState]:
        del params
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: m + (1 - b1) * (g - m), state.mu, grads)
        nu = jax.tree.map(lambda v, g: v + (1 - b2) * (g * g - v), state.nu, grads)
        # In the gradients' precision, as in Keras: 1 - b2^t loses four digits at first.
        # In bfloat16 it loses all: 0.999 is 1 there.
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(grads))
        t = count.astype(dtype)
        correction = jnp.sqrt(1 - b2**t)
        rate = correction / (1 - b1**t)
        e = eps if keras else eps * correction
        updates = jax.tree.map(lambda m, v: rate * m / (jnp.sqrt(v) + e), mu, nu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def scale_by_rate(
    learning_rate: float, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Multiplies updates by the negative learning rate times a factor of each step.

    The rate is data, in the state: a sweep over learning rates compiles once.
    """

    def scale(learning_rate: jax.Array) -> optax.GradientTransformation:
        return optax.scale_by_schedule(lambda step: -learning_rate * schedule(step))

    return optax.inject_hyperparams(scale)(learning_rate=learning_rate)


class AverageState(NamedTuple):
    """The state of `average_params`."""

    inner: Any  # of the averaged optimizer
    total: Any  # weighted sum of the parameters
    weight: jax.Array  # sum of the weights, 1 after many steps


def average_params(
    tx: optax.GradientTransformation, decay: float
) -> optax.GradientTransformation:
    """Adds an exponential moving average of the parameters to an optimizer.

    Step `i` of `t` has the weight `(1-decay) * decay^(t-i)`, divided by the sum of all
    weights, so that the initial parameters have none. `final_variables` returns it.
    """

    def init(params: Any) -> AverageState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AverageState(tx.init(params), zeros, jnp.zeros((), jnp.float32))

    def update(
        grads: Any, state: AverageState, params: Any = None
    ) -> tuple[Any, AverageState]:
        updates, inner = tx.update(grads, state.inner, params)

        def add(total: Any, value: Any) -> Any:
            return total + (1 - decay) * (value - total)

        total = jax.tree.map(add, state.total, optax.apply_updates(params, updates))
        return updates, AverageState(inner, total, add(state.weight, 1.0))

    return optax.GradientTransformation(init, update)


def final_variables(state: TrainState) -> dict[str, Any]:
    """Returns the variables to evaluate and save: with averaged parameters, if any.

    The state is of one or of several seeds. Before the first step an average is 0.
    """
    average = state.opt_state
    if not isinstance(average, AverageState):
        return state.variables

    weight = jnp.where(average.weight == 0.0, 1.0, average.weight)  # 0 / 0 is NaN

    def divide(total: jax.Array, param: jax.Array) -> jax.Array:
        shape = (-1,) + (1,) * (total.ndim - 1) if weight.ndim else ()
        return (total / weight.reshape(shape)).astype(param.dtype)

    params = jax.tree.map(divide, average.total, state.params)
    return state._replace(params=params).variables


def create_schedule(config: TrainConfig, steps: int) -> optax.Schedule:
    """Returns the factor of the learning rate at each step of a run of `steps`."""
    if config.schedule == "constant":
        return optax.constant_schedule(1.0)
    # Both schedules divide by the length of each phase: each needs at least one step.
    steps = max(steps, 3)
    warmup = min(max(round(config.warmup_fraction * steps), 1), steps - 2)
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup, steps)
    # Plus half a step, since optax truncates the product to an integer.
    fraction = (warmup + 0.5) / steps
    return optax.cosine_onecycle_schedule(steps, 1.0, pct_start=fraction)


def _muon(b1: float, b2: float) -> optax.GradientTransformation:
    """Muon for kernels, a convolution's as a matrix `[k*k*C,F]`; Adam for biases.

    Updates of kernels have the size of Adam's, so that learning rates are comparable.
    Their sign is that of the gradients.
    """

    def dimensions(params: Any) -> Any:
        def of_leaf(leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
            if leaf.ndim < 2:
                return None
            inputs = tuple(range(leaf.ndim - 1))
            return optax.contrib.MuonDimensionNumbers(inputs, leaf.ndim - 1)

        return jax.tree.map(of_leaf, params)

    return optax.contrib.muon(
        -1.0,  # which it negates: `scale_by_rate` has the learning rate
        muon_weight_dimension_numbers=dimensions,
        consistent_rms=0.2,
        adam_b1=b1,
        adam_b2=b2,
    )


def create_optimizer(config: TrainConfig, steps: int) -> optax.GradientTransformation:
    """Returns the optimizer of a config for a run of `steps` steps."""
    transforms, betas = [], (config.beta1, config.beta2)
    if config.clip_norm is not None:
        transforms.append(optax.clip_by_global_norm(config.clip_norm))
    if config.optimizer == "sgd":
        if config.momentum:
            transforms.append(optax.trace(config.momentum, nesterov=config.nesterov))
    elif config.optimizer == "keras_adam":
        transforms.append(scale_by_adam(*betas, eps=1e-7, keras=True))
    elif config.optimizer in ("adam", "adamw"):
        transforms.append(scale_by_adam(*betas))
    if config.optimizer == "adamw":
        transforms.append(optax.add_decayed_weights(config.weight_decay))
    if config.optimizer == "muon":
        transforms.append(_muon(*betas))
    schedule = create_schedule(config, steps)
    transforms.append(scale_by_rate(config.learning_rate, schedule))
    tx = optax.chain(*transforms)
    if config.freeze:

        def labels(params: Any) -> dict[str, str]:
            return {name: "no" if name in config.freeze else "yes" for name in params}

        tx = optax.partition({"yes": tx, "no": optax.set_to_zero()}, labels)
    return tx if config.ema is None else average_params(tx, config.ema)
