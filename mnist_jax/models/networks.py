"""The networks, `[B,H,W] float32 -> logits [B,classes]`, created from a config."""

import functools
import operator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from mnist_jax.config import MODELS, ConvStage, TrainConfig, parse_conv_stage
from mnist_jax.data.types import Shapes
from mnist_jax.errors import InputError
from mnist_jax.models.activations import ACTIVATIONS
from mnist_jax.models.custom import (
    NNXNetwork,
    call_options,
    create_custom,
    network_sha256,
    rename_params,
)
from mnist_jax.models.layers import Dropout, LSTMLayer, resolve_impl
from mnist_jax.models.rewrite import Rewritten, without_rewriting

_glorot_uniform = nn.initializers.glorot_uniform()


def _dense_layers(
    x: jax.Array,
    hidden: tuple[int, ...],
    classes: int,
    rates: tuple[float, ...],
    train: bool,
    batch_offset: jax.Array | int,
) -> jax.Array:
    """Applies dense layers: hidden ones with dropout, the last one `[B,classes]`."""
    dense = functools.partial(nn.Dense, kernel_init=_glorot_uniform)
    for width, rate in zip(hidden, rates, strict=True):
        x = nn.relu(dense(width)(x))
        x = Dropout(rate)(x, train, batch_offset)
    return dense(classes)(x)


def _rates(dropout: tuple[float, ...], layers: int) -> tuple[float, ...]:
    """Returns one dropout rate per layer; a single rate is used for all layers."""
    return dropout * layers if len(dropout) == 1 else dropout


def _cropped(images: jax.Array, pixels: int) -> jax.Array:
    """Leaves out pixels at each border of images `[B,H,W]`."""
    _, height, width = images.shape
    if 2 * pixels >= min(height, width):
        raise InputError(
            f"--crop={pixels} leaves no pixel of images of {height}x{width}; use a "
            "smaller --crop"
        )
    return images[:, pixels : height - pixels, pixels : width - pixels]


class MLP(nn.Module):
    """Dense layers with ReLU.

    >>> model = MLP(hidden=(32,), classes=10)
    >>> count_params(model, (28, 28))
    25450
    """

    hidden: tuple[int, ...]
    classes: int
    dropout: tuple[float, ...] = (0.0,)
    crop: int = 0  # pixels to leave out at each border

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False, batch_offset: jax.Array | int = 0
    ) -> jax.Array:
        """Returns the logits `[B,classes]`.

        Args:
            images: `[B,H,W]`.
            train: whether to apply dropout.
            batch_offset: index of the first image in the whole batch, of which `images`
                may be one device's share; dropout masks depend on it.
        """
        x = _cropped(images, self.crop).reshape(len(images), -1)
        rates = _rates(self.dropout, len(self.hidden))
        return _dense_layers(x, self.hidden, self.classes, rates, train, batch_offset)


class LSTM(nn.Module):
    """LSTM layers over the rows of the image, then dense layers on the last state.

    >>> model = LSTM(units=(128,), activation="tanh", hidden=(), classes=10)
    >>> count_params(model, (28, 28))
    81674
    """

    # A CPU device splits its share of a batch into microbatches of at most this many
    # images: the arrays kept for the gradient stay in its caches (docs/performance.md).
    microbatch: ClassVar[int] = 32

    units: tuple[int, ...]
    activation: str
    hidden: tuple[int, ...]
    classes: int
    dropout: tuple[float, ...] = (0.0,)
    crop: int = 0
    impl: str = "plain"  # as are the next two, of `LSTMLayer`
    dtype: Any = jnp.float32
    unroll: bool = False

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False, batch_offset: jax.Array | int = 0
    ) -> jax.Array:
        """Returns the logits `[B,classes]`; see `MLP` for the arguments."""
        x, last = _cropped(images, self.crop), len(self.units) - 1
        rates = _rates(self.dropout, len(self.units) + len(self.hidden))
        for layer, units in enumerate(self.units):
            x = LSTMLayer(
                units,
                activation=self.activation,
                return_sequences=layer < last,
                impl=self.impl,
                dtype=self.dtype,
                unroll=self.unroll,
            )(x)
            x = Dropout(rates[layer])(x, train, batch_offset)
        rates = rates[len(self.units) :]
        return _dense_layers(x, self.hidden, self.classes, rates, train, batch_offset)


