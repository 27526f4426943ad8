"""The published systems compared with Keras, the framework of their tutorials.

Each preset is compared with the network that its tutorial builds (without the softmax,
whose cross-entropy clips probabilities on Keras's JAX backend): copied weights give the
same logits, and training steps on the same batches give the same losses.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.compilation import optimized_jit, users_jit
from scipy import stats

from benchmarks.published.systems import read_preset
from mnist_jax.config import TrainConfig
from mnist_jax.data.pixels import Preprocess
from mnist_jax.data.splits import split_dataset
from mnist_jax.data.types import IMAGE_SHAPE, MNIST, Dataset, Split
from mnist_jax.models.networks import create_model, init_model
from mnist_jax.training.checkpoints import named_leaves
from mnist_jax.training.optimizers import create_optimizer, scale_by_adam
from mnist_jax.training.steps import TrainState, cross_entropy, train_step

# Number of training steps and relative tolerance of their losses. The equations are
# compared in float64, by the plain implementation: 30 steps agree to 2e-14. The fast
# ones compute in float32, where rounding errors grow with the steps: Adam divides a
# gradient by its own size, so one that is mostly rounding error gives a step that is
# too. On MNIST and the digits, with two seeds, 4 steps agreed to 2e-7; 30 steps agreed
# to 1e-6 for most systems, but only to 2e-2 for av_lstm, where its other implementation
# stayed at 1e-7.
STEPS = {"float64": 10, "float32": 4}
RTOL = {"float64": 1e-10, "float32": 1e-5}
# Small in float64, where XLA:CPU compiles convolutions to naive loops.
BATCH_SIZES = {"float64": 4, "float32": 32}


def mlp(k: Any, *widths: int) -> list[Any]:
    hidden = [k.Dense(width, activation="relu") for width in widths]
    return [k.Flatten(), *hidden, k.Dense(10)]


def conv(k: Any, filters: int, **options: Any) -> Any:
    return k.Conv2D(filters, 3, activation="relu", **options)


# The layers of each system; `k` is keras.layers. av_lstm is without its dropout, since
# frameworks do not draw the same masks.
SYSTEMS: dict[str, Callable[[Any], list[Any]]] = {
    "av_dnn": lambda k: mlp(k, 128, 128),
    "av_lstm": lambda k: [
        k.LSTM(128, activation="relu", return_sequences=True),
        *(k.LSTM(128, activation="relu"), *mlp(k, 32)),
    ],
    "av_cnn": lambda k: [k.Conv2D(32, 3), k.MaxPooling2D(2), *mlp(k, 100)],
    "ml10_mlp_raw": lambda k: mlp(k, 32),
    "ml10_mlp": lambda k: mlp(k, 32),
    "ml10_cnn": lambda k: [
        *(conv(k, 32), k.MaxPooling2D(2), conv(k, 64), k.MaxPooling2D(2)),
        *(conv(k, 64), *mlp(k, 64)),
    ],
    "fj_fc": lambda k: mlp(k, 500, 100),
    "fj_cnn_pool": lambda k: [
        *(conv(k, 16, padding="same"), k.MaxPooling2D(2)),
        *(conv(k, 32, padding="same"), k.MaxPooling2D(2), *mlp(k)),
    ],
    "fj_cnn_stride": lambda k: [
        conv(k, 16, padding="same", strides=2),
        *(conv(k, 32, padding="same", strides=2), *mlp(k)),
    ],
    "cv_cnn": lambda k: [k.Conv2D(8, 3), k.MaxPooling2D(2), *mlp(k)],
}
ONE_HOT = {"cv_cnn"}


@contextlib.contextmanager
def keras_rules(keras: Any, dtype: str = "float32") -> Iterator[None]:
    """Sets Keras's precision, and allows rank promotion for its biases.

    In float32 it compiles without most optimizations, in a third of the time; float64
    needs them, since XLA compiles its convolutions to naive loops.
    """
    keras.config.set_floatx(dtype)  # for losses and the optimizer's settings
    keras.config.set_dtype_policy(dtype)  # for layers
    jax.config.update("jax_disable_most_optimizations", dtype == "float32")
    try:
        with jax.enable_x64(dtype == "float64"), jax.numpy_rank_promotion("allow"):
            yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


def read_system(name: str, impl: str = "auto") -> TrainConfig:
    """Returns a preset without its dropout."""
    return read_preset(name, impl=impl, dropout=(0.0,))[0]


def build_keras(keras: Any, name: str) -> Any:
    """Returns the tutorial's network with its initial weights, compiled."""
    keras.utils.set_random_seed(1)
    image = (28, 28, 1) if read_system(name).model == "cnn" else (28, 28)
    layers = keras.layers
    model = keras.Sequential([layers.Input(image), *SYSTEMS[name](layers)])
    optimizer: Any = keras.optimizers.Adam()  # with Keras's defaults
    if name == "fj_fc":
        optimizer = keras.optimizers.SGD(learning_rate=1e-3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if name in ONE_HOT:
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss)
    return model


