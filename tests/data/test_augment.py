"""Augmentations, compared with plain NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from mnist_jax.config import parse_augmentation
from mnist_jax.data.augment import SMOOTHNESS, Augmentation, source_coordinates
from mnist_jax.data.types import IMAGE_SHAPE

IMAGES = np.random.default_rng(0).integers(1, 256, (400, 28, 28), dtype=np.uint8)
KEY = jax.random.key(3)


def augment(*names, images=IMAGES, offset=0):
    change = jax.jit(Augmentation(names).__call__)
    return np.asarray(change(images, KEY, offset))


def test_shifts_are_all_whole_shifts_filled_with_zeros():
    found = set()
    for image, shifted in zip(IMAGES, augment("shift2"), strict=True):
        matches = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if np.array_equal(ndimage.shift(image, (dy, dx), order=0), shifted)
        ]
        assert len(matches) == 1
        found |= set(matches)
    assert len(found) == 25  # 400 draws miss one of them once in 500,000 keys


def test_half_of_the_images_are_flipped():
    new = augment("flip")
    flipped = (new == IMAGES[:, :, ::-1]).all(axis=(1, 2))
    kept = (new == IMAGES).all(axis=(1, 2))
    assert np.all(flipped ^ kept) and 150 < sum(flipped) < 250


@pytest.mark.parametrize("name, side", [("erase", 8), ("erase5", 5)])
def test_one_square_is_erased(name, side):
    whole = 0
    for image, new in zip(IMAGES, augment(name), strict=True):
        rows, columns = np.nonzero(new == 0)
        box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert np.all(new[box] == 0) and max(new[box].shape) <= side
        whole += new[box].shape == (side, side)
        np.testing.assert_array_equal(np.where(new == 0, image, new), image)
    assert whole > 100  # others lie across the border


def test_deformed_images_are_interpolated_at_their_coordinates():
    names = ("rotate20", "zoom0.2", "elastic")
    sizes = dict(map(parse_augmentation, names))
    deformed = augment(*names, images=IMAGES[:5])
    for index, image in enumerate(IMAGES[:5]):
        key = jax.random.split(jax.random.fold_in(KEY, index), 4)[1]
        coordinates = np.asarray(source_coordinates(key, sizes, IMAGE_SHAPE))
        want = ndimage.map_coordinates(
            image.astype(np.float32), coordinates, order=1, mode="grid-constant"
        )
        np.testing.assert_allclose(deformed[index], want, atol=1e-2)


def offsets(sizes, count=200):
    """Returns each source pixel relative to the center `[N,28,28,2]`."""
    keys = jax.random.split(KEY, count)
    find = jax.vmap(lambda key: source_coordinates(key, sizes, IMAGE_SHAPE))
    return np.moveaxis(np.asarray(find(keys)), 1, -1) - 13.5


def test_rotations_keep_distances_and_stay_below_their_angle():
    before, after = offsets({}, 1)[0], offsets({"rotate": 20.0})
    distance = np.broadcast_to(np.linalg.norm(before, axis=-1), after.shape[:-1])
    np.testing.assert_allclose(np.linalg.norm(after, axis=-1), distance, rtol=1e-4)
    cosines = (before * after).sum(axis=-1) / distance**2
    angles = np.rad2deg(np.arccos(np.clip(cosines, -1, 1))).mean(axis=(1, 2))
    assert 15 < angles.max() <= 20.1 and angles.min() < 2


def test_zooms_scale_all_directions_alike():
    scales = 1 / (offsets({"zoom": 0.2}) / offsets({}, 1))
    np.testing.assert_allclose(scales, scales[:, :1, :1, :1] + 0 * scales, rtol=1e-4)
    assert 0.8 <= scales.min() < 0.85 and 1.15 < scales.max() <= 1.2001


def test_elastic_displacements_are_smoothed_uniform_noise():
    key = jax.random.split(KEY, 3)[2]
    noise = np.asarray(jax.random.uniform(key, (2, 28, 28), minval=-1.0))
    moved = source_coordinates(KEY, {"elastic": 34.0}, IMAGE_SHAPE)
    moved -= source_coordinates(KEY, {}, IMAGE_SHAPE)
    for got, field in zip(np.asarray(moved), noise, strict=True):
        want = 34 * ndimage.gaussian_filter(
            field, SMOOTHNESS, mode="constant", truncate=8
        )
        np.testing.assert_allclose(got, want, atol=0.02)


def test_an_image_is_augmented_by_its_index_in_the_batch():
    names = ("flip", "rotate10", "shift2", "erase")
    whole = augment(*names, images=IMAGES[:8])
    share = augment(*names, images=IMAGES[5:8], offset=5)
    np.testing.assert_allclose(share, whole[5:], atol=1e-3)
    same = np.repeat(IMAGES[:1], 8, axis=0)
    assert len(np.unique(augment("shift2", images=same), axis=0)) > 1


def test_no_augmentation_returns_the_same_array():
    images = jnp.asarray(IMAGES)
    assert Augmentation()(images, KEY) is images
