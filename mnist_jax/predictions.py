"""What a trained network says of single images."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pandas as pd
from flax import linen as nn


def predict_probabilities(
    model: nn.Module,
    params: Any,
    scale: Callable[[jax.Array], jax.Array],
    images: np.ndarray,
) -> np.ndarray:
    """Returns the softmax probabilities `[N,10]` of images `[N,28,28] uint8`."""

    @jax.jit
    def predict(params: Any, images: jax.Array) -> jax.Array:
        logits: Any = model.apply({"params": params}, scale(images))
        return jax.nn.softmax(logits)

    return np.asarray(predict(params, images))


def prediction_frame(probabilities: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """Returns one row per image: ten probabilities, the arg max and the truth.

    >>> prediction_frame(np.eye(10)[[3]], np.array([5]))[["predicted", "truth"]]
       predicted  truth
    0          3      5
    """
    frame = pd.DataFrame(probabilities, columns=[f"p{c}" for c in range(10)])
    frame["predicted"] = probabilities.argmax(axis=1)
    frame["truth"] = labels
    return frame
