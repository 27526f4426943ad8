"""Times Keras on one of its backends: a worker of `benchmarks.peers`.

The variants are the backends: tensorflow and jax. `model.fit` trains on NumPy arrays
that are scaled before timing starts, and tracks only the loss. Settings were measured
with Keras 3.15.1 on two cores of an AMD EPYC with AVX-512: jit_compile is on for the
MLP at small batches only, where XLA was faster on TensorFlow (0.10 s an epoch instead
of 0.13 s); steps_per_execution was up to twice as fast as 1 for the MLP. A
tf.data.Dataset and LSTM(unroll=True) made no clear difference.
"""

import os
import time
from typing import Any

from mnist_jax.config import parse_conv_stage
from mnist_jax.data.types import Dataset

from .worker import LEARNING_RATE, Job, Measurement, preprocess, run_worker

JAX_STEPS_PER_EXECUTION = {"mlp": 8, "lstm": 2, "cnn": 1}  # which JAX unrolls


def measure(job: Job, dataset: Dataset) -> Measurement:
    """Trains and times a network; epoch times include shuffling."""
    steps = JAX_STEPS_PER_EXECUTION[job.model] if job.variant == "jax" else 16
    os.environ["KERAS_BACKEND"] = job.variant  # read when keras is imported
    import keras
    from keras import layers

    keras.utils.set_random_seed(job.seed)
    config, model = job.config, keras.Sequential([layers.Input((28, 28))])
    if job.model == "lstm":
        for units in config.lstm_units[:-1]:
            model.add(layers.LSTM(units, return_sequences=True))
        model.add(layers.LSTM(config.lstm_units[-1]))
    if job.model == "cnn":
        model.add(layers.Reshape((28, 28, 1)))
        for stage in map(parse_conv_stage, config.conv):
            model.add(layers.Conv2D(stage.filters, stage.kernel, activation="relu"))
            if stage.pool > 1:
                model.add(layers.MaxPooling2D(stage.pool))
    model.add(layers.Flatten())
    for width in config.hidden:
        model.add(layers.Dense(width, "relu"))
    model.add(layers.Dense(10))
    is_small_mlp = job.model == "mlp" and job.batch_size < 64
    model.compile(
        keras.optimizers.Adam(LEARNING_RATE),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=steps,
        jit_compile=True if is_small_mlp else "auto",
    )
    seconds: list[float] = []

    class Clock(keras.callbacks.Callback):
        """Times epochs; Keras has fetched the loss before on_epoch_end."""

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            seconds.append(time.perf_counter() - self.start)

    images, clock = preprocess(dataset.train.images), Clock()
    for epoch in range(job.epochs):
        # Waiting within `fit` makes TensorFlow's input pipeline sleep for up to 40 s in
        # the next epoch. A call of its own adds nothing to what the clock measures.
        model.fit(
            images,
            dataset.train.labels,
            job.batch_size,
            initial_epoch=epoch,
            epochs=epoch + 1,
            verbose=0,
            callbacks=[clock],
        )
        job.end_turn(len(seconds))
    logits = model.predict(preprocess(dataset.test.images), batch_size=1000, verbose=0)
    accuracy = float((logits.argmax(axis=1) == dataset.test.labels).mean())
    return Measurement(seconds, accuracy, model.count_params())


if __name__ == "__main__":
    run_worker(measure)
