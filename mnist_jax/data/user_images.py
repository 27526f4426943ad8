"""Converts images of digits to MNIST's format, with the steps of MNIST's authors.

They resized each digit to fit 20x20 pixels, keeping its aspect ratio, which produced
grey levels, and placed its centre of mass in the middle of 28x28 (LeCun, Bottou,
Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition", 1998,
section III A). Before these steps, the background is mapped to 0 and the ink to 255.
"""

import os
from typing import IO, NamedTuple

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage

from mnist_jax.errors import InputError

File = str | os.PathLike[str] | IO[bytes]

_WORKING_SIDE = 1_500  # pixels; enough for a digit, so larger images are reduced
_MIN_CONTRAST = 32  # grey levels between background and ink; with less it is blank
_INK_FLOOR = 0.25  # fraction of a stroke's level; blur and JPEG artefacts are below it
_SPECK = 0.03  # fraction of the ink of the largest connected component
_BOX = 20  # side of the box that MNIST's digits fit into
_FINE = 8 * _BOX  # max length of a digit's longer side while its strokes are measured
_MIN_STROKE = 1.75  # pixels at size 20; 95 % of MNIST's test digits have wider strokes
_CORNERS = np.ones((3, 3))  # pixels that touch at corners are connected


class _Contrast(NamedTuple):
    """What a channel shows in front of its background."""

    difference: np.ndarray  # [H,W] from the background, positive in the ink
    contrast: float  # its maximum
    noise: float  # level of noise at the border