def pair_weights(model: Any) -> Iterator[tuple[str, str, Any]]:
    """Yields our layer name, our parameter name and the variable of each weight."""
    kinds = {"Conv2D": "Conv", "LSTM": "LSTMLayer", "Dense": "Dense"}
    counts = dict.fromkeys(kinds.values(), 0)
    for layer in model.layers:
        if layer.weights:
            kind = kinds[type(layer).__name__]
            for variable in layer.weights:
                yield f"{kind}_{counts[kind]}", variable.name, variable
            counts[kind] += 1


def params_from_keras(model: Any) -> dict[str, dict[str, np.ndarray]]:
    """Returns a Keras network's weights as our parameters."""
    params: dict[str, dict[str, np.ndarray]] = {}
    for layer, name, variable in pair_weights(model):
        params.setdefault(layer, {})[name] = np.array(variable.value)
    return params


def params_to_keras(params: Any, model: Any) -> None:
    """Writes our parameters into a Keras network."""
    for layer, name, variable in pair_weights(model):
        variable.assign(params[layer][name])


def with_channel(model: Any, images: np.ndarray) -> np.ndarray:
    """Gives images the channel axis that a Keras convolution needs."""
    return images.reshape(-1, *model.input_shape[1:])


@pytest.fixture(scope="module")
def keras(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Keras on its JAX backend, with its config file outside the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "jax")
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
        import keras
    assert keras.backend.backend() == "jax"
    return keras


@pytest.fixture(scope="module")
def real(request: pytest.FixtureRequest) -> Dataset:
    """MNIST if its files are available, otherwise the digits."""
    data_dir = os.environ.get("MNIST_JAX_DATA_DIR")
    return request.getfixturevalue("mnist" if data_dir else "digits")


class KerasRun(NamedTuple):
    """The inputs and results of training a system in Keras."""

    images: np.ndarray  # [steps,B,28,28]
    labels: np.ndarray  # [steps,B] or one-hot [steps,B,10]
    losses: np.ndarray  # [steps], each before its step
    params: tuple[Any, Any]  # before and after training