class CNN(nn.Module):
    """Convolution stages, then dense layers.

    >>> stages = ConvStage(32, pool=2), ConvStage(64, pool=2), ConvStage(64)
    >>> count_params(CNN(stages, hidden=(64,), classes=10), (28, 28))
    93322
    """

    microbatch: ClassVar[int] = 64  # as in `LSTM`

    stages: tuple[ConvStage, ...]
    hidden: tuple[int, ...]
    classes: int
    dropout: tuple[float, ...] = (0.0,)
    crop: int = 0

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False, batch_offset: jax.Array | int = 0
    ) -> jax.Array:
        """Returns the logits `[B,classes]`; see `MLP` for the arguments."""
        x = _cropped(images, self.crop)[..., None]
        for index, stage in enumerate(self.stages):
            x = nn.Conv(
                stage.filters,
                (stage.kernel, stage.kernel),
                stage.strides,
                stage.padding,
                kernel_init=_glorot_uniform,
            )(x)
            x = ACTIVATIONS[stage.activation](x)
            if stage.pool > 1:
                window = stage.pool, stage.pool
                x = nn.max_pool(x, window, window)
            if 0 in x.shape[1:]:
                raise InputError(
                    f"--conv: stage {index + 1} leaves no pixel; use fewer stages, "
                    "smaller kernels, less pooling or same padding"
                )
            if stage.bn:
                name = f"BatchNorm_{index}"
                x = nn.BatchNorm(not train, momentum=0.9, name=name)(x)
        rates = _rates(self.dropout, len(self.hidden))
        x = x.reshape(len(images), -1)
        return _dense_layers(x, self.hidden, self.classes, rates, train, batch_offset)


def create_model(config: TrainConfig, shapes: Shapes) -> nn.Module:
    """Returns the network that a config describes, for images of some shape."""
    impl, bfloat16 = resolve_impl(config.impl), config.precision == "bfloat16"
    if config.model in MODELS:
        model = _create(config, shapes, impl)
    else:
        sha256 = network_sha256(config)
        model = create_custom(config.model, sha256, config.model_args, shapes)
        check_network(f"--model={config.model}", model, shapes)
    # Raises if no pixel is left.
    layers = variable_shapes(model, shapes.image)["params"]
    if unknown := sorted(set(config.freeze) - layers.keys()):
        raise InputError(
            f"--freeze: this network has no layer {unknown[0]}; its layers are "
            f"{', '.join(layers)}"
        )
    # The MLP has nothing to replace, and LSTM layers have an implementation each.
    if bfloat16 or (impl != "plain" and not isinstance(model, MLP | LSTM)):
        return Rewritten(model, impl, bfloat16)  # type: ignore[return-value]
    return model


def _create(config: TrainConfig, shapes: Shapes, impl: str) -> nn.Module:
    """Returns a built-in network as Flax's users write it, but for LSTM layers."""
    layers = config.hidden, shapes.classes, config.dropout, config.crop
    if config.model == "mlp":
        return MLP(*layers)
    if config.model == "cnn":
        return CNN(tuple(map(parse_conv_stage, config.conv)), *layers)
    # On a GPU, the unrolled loop takes less than half the time
    # (docs/accelerators.md); on a CPU it would compile for long.
    unroll = impl == "gpu" or jax.default_backend() == "tpu"
    dtype = jnp.dtype(config.precision)
    return LSTM(config.lstm_units, config.activation, *layers, impl, dtype, unroll)


