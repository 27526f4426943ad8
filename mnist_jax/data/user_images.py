"""Converts images of digits to MNIST's format, with the steps of MNIST's authors.

They resized each digit to fit 20x20 pixels, keeping its aspect ratio, which produced
grey levels, and placed its centre of mass in the middle of 28x28 (LeCun, Bottou,
Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition", 1998,
section III A). Before these steps, the background is mapped to 0 and the ink to 255.
"""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from scipy import ndimage

from mnist_jax.errors import InputError

MAX_BYTES = 50_000_000
MAX_SIDE = 10_000
MAX_PIXELS = 50_000_000  # decoding takes up to 13 bytes per pixel, 650 MB in total
# Enough for a digit; larger images are first reduced to at most this side length.
_WORKING_SIDE = 1_500
# Grey levels (of 255) between background and ink; with less, an image is blank.
_MIN_CONTRAST = 32

_READERS = {b"\x89PNG\r\n\x1a\n": PngImageFile, b"\xff\xd8\xff": JpegImageFile}


def read_digit(path: Path) -> np.ndarray:
    """Reads the digit in a PNG or JPEG file; see `digit_from_bytes`.

    Raises:
        InputError: the file cannot be read, or see `digit_from_bytes`.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"cannot read the image {path}: {error.strerror}; give a PNG or JPEG file"
        ) from error
    return digit_from_bytes(content, str(path))


def digit_from_bytes(content: bytes, name: str) -> np.ndarray:
    """Converts a PNG or JPEG image of a digit to MNIST's format.

    Args:
        content: the bytes of the file. It shows one digit on a uniform background, dark
            on light or light on dark.
        name: the name of the image in error messages.

    Returns:
        `[28,28] uint8`, 0 is background and 255 ink.

    Raises:
        InputError: the image is not PNG or JPEG, damaged, too large or blank.
    """
    return normalize_digit(_decode_grey(content, name), name)


def normalize_digit(grey: np.ndarray, name: str = "the image") -> np.ndarray:
    """Converts a grey image of a digit to MNIST's format.

    Args:
        grey: `[H,W]`, 0..255 from black to white.
        name: the name of the image in error messages.

    Returns:
        `[28,28] uint8`, 0 is background and 255 ink.

    Raises:
        InputError: the image is blank.

    >>> image = np.full((90, 60), 255)
    >>> image[10:70, 20:30] = 0  # a one
    >>> digit = normalize_digit(image)
    >>> digit.shape, np.flatnonzero(digit.any(axis=1))[[0, -1]]
    ((28, 28), array([ 4, 23]))
    """
    ink = _find_ink(grey, name)
    return _centre(_fit_box(_thicken(_crop(ink))))


def _decode_grey(content: bytes, name: str) -> np.ndarray:
    """Decodes to grey `[H,W] float32`, 0..255, upright and of limited size."""
    if len(content) > MAX_BYTES:
        raise InputError(
            f"{name} has more than the allowed {MAX_BYTES:,} bytes; save it with fewer "
            "pixels"
        )
    readers = [r for magic, r in _READERS.items() if content.startswith(magic)]
    if not readers:
        raise InputError(
            f"{name} is neither a PNG nor a JPEG image, whatever its extension; "
            "save it as one of them"
        )
    # Ignores warnings such as about corrupt EXIF data; damaged pixels raise below.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # Not Image.open, which checks the size itself, at first with a warning.
            with readers[0](io.BytesIO(content)) as image:
                _check_size(image.size, name)
                return _to_grey(image)
        except InputError:
            raise
        except Exception as error:  # Pillow's parsers raise many types
            reason = str(error).rstrip(".") or type(error).__name__
            raise InputError(
                f"{name} is damaged and cannot be decoded ({reason}); save it again as "
                "PNG or JPEG"
            ) from error


def _check_size(size: tuple[int, int], name: str) -> None:
    """Rejects, from the header alone, images that would take too much memory."""
    width, height = size
    if max(size) > MAX_SIDE or width * height > MAX_PIXELS:
        raise InputError(
            f"{name} is {width:,} pixels wide and {height:,} high; at most "
            f"{MAX_SIDE:,} per side and {MAX_PIXELS:,} in total are allowed; scale it "
            "down"
        )


def _to_grey(image: Image.Image) -> np.ndarray:
    """Decodes an opened image to grey: reduced, upright, without transparency."""
    # Decodes a JPEG at 1/2, 1/4 or 1/8 of its size.
    image.draft("L", (_WORKING_SIDE, _WORKING_SIDE))
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # 16 bits, which "L" would clip at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    transparent = image.has_transparency_data
    image = image.convert("LA" if transparent else "L")
    image = image.reduce(max(1, -(-max(image.size) // _WORKING_SIDE)))
    values = np.asarray(image, np.float32)
    if not transparent:
        return values
    grey, alpha = values[..., 0], values[..., 1] / 255
    # A contrasting background: light ink on transparency is meant for a dark page.
    visible = max(float(alpha.sum()), 1.0)
    background = 255.0 if float((grey * alpha).sum()) / visible < 128 else 0.0
    return grey * alpha + background * (1 - alpha)


_INK_FLOOR = 0.25  # fraction of a stroke's level; blur and JPEG artefacts are below it


def _find_ink(grey: np.ndarray, name: str) -> np.ndarray:
    """Returns the amount of ink `[H,W]`: 0 on the background, about 1 in a stroke.

    The background is estimated from the border, as uniform or a linear gradient.
    """
    grey = np.asarray(grey, np.float32)
    difference, noise = _subtract_background(grey)
    # 3x3 averages, so that a single noisy pixel does not count as ink.
    smooth = ndimage.uniform_filter(difference, 3, mode="nearest")
    ink = difference * (1 if smooth.max() > -smooth.min() else -1)
    contrast = float(np.abs(smooth).max())
    if contrast < _MIN_CONTRAST:
        raise InputError(
            f"{name} is blank: nothing in it differs from its background by more than "
            f"{contrast:.0f} of 255 grey levels, and at least {_MIN_CONTRAST} are "
            "needed; draw darker or take the photo in better light"
        )
    # The typical level of the strokes, not of their darkest pixel.
    level = float(np.median(ink[ink > contrast / 2]))
    floor = min(max(_INK_FLOOR, 4 * noise / level), 0.5)
    ink = np.clip(ink / level, 0, 1)
    ink[ink < floor] = 0
    return _remove_specks(ink)


def _subtract_background(grey: np.ndarray) -> tuple[np.ndarray, float]:
    """Subtracts a plane fitted to the border; also returns the border's noise level.

    Border pixels far from the plane are ink that reaches the border; each of the three
    fits excludes them.
    """
    height, width = grey.shape
    y, x = np.linspace(-1, 1, height), np.linspace(-1, 1, width)
    depth = max(1, min(height, width) // 25)
    border = np.ones(grey.shape, bool)
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
    return grey - background.astype(np.float32), spread


_SPECK = 0.03  # fraction of the ink of the largest connected component


def _remove_specks(ink: np.ndarray) -> np.ndarray:
    """Removes connected components of ink much smaller than the largest."""
    components, count = ndimage.label(ink > 0, np.ones((3, 3)))
    amounts = np.bincount(components.ravel(), ink.ravel(), minlength=count + 1)
    amounts[0] = 0
    return np.where((amounts >= _SPECK * amounts.max())[components], ink, 0)


_BOX = 20  # side of the box that MNIST's digits fit into
_FINE = 8 * _BOX  # max length of a digit's longer side while its strokes are measured


def _crop(ink: np.ndarray) -> np.ndarray:
    """Crops to the ink and reduces its longer side to at most `_FINE` pixels."""
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    longer = max(ink.shape)
    return ink if longer <= _FINE else _resize(ink, _FINE / longer)


_MIN_STROKE = 1.75  # pixels at size 20; 95 % of MNIST's test digits have wider strokes


def _thicken(ink: np.ndarray) -> np.ndarray:
    """Widens strokes thinner than MNIST's, which would turn pale when reduced."""
    half = float(ink.max()) / 2  # the thinnest strokes are already pale from `_crop`
    solid = np.pad(ink > half, 1)
    # In a stroke w pixels wide the nearest pixel outside is w/4 + 1/2 away on average.
    inside = ndimage.distance_transform_edt(solid)
    width = (4 * float(inside[solid].mean()) - 2) * _BOX / max(ink.shape)
    if width >= _MIN_STROKE:
        return ink
    radius = (_MIN_STROKE - width) / 2 * max(ink.shape) / _BOX
    margin = int(np.ceil(radius)) + 1
    ink = np.pad(ink, margin)
    outside = ndimage.distance_transform_edt(ink <= half)
    return _crop(np.maximum(ink, np.clip(radius + 1 - outside, 0, 1)))


def _fit_box(ink: np.ndarray) -> np.ndarray:
    """Resizes cropped ink to fit 20x20, keeping its aspect ratio."""
    return _resize(ink, _BOX / max(ink.shape))


def _resize(ink: np.ndarray, factor: float) -> np.ndarray:
    """Resizes ink by a factor, averaging when it shrinks."""
    height, width = (max(1, round(side * factor)) for side in ink.shape)
    image = Image.fromarray(np.asarray(ink, np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.HAMMING))


def _centre(ink: np.ndarray) -> np.ndarray:
    """Centres ink of at most 20x20 in `[28,28] uint8` by its centre of mass.

    Ink that would cross the edge is shifted inside.
    """
    canvas = np.zeros((28, 28), np.uint8)
    corner = [
        min(max(round(14 - centre), 0), 28 - side)
        for centre, side in zip(ndimage.center_of_mass(ink), ink.shape, strict=True)
    ]
    box = tuple(slice(c, c + s) for c, s in zip(corner, ink.shape, strict=True))
    canvas[box] = np.clip(np.rint(255 * ink), 0, 255).astype(np.uint8)
    return canvas