class System:
    """A published system in Keras and mnist_jax, built and trained at most once."""

    def __init__(self, name: str, keras: Any, real: Dataset) -> None:
        self.name, self.keras, self.real = name, keras, real
        # Dense layers have only one implementation.
        is_mlp = read_system(name).model == "mlp"
        self.impls = ("auto",) if is_mlp else ("plain", "cpu")
        with keras_rules(keras):
            self.model = build_keras(keras, name)
            self.initial = params_from_keras(self.model)

    @functools.cached_property
    def ours(self) -> Any:
        """The initial parameters in mnist_jax."""
        model = create_model(read_system(self.name), MNIST)
        init = jax.jit(partial(init_model, model, image_shape=IMAGE_SHAPE))
        return jax.tree.map(np.asarray, init(jax.random.key(0))["params"])

    @functools.cache  # noqa: B019 - a system lives as long as its tests
    def train(self, dtype: str) -> KerasRun:
        """Trains the network in Keras in a precision, from its initial weights."""
        config, real = read_system(self.name), self.real
        indices = np.random.default_rng(0).integers(
            0, len(real.train.labels), (STEPS[dtype], BATCH_SIZES[dtype])
        )
        labels = real.train.labels[indices]
        if self.name in ONE_HOT:
            labels = self.keras.utils.to_categorical(labels, 10)
        images = np.asarray(Preprocess(config.pixels)(real.train.images[indices]))
        with keras_rules(self.keras, dtype):
            model = self.model
            if dtype == "float64":
                model = build_keras(self.keras, self.name)
            params_to_keras(self.initial, model)
            before = params_from_keras(model)
            losses = [
                model.train_on_batch(with_channel(model, batch), targets)
                for batch, targets in zip(images, labels, strict=True)
            ]
            after = params_from_keras(model)
        return KerasRun(images, labels, np.array(losses), (before, after))


@pytest.fixture(scope="module", params=SYSTEMS)
def system(request: pytest.FixtureRequest, keras: Any, real: Dataset) -> System:
    """Each system in turn; pytest runs all tests of one system before the next."""
    return System(request.param, keras, real)


def test_logits_equal_keras(system):
    """Before training and after some steps, when biases are no longer zero."""
    run, model = system.train("float32"), system.model
    pixels = read_system(system.name).pixels
    images = np.asarray(Preprocess(pixels)(system.real.test.images[:256]))
    ours = {
        impl: jax.jit(create_model(read_system(system.name, impl), MNIST).apply)
        for impl in system.impls
    }
    for params in run.params:
        params_to_keras(params, model)
        with keras_rules(system.keras):
            want = model.predict_on_batch(with_channel(model, images))
        for impl, apply in ours.items():
            got = apply({"params": params}, images)
            np.testing.assert_allclose(
                got, want, rtol=0, atol=1e-5 * np.abs(want).max(), err_msg=impl
            )


def test_training_losses_equal_keras(system):
    key = jax.random.key(0)
    for impl, dtype in zip(system.impls, STEPS, strict=False):
        run, mask = system.train(dtype), np.ones(BATCH_SIZES[dtype], dtype)
        config, losses = read_system(system.name, impl), []
        # The fast layers compile as for users.
        jit = users_jit if impl == "cpu" else optimized_jit
        with jax.enable_x64(dtype == "float64"):
            model = create_model(config, MNIST)
            tx = create_optimizer(config, len(run.losses))
            step = jit(partial(train_step, model=model, tx=tx))
            state = TrainState(run.params[0], {}, tx.init(run.params[0]))
            batches = zip(run.images.astype(dtype), run.labels, strict=True)
            for images, labels in batches:
                state, metrics = step(state, images, labels, mask, key)
                losses.append(metrics.loss_sum / metrics.images)
            assert losses[-1].dtype == dtype
        np.testing.assert_allclose(losses, run.losses, rtol=RTOL[dtype], err_msg=impl)


def test_initial_parameters_are_distributed_as_in_keras(system):
    ours, theirs = system.ours, system.initial
    assert jax.tree.map(np.shape, ours) == jax.tree.map(np.shape, theirs)
    for path, got, want in zip(
        named_leaves(ours), jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True
    ):
        if path.endswith("bias"):  # zeros, but ones for the LSTM's forget gate
            np.testing.assert_array_equal(got, want, err_msg=path)
            continue
        # Of thirty arrays, one is below 0.01 by chance in every fourth version of JAX.
        assert stats.ks_2samp(got.ravel(), want.ravel()).pvalue > 1e-4, path
        if "recurrent" in path:
            for matrix in (got, want):
                product = matrix @ matrix.T
                np.testing.assert_allclose(product, np.eye(len(matrix)), atol=1e-5)
        else:
            area = np.prod(got.shape[:-2])  # 1 for a dense layer
            limit = np.sqrt(6 / (area * sum(got.shape[-2:])))  # Glorot's
            for matrix in (got, want):
                assert 0.97 * limit < np.abs(matrix).max() <= limit * (1 + 1e-6), path