def init_model(
    model: nn.Module, key: jax.Array, image_shape: tuple[int, ...]
) -> dict[str, Any]:
    """Returns a network's initial variables by collection, such as `params`.

    Training updates the other collections without gradients, such as the `batch_stats`
    of `nn.BatchNorm`.
    """
    model = without_rewriting(model)
    if isinstance(model, LSTM):
        model = model.clone(impl="plain")  # the same parameters, traced faster
    images = jnp.zeros((1, *image_shape), jnp.float32)
    # An NNX module asks for the key of its dropout when it is created.
    keys = {"params": key, "dropout": key}
    # Without the boxes of `nn.with_partitioning`: our mesh has none of their axes.
    variables = nn.unbox(model.init(keys, images, **call_options(model, False)))
    return (
        rename_params(variables) if isinstance(model, NNXNetwork) else dict(variables)
    )


@functools.cache
def variable_shapes(model: nn.Module, image_shape: tuple[int, ...]) -> dict[str, Any]:
    """Returns the shapes and dtypes of a network's variables, as of `init_model`."""
    return jax.eval_shape(lambda: init_model(model, jax.random.key(0), image_shape))


def count_params(model: nn.Module, image_shape: tuple[int, ...]) -> int:
    """Counts a network's trained parameters without computing them."""
    params = variable_shapes(model, image_shape)["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def apply_model(
    model: nn.Module,
    variables: Any,
    images: jax.Array,
    *,
    train: bool,
    batch_offset: jax.Array | int | None = None,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, Any]:
    """Runs a network.

    Args:
        model: any linen module.
        variables: as of `init_model`.
        images: `[B,H,W] float32`.
        train: whether it is called for training.
        batch_offset: index of the first image in the whole batch, or None.
        dropout_key: key of the step, for training.

    Returns:
        Its outputs `[B,classes]`, and the updated collections besides the parameters:
        with `train=False`, or if there are none, an empty dict.
    """
    options: Any = call_options(model, train, batch_offset)
    if dropout_key is not None:
        options["rngs"] = {"dropout": dropout_key}
    stats = sorted(variables.keys() - {"params"})
    if train and stats:
        return model.apply(variables, images, mutable=stats, **options)
    logits: Any = model.apply(variables, images, **options)
    return logits, {}


@functools.cache
def check_network(name: str, model: nn.Module, shapes: Shapes) -> None:
    """Checks that a model maps images to logits, in evaluation and in training.

    What the model raises passes through. `name` is for messages.
    """

    def call(variables: Any, images: jax.Array, train: bool) -> Any:
        key = jax.random.key(0) if train else None
        logits, updated = apply_model(
            model, variables, images, train=train, dropout_key=key
        )
        trees = (each.get("batch_stats", {}) for each in (variables, updated))
        kept = any(map(operator.is_, *map(jax.tree.leaves, trees)))
        # A layer of an NNX network may be unused.
        if train and kept and not isinstance(model, NNXNetwork):
            raise InputError(
                f"{name}: no step updates its statistics; give batch normalization "
                "use_running_average=not train"
            )
        return logits

    # Evaluation with one image, whose axis a network may lose.
    for train, size in (False, 1), (True, 2):
        images = jax.ShapeDtypeStruct((size, *shapes.image), jnp.float32)
        try:
            variables = variable_shapes(model, shapes.image)
            traced = functools.partial(call, train=train)
            logits = jax.eval_shape(traced, variables, images)
        except Exception as error:  # whatever the user's code raises
            error.add_note(f"{name} was called on {images} with train={train}")
            raise
        shape = (size, shapes.classes)
        actual = getattr(logits, "shape", None)
        if actual != shape or not jnp.issubdtype(logits.dtype, jnp.floating):
            raise InputError(
                f"{name} must return logits {list(shape)} of a float type for "
                f"images {[size, *shapes.image]}; got {logits}"
            )
    if not variables.get("params"):
        raise InputError(f"{name} has no parameters; there is nothing to train")
    for path, leaf in jax.tree.leaves_with_path(variables):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise InputError(
                f"{name} has variables of type {leaf.dtype} in {path[0].key}; only "
                "those of a float type can be trained, or averaged over devices"
            )
