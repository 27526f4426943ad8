"""Times Keras on one of its backends: a worker of `benchmarks.peers`.

python -m benchmarks.peers.keras_worker --model=cnn --arrays=FOLDER

`model.fit` trains on NumPy arrays that are scaled before timing starts. It shuffles all
images each epoch and tracks only the loss. Each setting rests on one or two runs, on a
machine that was not always idle (Keras 3.15.1 on TensorFlow 2.21.0 and JAX 0.10.2, two
cores of an AMD EPYC with AVX-512; 6,000 images and batch 128 unless stated):

- jit_compile is Keras's default, which on TensorFlow means no XLA here (CNN: 0.7-1.3 s,
  1.5 s with XLA; LSTM: no clear difference). It is on for the MLP at small batches,
  where XLA was faster (batch 32: 0.10 s instead of 0.13-0.14 s).
- steps_per_execution is 16 on TensorFlow (MLP, 12,000 images: 0.12-0.15 s instead of
  0.23-0.25 s with 1; CNN and LSTM: no clear difference). JAX unrolls the steps: 8 for
  the MLP (batch 32: 0.04 s instead of 0.07-0.08 s with 1), 2 for the LSTM (1.9 s
  instead of 2.05 s with 1), 1 for the CNN, where no other value was tried.
- No clear difference: a tf.data.Dataset instead of arrays (MLP, 12,000 images:
  0.11-0.12 s instead of 0.12-0.15 s) and LSTM(unroll=True).
"""

import os
import time
from typing import Any

from .worker import LEARNING_RATE, Arrays, Job, Measurement, preprocess, run_worker

VARIANTS = ("tensorflow", "jax")
_STEPS_PER_EXECUTION = {
    "tensorflow": {"mlp": 16, "lstm": 16, "cnn": 16},
    "jax": {"mlp": 8, "lstm": 2, "cnn": 1},
}


def measure(job: Job, arrays: Arrays) -> Measurement:
    """Trains and times a network; epoch times include shuffling."""
    os.environ["KERAS_BACKEND"] = job.variant  # read when keras is imported
    if job.variant == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(job.threads)
        tf.config.threading.set_inter_op_parallelism_threads(job.threads)
    import keras
    from keras import layers

    keras.utils.set_random_seed(job.seed)
    hidden_layers = {
        "mlp": lambda: [
            layers.Flatten(),
            layers.Dense(128, "relu"),
            layers.Dense(128, "relu"),
        ],
        "lstm": lambda: [
            layers.LSTM(128, return_sequences=True),
            layers.LSTM(128),
            layers.Dense(32, "relu"),
        ],
        "cnn": lambda: [
            layers.Reshape((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(64, "relu"),
        ],
    }
    model = keras.Sequential(
        [layers.Input((28, 28)), *hidden_layers[job.model](), layers.Dense(10)]
    )
    steps = _STEPS_PER_EXECUTION[job.variant][job.model]
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

    images, clock = preprocess(arrays.train_images), Clock()
    for epoch in range(job.epochs):
        # Waiting within `fit` makes TensorFlow's input pipeline sleep for up to 40 s in
        # the next epoch. A call of its own adds nothing to what the clock measures.
        model.fit(
            images,
            arrays.train_labels,
            batch_size=job.batch_size,
            initial_epoch=epoch,
            epochs=epoch + 1,
            shuffle=True,
            verbose=0,
            callbacks=[clock],
        )
        job.end_turn(len(seconds))
    logits = model.predict(preprocess(arrays.test_images), batch_size=1000, verbose=0)
    accuracy = float((logits.argmax(axis=1) == arrays.test_labels).mean())
    settings = f"jit_compile={model.jit_compile}, steps_per_execution={steps}"
    return Measurement(seconds, accuracy, model.count_params(), settings)


if __name__ == "__main__":
    run_worker(measure, VARIANTS)
