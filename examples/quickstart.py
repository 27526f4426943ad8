# %% [markdown]
# # Quickstart
#
# Train networks on MNIST, compare them, and look at the images that the CNN gets wrong.
# It takes about a minute on two CPU cores.

# %%
import numpy as np

import mnist_jax
from mnist_jax import TrainConfig
from mnist_jax.reporting.plots import digits_figure, history_figure
from mnist_jax.reporting.tables import history_frame

DATASET = "auto"  # MNIST; "digits" is a small dataset that needs no download
mnist_jax.setup()  # one JAX device per CPU core, and a cache of compiled programs

# %% [markdown]
# ## Train
#
# A `TrainConfig` holds every setting; each field is a flag of `experiments.train`.
# `train` returns one run per seed.

# %%
config = TrainConfig(model="cnn", dataset=DATASET, epochs=3, batch_size=64)
[run] = mnist_jax.train(config)
history_figure(history_frame(run.record))

# %% [markdown]
# ## Compare
#
# `compare` trains several configs over the same seeds and returns a pandas DataFrame.

# %%
configs = [TrainConfig(model=name, dataset=DATASET) for name in ("mlp", "lstm", "cnn")]
configs.append(TrainConfig(model="mlp", dataset=DATASET, hidden=(512, 256)))
table = mnist_jax.compare(configs)
columns = ["model", "settings", "parameters", "test_accuracy", "steady_epoch_seconds"]
print(table[columns].to_string(index=False))

# %% [markdown]
# ## Look at the mistakes
#
# Test images that the CNN gets wrong: its prediction, and the true digit.

# %%
test = mnist_jax.load_dataset(DATASET).test
predicted = run.predict(test.images).argmax(axis=1)
wrong = np.flatnonzero(predicted != test.labels)[:20]
captions = [f"{predicted[i]}, not {test.labels[i]}" for i in wrong]
figure = digits_figure(test.images[wrong], captions)
figure.savefig("mistakes.png")
figure