def read_image(file: File, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Reads a PNG or JPEG file as a grey image, which is not inverted or cropped.

    Args:
        file: its path, or a binary file.
        shape: height and width to resize it to; default: its own.

    Returns:
        `[H,W] uint8`, 0..255 from black to white.
    """
    grey = _luma(_decode(file))
    if shape is not None and grey.shape != shape:
        grey = _resize(grey, *shape)
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def read_digit(file: File) -> np.ndarray:
    """Reads a PNG or JPEG file with a digit, in MNIST's format.

    The file shows one digit on a uniform background that differs from it in brightness
    or colour. A blank file raises InputError.

    Returns:
        `[28,28] uint8`, 0 is background and 255 ink.
    """
    digit = _thicken(_crop(_find_ink(_decode(file), str(file))))
    return _centre(_scale(digit, _BOX / max(digit.shape)))


def _decode(file: File) -> np.ndarray:
    """Reads an image upright, without transparency and of limited size.

    Returns:
        `[H,W,3] float32`, RGB, 0..255 from black to white.
    """
    with Image.open(file, formats=("PNG", "JPEG")) as opened:
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):  # of 16 bits, cameras may use only 10 or 12
        levels = np.asarray(image)
        bits = max(8, int(levels.max()).bit_length())
        image = Image.fromarray((levels >> (bits - 8)).astype(np.uint8))
    image = image.convert("RGBA").reduce(-(-max(image.size) // _WORKING_SIDE))
    values = np.asarray(image, np.float32)
    colours, alpha = values[..., :3], values[..., 3:] / 255
    # A contrasting background: light ink on transparency is meant for a dark page.
    brightness = np.average(_luma(colours), weights=alpha[..., 0] + 1e-6)
    return colours * alpha + (255.0 if brightness < 128 else 0.0) * (1 - alpha)


def _luma(image: np.ndarray) -> np.ndarray:
    """Returns the grey levels of `[H,W,3]` RGB, as in JPEG; exact if it is grey."""
    red, green, blue = np.moveaxis(image, -1, 0)
    return green + 0.299 * (red - green) + 0.114 * (blue - green)


def _find_ink(image: np.ndarray, name: str) -> np.ndarray:
    """Returns the amount of ink `[H,W]`: 0 on the background, about 1 in a stroke.

    The background is estimated from the border, as uniform or a linear gradient.
    """
    brightness, *colours = (
        _subtract_background(channel)
        for channel in (_luma(image), *np.moveaxis(image, -1, 0))
    )
    # Yellow on white or blue on black differ little in brightness. Otherwise brightness
    # is better, since JPEG stores colours at half its resolution.
    most = max(colours, key=lambda colour: colour.contrast)
    shown = most if most.contrast > 2 * brightness.contrast else brightness
    ink, contrast, noise = shown
    if contrast < _MIN_CONTRAST:
        raise InputError(
            f"{name} is blank: nothing in it differs from its background by more than "
            f"{contrast:.0f} of 255 levels of brightness or colour, and at least "
            f"{_MIN_CONTRAST} are needed; draw darker or take the photo in better light"
        )
    # The typical level of the strokes, not of their darkest pixel.
    level = float(np.median(ink[ink > contrast / 2]))
    floor = min(max(_INK_FLOOR, 4 * noise / level), 0.5)
    ink = np.clip(ink / level, 0, 1)
    ink[ink < floor] = 0
    return _remove_specks(ink)


def _subtract_background(grey: np.ndarray) -> _Contrast:
    """Subtracts a plane fitted to the border.

    Border pixels far from the plane are ink that reaches the border; each of the three
    fits excludes them.
    """
    height, width = grey.shape
    y, x = np.linspace(-1, 1, height), np.linspace(-1, 1, width)
    border = np.ones(grey.shape, bool)
    depth = max(1, min(grey.shape) // 25)
    border[depth:-depth, depth:-depth] = False
    rows, columns = np.nonzero(border)
    values = grey[border].astype(np.float64)
    terms = np.stack([np.ones(len(values)), y[rows], x[columns]], axis=1)
    plane = np.array([np.median(values), 0.0, 0.0])
    spread = 0.0
    for _ in range(3):
        residuals = np.abs(values - terms @ plane)
        spread = 1.4826 * float(np.median(residuals))
        near = residuals <= max(16.0, 3 * spread)
        if near.sum() >= 3:
            plane = np.linalg.lstsq(terms[near], values[near], rcond=None)[0]
    background = plane[0] + plane[1] * y[:, None] + plane[2] * x
    difference = grey - background.astype(np.float32)
    light, dark = _max_of_means(difference), _max_of_means(-difference)
    sign = 1 if light > dark else -1
    return _Contrast(sign * difference, max(light, dark), spread)


def _max_of_means(ink: np.ndarray) -> float:
    """Returns the maximum over 3x3 means, since a single noisy pixel is no ink."""
    return float(ndimage.uniform_filter(ink, 3, mode="nearest").max())


def _remove_specks(ink: np.ndarray) -> np.ndarray:
    """Removes connected components of ink much smaller than the largest."""
    components, count = ndimage.label(ink > 0, _CORNERS)
    amounts = np.bincount(components.ravel(), ink.ravel(), minlength=count + 1)
    amounts[0] = 0
    return np.where((amounts >= _SPECK * amounts.max())[components], ink, 0)


def _crop(ink: np.ndarray) -> np.ndarray:
    """Crops to the ink and reduces its longer side to at most `_FINE` pixels."""
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return _scale(ink, min(1, _FINE / max(ink.shape)))


def _thicken(ink: np.ndarray) -> np.ndarray:
    """Widens strokes thinner than MNIST's, which would turn pale when reduced."""
    solid = np.pad(_solid(ink), 1)
    # In a stroke w pixels wide the nearest pixel outside is w/4 + 1/2 away on average.
    inside = ndimage.distance_transform_edt(solid)
    width = (4 * float(inside[solid].mean()) - 2) * _BOX / max(ink.shape)
    if width >= _MIN_STROKE:
        return ink
    radius = (_MIN_STROKE - width) / 2 * max(ink.shape) / _BOX
    margin = int(np.ceil(radius)) + 1
    ink = np.pad(ink, margin)
    outside = ndimage.distance_transform_edt(~_solid(ink))
    return _crop(np.maximum(ink, np.clip(radius + 1 - outside, 0, 1)))


def _solid(ink: np.ndarray) -> np.ndarray:
    """Returns where the ink is at least half as strong as anywhere."""
    return ink > ink.max() / 2  # the thinnest strokes are already pale from `_crop`


def _scale(ink: np.ndarray, factor: float) -> np.ndarray:
    """Resizes ink by a factor, keeping its aspect ratio."""
    return _resize(ink, *(max(1, round(side * factor)) for side in ink.shape))


def _resize(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes an image `[H,W]`, averaging when it shrinks."""
    image = Image.fromarray(np.asarray(values, np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.HAMMING))


def _centre(ink: np.ndarray) -> np.ndarray:
    """Centres ink of at most 20x20 in `[28,28] uint8` by its centre of mass.

    Ink that would cross the edge is shifted inside.
    """
    canvas, (height, width) = np.zeros((28, 28), np.uint8), ink.shape
    top, left = (
        min(max(round(14 - centre), 0), 28 - side)
        for centre, side in zip(ndimage.center_of_mass(ink), ink.shape, strict=True)
    )
    pixels = np.clip(np.rint(255 * ink), 0, 255)
    canvas[top : top + height, left : left + width] = pixels
    return canvas
