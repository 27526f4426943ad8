"""Custom networks as the text of a file: usable ones, then one of each fault."""

from pathlib import Path

from mnist_jax.config import TrainConfig


def config_of(networks: Path, name: str, **changes: object) -> TrainConfig:
    """Returns the config of a network of a file, for an epoch on the digits."""
    changes = {"dataset": "digits", "epochs": 1, **changes}
    return TrainConfig(model=f"{networks}:{name}", **changes)


NETWORKS = """
import jax
import jax.numpy as jnp
from flax import linen as nn, nnx


def flat(images):
    return images.reshape(len(images), -1)


class Linear(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(10)(flat(images))


class Dropped(nn.Module):
    rate: float = 0.5

    @nn.compact
    def __call__(self, images, train):
        x = nn.Dense(32)(flat(images))
        return nn.Dense(10)(nn.Dropout(self.rate, deterministic=not train)(x))


class Half(nn.Module):
    @nn.compact
    def __call__(self, images):
        out = nn.Dense(10, dtype="bfloat16", param_dtype="bfloat16", name="out")
        return out(flat(images))


class Mixed16(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
        x = nn.Dense(8, kernel_init=init)(flat(images))
        init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("a", "b"))
        x = nn.Dense(8, kernel_init=init, param_dtype="bfloat16")(nn.PReLU()(x))
        running = self.variable("means", "x", jnp.zeros, 8, "bfloat16")
        if train and not self.is_initializing():
            running.value = running.value / 2 + x.mean(0).astype("bfloat16") / 2
        zero, last = dict(init_fn=lambda: 0.0), dict(reduce_fn=lambda old, new: new)
        self.sow("losses", "mean", x.mean(), **zero, **last)
        self.sow("intermediates", "x", x)
        return nn.Dense(10)(x - running.value[None])


class Rooted(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.Dense(8, name="first")(flat(images))
        x = nn.Dense(8, name="inner")(x)  # half of the roots are 0
        return nn.Dense(10, name="last")(jnp.sqrt(jnp.maximum(x, 0)))


class Precise(nn.Module):
    @nn.compact
    def __call__(self, images):
        scale = self.param("scale", nn.initializers.ones, (10,), float)
        return nn.Dense(10)(flat(images)) * scale[None]


class Counting(nn.Module):
    @nn.compact
    def __call__(self, images):
        self.variable("counters", "calls", lambda: jnp.zeros((), jnp.int32))
        return nn.Dense(10)(flat(images))


class Broken(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(10)(images @ images[:, :5])


class Empty(nn.Module):
    @nn.compact
    def __call__(self, images):
        return images[:, 0, :10]


class Classes(Linear):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(10)(flat(images)).argmax(-1)


class Squeezed(Linear):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(10)(flat(images)).squeeze()


class Nnx(nnx.Module):
    def __init__(self, width: int = 8, *, rngs: nnx.Rngs):
        self.first = nnx.Linear(784, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, momentum=0.8, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.last = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, images):
        x = self.norm(self.first(flat(images)))
        return self.last(self.dropout(nnx.relu(x)))


class Nested(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        first, last = nnx.Linear(784, 8, rngs=rngs), nnx.Linear(8, 10, rngs=rngs)
        first = nnx.Sequential(nnx.WeightNorm(first, rngs=rngs), nnx.relu)
        self.layers = nnx.List([first, nnx.SpectralNorm(last, rngs=rngs)])

    def __call__(self, images):
        first, last = self.layers
        return last(first(flat(images)))


class NnxTrain(Nnx):
    def __call__(self, images, train: bool = False):
        x = self.first(flat(images))
        return self.last(self.dropout(x, deterministic=not train))


class NnxLora(nnx.Module):
    def __init__(self, classes: int, rngs: nnx.Rngs):
        self.layer = nnx.LoRALinear(784, classes, lora_rank=2, rngs=rngs)

    def __call__(self, images):
        return self.layer(flat(images))


class NnxMixed(Nnx):
    def __call__(self, images):
        x = self.first(flat(images))
        return self.last(self.norm(x, use_running_average=False))


class AlwaysAverages(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(10)(nn.BatchNorm(use_running_average=True)(flat(images)))


class NotFinite(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(10)(1 / (flat(images) * 0))
"""
