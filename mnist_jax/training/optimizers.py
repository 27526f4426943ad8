"""Optax optimizers and learning rate schedules for a config."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mnist_jax.config import TrainConfig
from mnist_jax.errors import InputError


def scale_by_adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, keras: bool = False
) -> optax.GradientTransformation:
    """Adam with a single division for each parameter.

    The update of `optax.scale_by_adam`, `m/(1-b1^t) / (sqrt(v/(1-b2^t)) + eps)`, has
    three, which cost an MLP 8 % of its step at batch 32 (docs/performance.md). It is
    equal to `rate * m / (sqrt(v) + e)`, where `rate = sqrt(1-b2^t) / (1-b1^t)` and
    `e = eps * sqrt(1-b2^t)`.

    Args:
        b1: decay rate of the mean of the gradients, `m`.
        b2: decay rate of the mean of their squares, `v`.
        eps: added to the square root.
        keras: whether to add `eps` before the bias correction, as Keras does:
            `e = eps`. With raw pixels the two diverge within 30 steps. Source:
            keras/src/optimizers/adam.py (Keras 3.15).
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
        t = count.astype(jax.tree.leaves(grads)[0].dtype)
        correction = jnp.sqrt(1 - b2**t)
        rate = correction / (1 - b1**t)
        e = eps if keras else eps * correction
        updates = jax.tree.map(lambda m, v: rate * m / (jnp.sqrt(v) + e), mu, nu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def create_schedule(config: TrainConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate schedule for a run of `steps` steps.

    Raises:
        InputError: there are too many steps for a schedule's 32-bit counter.
    """
    peak = config.learning_rate
    if config.schedule == "constant":
        return optax.constant_schedule(peak)
    if steps >= 2**31:
        raise InputError(
            f"--epochs={config.epochs} with --batch_size={config.batch_size} makes "
            f"{steps} steps, but --schedule={config.schedule} allows at most "
            "2147483647; give fewer epochs or --schedule=constant"
        )
    # Both schedules divide by the length of each phase: each needs at least one step.
    steps = max(steps, 3)
    warmup = min(max(round(config.warmup_fraction * steps), 1), steps - 2)
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps)
    # Plus half a step, since optax truncates the product to an integer.
    fraction = (warmup + 0.5) / steps
    return optax.cosine_onecycle_schedule(steps, peak, pct_start=fraction)


def create_optimizer(config: TrainConfig, steps: int) -> optax.GradientTransformation:
    """Returns the optimizer of a config for a run of `steps` steps."""
    transforms = []
    if config.clip_norm is not None:
        transforms.append(optax.clip_by_global_norm(config.clip_norm))
    if config.optimizer == "sgd":
        if config.momentum:
            transforms.append(optax.trace(config.momentum, nesterov=config.nesterov))
    elif config.optimizer == "keras_adam":
        transforms.append(scale_by_adam(eps=1e-7, keras=True))
    else:
        transforms.append(scale_by_adam())
    if config.optimizer == "adamw":
        transforms.append(optax.add_decayed_weights(config.weight_decay))
    transforms.append(optax.scale_by_learning_rate(create_schedule(config, steps)))
    tx = optax.chain(*transforms)
    if not config.freeze:
        return tx

    def labels(params: Any) -> dict[str, str]:
        return {name: "no" if name in config.freeze else "yes" for name in params}

    return optax.partition({"yes": tx, "no": optax.set_to_zero()}, labels)