def numbered(train: int, test: int) -> Dataset:
    """Returns a dataset of 1x4 pixels that are the bytes of the images' indices."""
    images = np.arange(train + test, dtype=np.int32).view(np.uint8).reshape(-1, 1, 4)
    labels = np.arange(train + test) % 10
    return Dataset(
        (images[:train], labels[:train]), (images[train:], labels[train:]), name="mnist"
    )


def indices(split: Split) -> np.ndarray:
    """Returns the indices of the images of a `numbered` dataset's split."""
    return np.ascontiguousarray(split.images).view(np.int32)[:, 0, 0]


@pytest.mark.parametrize(
    "size, fraction",
    [(60_000, 0.2), (60_000, 0.1), (1_437, 0.2), (10, 0.7), (7, 0.01), (60, 0.58)],
)
def test_validation_split_equals_keras(size, fraction, keras):
    """Includes cuts that are not whole numbers, or are so only up to rounding."""
    from keras.src.trainers.data_adapters import array_slicing

    want = array_slicing.train_validation_split(np.arange(size), fraction)
    config = TrainConfig(validation="fraction", validation_fraction=fraction)
    cut = split_dataset(numbered(size, 5), config)
    assert cut.validation is not None
    np.testing.assert_array_equal(indices(cut.train), want[0])
    np.testing.assert_array_equal(indices(cut.validation), want[1])


def test_scaled_pixels_equal_the_tutorials(keras, real):
    images = real.test.images[:500]
    wants = {
        "av_dnn": keras.utils.normalize(images, axis=1),
        "ml10_mlp_raw": images,
        "ml10_mlp": images / 255,
        "fj_fc": images.astype("float32") / 255.0,
        "cv_cnn": images,
    }
    for name, want in wants.items():
        got = Preprocess(read_system(name).pixels)(images)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("dtype, rtol", [("float32", 1e-5), ("float64", 1e-12)])
def test_adam_steps_equal_keras(dtype, rtol, keras):
    """With gradients from far below epsilon to far above it, and zero."""
    rng = np.random.default_rng(0)
    sizes = np.append(0.0, np.logspace(-12, 3, 16))
    grads = (rng.normal(size=(50, len(sizes))) * sizes).astype(dtype)
    with keras_rules(keras, dtype):
        variable = keras.Variable(np.zeros(len(sizes), dtype))
        adam = keras.optimizers.Adam(learning_rate=1.0)
        tx = scale_by_adam(eps=1e-7, keras=True)
        params = jnp.zeros(len(sizes), dtype)
        state = tx.init(params)
        for grad in grads:
            adam.apply([jnp.asarray(grad)], [variable])
            updates, state = tx.update(jnp.asarray(grad), state)
            params = params - updates
            want = np.asarray(variable.value)
            # A sum of updates has rounding errors relative to its partial sums.
            np.testing.assert_allclose(params, want, rtol=rtol, atol=rtol * 1e-3)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_losses_of_integer_and_one_hot_labels_equal_keras(scale, keras):
    """Includes logits as large as those from raw pixels."""
    rng = np.random.default_rng(0)
    logits = (scale * rng.normal(size=(64, 10))).astype(np.float32)
    labels = rng.integers(0, 10, 64)
    one_hot = np.eye(10, dtype=np.float32)[labels]
    with keras_rules(keras):
        losses, options = keras.losses, dict(from_logits=True, reduction=None)
        wants = [
            losses.SparseCategoricalCrossentropy(**options)(labels, logits),
            losses.CategoricalCrossentropy(**options)(one_hot, logits),
        ]
    gots = [cross_entropy(jnp.asarray(logits), target) for target in (labels, one_hot)]
    np.testing.assert_array_equal(*gots)
    for got, want in zip(gots, wants, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
