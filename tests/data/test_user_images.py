"""Images of digits are converted to MNIST's format or rejected with a message."""

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image, ImageDraw

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Dataset, Split
from mnist_jax.data.user_images import read_digit, read_image
from mnist_jax.errors import InputError
from mnist_jax.training.epochs import make_predict
from mnist_jax.training.fit import finish, fit
from mnist_jax.training.prepare import prepare


def seven(scale: float = 1.0, pen: float = 24) -> Image.Image:
    """Draws a seven, black on white, 300 pixels high at scale 1."""
    page = Image.new("L", (round(240 * scale), round(300 * scale)), 255)
    corners = [(50, 60), (190, 60), (110, 250)]
    line = [(x * scale, y * scale) for x, y in corners]
    ImageDraw.Draw(page).line(line, fill=0, width=round(pen * scale), joint="curve")
    return page


def as_file(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """Returns an image as the content of a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def digit_of(content: bytes) -> np.ndarray:
    """Reads the digit in the content of a file."""
    return read_digit(io.BytesIO(content))


def with_alpha(ink: int) -> Image.Image:
    """Draws the seven in `ink` on transparency, whose hidden grey is the opposite."""
    alpha = seven().point(lambda value: 255 - value)
    hidden = Image.new("L", alpha.size, 255 - ink)
    grey = Image.composite(Image.new("L", alpha.size, ink), hidden, alpha)
    return Image.merge("LA", (grey, alpha)).convert("RGBA")


def uneven_light() -> Image.Image:
    """Draws the seven on unevenly lit paper, with noise."""
    light = np.linspace(0.9, 0.5, 240) * np.linspace(1.0, 0.8, 300)[:, None]
    grain = np.random.default_rng(0).normal(0, 5, light.shape)
    picture = light * (40 + np.asarray(seven()) * (215 / 255)) + grain
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def rotated() -> bytes:
    """Returns the seven rotated, with the EXIF orientation of an upright camera."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return as_file(seven().rotate(90, expand=True), "JPEG", exif=exif)


def sixteen_bit(low: int, step: int) -> Image.Image:
    """Draws the seven in some of the values of a 16-bit image, as cameras do."""
    return Image.fromarray(low + step * np.asarray(seven()).astype(np.uint16))


def coloured(ink: str, background: str) -> Image.Image:
    """Draws the seven in colour."""
    paper = Image.new("RGB", seven().size, background)
    return Image.composite(paper, Image.new("RGB", seven().size, ink), seven())


def specked() -> Image.Image:
    """Draws the seven with specks of dust in two corners."""
    page = seven()
    for corner in ((3, 3), (230, 290)):
        ImageDraw.Draw(page).ellipse([*corner, corner[0] + 4, corner[1] + 4], 0)
    return page


IMAGES: dict[str, Callable[[], bytes]] = {
    "light on dark": lambda: as_file(seven().point(lambda value: 255 - value)),
    "small": lambda: as_file(seven(0.2)),
    "large": lambda: as_file(seven(12), "JPEG"),
    "colour": lambda: as_file(seven().convert("RGB"), "JPEG", quality=80),
    "black and white": lambda: as_file(seven().convert("1")),
    "palette": lambda: as_file(seven().quantize(4)),
    "16 bit": lambda: as_file(sixteen_bit(10_000, 160)),
    "12 bit": lambda: as_file(sixteen_bit(0, 16)),
    "yellow on white": lambda: as_file(coloured("yellow", "white"), "JPEG"),
    "blue on black": lambda: as_file(coloured("blue", "black")),
    "red on green": lambda: as_file(coloured("#f00", "#008200").quantize(8)),
    "dark on transparency": lambda: as_file(with_alpha(0)),
    "light on transparency": lambda: as_file(with_alpha(255)),
    "CMYK": lambda: as_file(seven().convert("CMYK"), "JPEG"),
    "rotated by a camera": rotated,
    "slanted light": lambda: as_file(uneven_light(), "JPEG", quality=80),
    "dust": lambda: as_file(specked()),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_all_kinds_of_images_give_the_same_digit(kind):
    pixels = digit_of(IMAGES[kind]())
    expected = digit_of(as_file(seven())).astype(float)
    # Resampling changes edges; a shift by one pixel would change half of the ink.
    assert np.abs(pixels - expected).sum() < 0.2 * expected.sum()


@pytest.mark.parametrize("pen", [1, 3, 24, 60])
def test_a_digit_has_the_size_position_and_ink_of_mnist_digits(pen):
    digit = digit_of(as_file(seven(pen=pen)))
    assert digit.shape == (28, 28) and digit.dtype == np.uint8 and digit.max() > 200
    assert np.ptp(np.flatnonzero(digit.any(axis=1))) == 19
    assert (digit > 128).any(axis=1).sum() >= 18
    for axis in (0, 1):
        centre = np.average(np.arange(28), weights=digit.sum(axis=1 - axis))
        assert 13.5 <= centre <= 14.5  # as in all of MNIST


def test_mnist_digits_are_almost_unchanged(mnist: Dataset):
    images = mnist.test.images[:200]
    read = [digit_of(as_file(Image.fromarray(image))) for image in images]
    same = [
        np.corrcoef(digit.ravel(), image.ravel())[0, 1]
        for digit, image in zip(read, images, strict=True)
    ]
    assert np.median(same) > 0.97 and min(same) > 0.5


def redraw(image: np.ndarray, rng: np.random.Generator) -> bytes:
    """Redraws a digit `[28,28] uint8` as a JPEG of random size, page and polarity."""
    size = int(rng.integers(40, 401))
    left, top, right, bottom = rng.integers(0, size // 2 + 1, 4).tolist()
    digit = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    page = Image.new("L", (left + size + right, top + size + bottom))
    page.paste(digit, (left, top))
    if rng.random() < 0.5:
        page = page.point(lambda value: 255 - value)
    return as_file(page, "JPEG", quality=80)


def test_a_network_reads_redrawn_digits_as_well_as_plain_ones(mnist: Dataset):
    images, labels = (array[:150] for array in mnist.test)
    few = dataclasses.replace(mnist, test=Split(images, labels))
    size = dict(train_size=6_000, validation="none", epochs=5, cpu_devices=1)
    experiment = prepare(TrainConfig(model="mlp", **size), few)
    [(_, params)] = finish(fit(experiment, [0]))
    rng = np.random.default_rng(0)
    read = [digit_of(redraw(image, rng)) for image in images]
    both = np.concatenate([images, np.stack(read)])
    predict = make_predict(experiment.model, experiment.preprocess)
    probabilities = np.asarray(predict(jax.device_get(params), both))
    hits = probabilities.argmax(axis=1).reshape(2, -1) == labels
    plain, redrawn = hits.mean(axis=1)
    assert plain > 0.9 and redrawn >= plain - 0.02


def test_a_file_without_a_digit_is_an_error(tmp_path: Path):
    path = tmp_path / "page.png"
    path.write_bytes(as_file(seven(pen=0)))
    with pytest.raises(InputError, match=r"page.png is blank"):
        read_digit(path)
    path.write_text("seven")
    with pytest.raises(OSError, match=r"cannot identify image file .*page.png"):
        read_digit(path)


def test_an_image_is_read_as_it_is_or_resized(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20)).astype(np.uint8)
    path = tmp_path / "own.png"
    for image in (Image.fromarray(pixels), Image.fromarray(pixels).convert("RGB")):
        image.save(path)
        for shape in (None, (12, 20)):
            np.testing.assert_array_equal(read_image(path, shape), pixels)
    small = read_image(str(path), (6, 5))
    assert small.shape == (6, 5) and small.dtype == np.uint8
    means = pixels.reshape(6, 2, 5, 4).mean(axis=(1, 3))
    assert np.abs(small - means).mean() < 20 < np.abs(255 - small - means).mean()
