"""Whether a network's evaluation of an image depends on the batch it is in."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mnist_jax.data.pixels import Preprocess
from mnist_jax.models.networks import apply_model
from mnist_jax.training.epochs import jit


def fill_zeros(params: Any) -> Any:
    """Returns parameters with noise in place of leaves that are all 0.

    Behind a kernel that starts at 0, all images would have the same logits.
    """
    rng = np.random.default_rng(0)

    def fill(leaf: np.ndarray) -> np.ndarray:
        noise = 0.05 * rng.standard_normal(leaf.shape)
        return np.where(np.any(leaf), leaf, noise).astype(leaf.dtype)

    return jax.tree.map(fill, jax.device_get(params))


def differ(logits: np.ndarray, others: np.ndarray) -> bool:
    """Returns whether logits differ by more than their rounding in bfloat16.

    That is 0.4 % in each operation, and in other batches or programs another 0.4 %.
    """
    with np.errstate(invalid="ignore"):  # infinite ones
        return bool(np.abs(logits - others).max() > 0.02 * np.abs(others).max())


def find_batch_dependence(
    model: nn.Module,
    preprocess: Preprocess,
    params: Any,
    images: np.ndarray,
    sizes: Sequence[int] = (1,),
) -> str:
    """Returns what is wrong if an image's logits in evaluation depend on its batch.

    Args:
        model: any linen module.
        preprocess: converts pixels to float32.
        params: its initial parameters.
        images: `[N,H,W] uint8`.
        sizes: of the batches to compare with the batch of all images.

    Returns:
        One sentence, or "" if nothing is wrong, or the logits are not finite.
    """
    params = fill_zeros(params)

    @partial(jit, quick=True)
    def run(params: Any, images: jax.Array) -> jax.Array:
        logits, _ = apply_model(model, params, preprocess(images), train=False)
        return logits.astype(jnp.float32)

    whole = np.asarray(run(params, images))
    for size in sizes:
        starts = range(0, len(images) - size + 1, size)
        parts = np.concatenate([run(params, images[i : i + size]) for i in starts])
        if differ(parts, whole[: len(parts)]):
            return (
                "in evaluation the logits of an image depend on the batch: they differ "
                f"in batches of {size} and {len(images)} images; turn noise off, let "
                "batch normalization use running averages, and give nn.Conv and "
                "pooling a channel axis, as in images[..., None]"
            )
    return ""
