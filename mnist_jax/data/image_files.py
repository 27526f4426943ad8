"""Decodes PNG and JPEG images from users, whatever they contain."""

import io
import warnings

import numpy as np
from PIL import Image, ImageFile, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from mnist_jax.errors import InputError

MAX_BYTES = 50_000_000
MAX_SIDE = 10_000
MAX_PIXELS = 50_000_000  # decoding takes up to 13 bytes per pixel, 650 MB in total
# Enough for a digit; larger images are first reduced to at most this side length.
_WORKING_SIDE = 1_500
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of RGB, as in Pillow and JPEG

_READERS = {b"\x89PNG\r\n\x1a\n": PngImageFile, b"\xff\xd8\xff": JpegImageFile}


def decode_image(content: bytes, name: str) -> np.ndarray:
    """Decodes a PNG or JPEG image, upright and of limited size.

    Args:
        content: the bytes of the file.
        name: the name of the image in error messages.

    Returns:
        `[H,W,1]` grey or `[H,W,3]` RGB, float32, 0..255 from black to white.

    Raises:
        InputError: the image is not PNG or JPEG, damaged or too large.
    """
    readers = [r for magic, r in _READERS.items() if content.startswith(magic)]
    if not readers or len(content) > MAX_BYTES:
        raise InputError(
            f"{name} is neither a PNG nor a JPEG image of at most {MAX_BYTES:,} bytes, "
            "whatever its extension; save it as one of them"
        )
    # Ignores warnings such as about corrupt EXIF data; damaged pixels raise below.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # Not Image.open, which checks the size itself, at first with a warning.
            with readers[0](io.BytesIO(content)) as image:
                width, height = image.size
                if max(image.size) <= MAX_SIDE and width * height <= MAX_PIXELS:
                    return _decode(image)
        except Exception as error:  # Pillow's parsers raise many types
            reason = str(error).rstrip(".") or type(error).__name__
            raise InputError(
                f"{name} is damaged and cannot be decoded ({reason}); save it again as "
                "PNG or JPEG"
            ) from error
    raise InputError(
        f"{name} is {width:,} pixels wide and {height:,} high; at most {MAX_SIDE:,} "
        f"per side and {MAX_PIXELS:,} in total are allowed; scale it down"
    )


def _decode(file: ImageFile.ImageFile) -> np.ndarray:
    """Decodes an opened image: reduced, upright, without transparency."""
    # Pillow decodes 16-bit grey levels, but only the high bytes of 16-bit colours. Of
    # 16 bits, cameras and scanners may use only 10 or 12.
    raw_modes = {str(tile.args) for tile in file.tile}
    # Decodes a JPEG at 1/2, 1/4 or 1/8 of its size.
    file.draft(None, (_WORKING_SIDE, _WORKING_SIDE))
    ImageOps.exif_transpose(file, in_place=True)
    image: Image.Image = file
    if image.mode.startswith("I"):
        levels = np.asarray(image)
        bits = max(8, int(levels.max()).bit_length())
        image = Image.fromarray((levels >> (bits - 8)).astype(np.uint8))
    transparent = image.has_transparency_data
    grey = image.mode in ("1", "L", "LA")
    mode = ("L" if grey else "RGB") + ("A" if transparent else "")
    if image.mode != mode:
        image = image.convert(mode)
    image = image.reduce(max(1, -(-max(image.size) // _WORKING_SIDE)))
    values = np.atleast_3d(np.asarray(image, np.float32))
    if raw_modes & {"RGB;16B", "RGBA;16B", "LA;16B"}:
        values *= 2.0 ** (8 - max(1, int(values.max()).bit_length()))
    if not transparent:
        return values
    colours, alpha = values[..., :-1], values[..., -1:] / 255
    # A contrasting background: light ink on transparency is meant for a dark page.
    visible = max(float(alpha.sum()), 1.0)
    brightness = float((luma(colours) * alpha[..., 0]).sum()) / visible
    background = 255.0 if brightness < 128 else 0.0
    return colours * alpha + background * (1 - alpha)


def luma(image: np.ndarray) -> np.ndarray:
    """Returns the grey levels `[H,W]` of a grey or RGB image `[H,W,C]`."""
    return image[..., 0] if image.shape[-1] == 1 else image @ _LUMA
