"""What a trained network says of single images."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pandas as pd
from flax import linen as nn


def make_predict(
    model: nn.Module, scale: Callable[[jax.Array], jax.Array]
) -> Callable[[Any, np.ndarray], jax.Array]:
    """Returns the compiled function (params, images) -> probabilities.

    Its images are `[N,28,28] uint8`, its softmax probabilities `[N,10] float32`; it is
    compiled at its first call with an N.
    """

    @jax.jit
    def predict(params: Any, images: jax.Array) -> jax.Array:
        logits: Any = model.apply({"params": params}, scale(images))
        return jax.nn.softmax(logits)

    return predict


def predict_probabilities(
    model: nn.Module,
    params: Any,
    scale: Callable[[jax.Array], jax.Array],
    images: np.ndarray,
) -> np.ndarray:
    """Returns the softmax probabilities `[N,10]` of images `[N,28,28] uint8`.

    At most 1,000 images are predicted at once, since a CNN's layers keep about 100 kB
    of each.
    """
    predict = make_predict(model, scale)
    parts = [images[at : at + 1_000] for at in range(0, len(images), 1_000)]
    return np.concatenate([np.asarray(predict(params, part)) for part in parts])


def prediction_frame(
    probabilities: np.ndarray, labels: np.ndarray | None = None
) -> pd.DataFrame:
    """Returns one row per image: ten probabilities, the arg max and any known truth.

    >>> prediction_frame(np.eye(10)[[3]], np.array([5]))[["predicted", "truth"]]
       predicted  truth
    0          3      5
    """
    frame = pd.DataFrame(probabilities, columns=[f"p{c}" for c in range(10)])
    frame["predicted"] = probabilities.argmax(axis=1)
    if labels is not None:
        frame["truth"] = labels
    return frame
