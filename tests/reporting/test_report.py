"""Tests of the report: its content, its errors, and its behaviour in a browser."""

import base64
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.browser import Browser
from helpers.records import recorded_runs
from helpers.trained import make_run

from mnist_jax.config import TrainConfig
from mnist_jax.data.published import SETS
from mnist_jax.data.types import IMAGE_SHAPE, Dataset
from mnist_jax.errors import InputError
from mnist_jax.records.schema import DetailsRecord, MistakeRecord, RunRecord, write_json
from mnist_jax.reporting.pictures import run_pictures
from mnist_jax.reporting.predictions import mistake_image, run_details
from mnist_jax.reporting.report import DETAILS, PICTURES, write_report
from mnist_jax.training.run_dir import RECORD

RECORDS = recorded_runs()
PIXELS = base64.b64encode(bytes(range(196)) * 4).decode()
WRONG = MistakeRecord(index=8, truth=5, predicted=6, probability=0.998, pixels=PIXELS)
DETAILS_OF_MLP = DetailsRecord(
    confusion=(np.eye(10, dtype=int) * 980 + np.eye(10, k=3, dtype=int)).tolist(),
    worst=[WRONG] * 5,
    filters=None,
)
FILTERS = np.linspace(-1, 1, 72).reshape(3, 3, 8).tolist()
DETAILS_OF_CNN = dataclasses.replace(DETAILS_OF_MLP, filters=FILTERS)


def write_run(out: Path, record: RunRecord, details: DetailsRecord | None) -> None:
    """Writes the files of a run directory that the report reads, under `out`."""
    folder = out / "runs" / record.config.model / f"seed{record.config.seed}"
    folder.mkdir(parents=True)
    write_json(folder / RECORD, record)
    if details:
        write_json(folder / DETAILS, details)


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """A folder with results and their report."""
    folder = tmp_path_factory.mktemp("results")
    for record in RECORDS:
        is_cnn = record.config.model == "cnn"
        write_run(folder, record, DETAILS_OF_CNN if is_cnn else DETAILS_OF_MLP)
    write_report(folder, [0.98, 0.999], TrainConfig(model="mlp", dataset="mnist"))
    return folder


def test_the_page_is_one_file_with_every_picture(out: Path):
    page = (out / "report.html").read_text()
    assert len(page) < 3e6
    assert not re.search(r'(?:src|srcset|href)="(?!data:)', page)
    # Two pictures of all networks, four per network, the CNN's filters.
    names = sorted(path.name for path in (out / PICTURES).iterdir())
    assert 2 * page.count("data:image/svg+xml") == len(names) == 2 * (2 + 3 * 4 + 1)
    assert "1-1-cnn-filters.png" in names and "1-accuracy-by-time.svg" in names
    assert "21 of 29,421 wrong" in page  # three seeds
    assert "s to 0.98</button>" in page and "Dashed lines are the targets" in page
    assert "NOT MNIST" not in page and "sha256" in page


def test_a_report_without_details_lists_the_missing_pictures(tmp_path):
    config = dataclasses.replace(RECORDS[0].config, freeze=("<img src=x>",))
    note = "<b>NOT MNIST</b>"
    stand_in = dict(dataset="digits", dataset_note=note, checksum="", config=config)
    write_run(tmp_path, dataclasses.replace(RECORDS[0], **stand_in), None)
    page = write_report(tmp_path).read_text()
    assert "recorded without details.json" in page
    assert "&lt;b&gt;NOT MNIST" in page and "&lt;img src=x&gt;" in page


def test_a_click_on_a_header_sorts_and_sets_aria_sort(out: Path, browser: Browser):
    browser.open((out / "report.html").as_uri())
    state = (
        "return [[...document.querySelectorAll('tbody tr')].map(r => r.cells[0]"
        ".textContent).join(), document.querySelectorAll('th')[arguments[0]].ariaSort]"
    )
    click = "document.querySelectorAll('th button')[arguments[0]].click();"
    titles = "return [...document.querySelectorAll('th')].map(cell => cell.textContent)"
    difference = browser.execute_script(titles).index(
        "difference"
    )  # mlp "-", lstm +0.0083, cnn
    assert browser.execute_script(state, 0) == ["cnn,lstm,mlp", None]
    for column, *expected in (
        (difference, "lstm,cnn,mlp", "ascending"),
        (difference, "cnn,lstm,mlp", "descending"),
        (0, "cnn,lstm,mlp", "ascending"),
    ):
        assert browser.execute_script(click + state, column) == expected
    assert (
        browser.execute_script("return document.querySelectorAll('[aria-sort]').length")
        == 1
    )
    focus = "const b = document.querySelector('th button'); b.focus();"
    assert browser.execute_script(focus + "return document.activeElement === b")
    assert browser.console() == []


def test_the_page_fits_a_phone_and_every_picture_loads(out: Path, browser: Browser):
    browser.emulate(390, 844)
    browser.open((out / "report.html").as_uri())
    sizes = browser.execute_script(
        "const images = [...document.images];"
        "return Promise.all(images.map(image => image.decode()))"
        ".then(() => images.map(image => [image.naturalWidth, image.alt]))"
    )
    assert len(sizes) == 15 and all(width > 100 and alt for width, alt in sizes)
    width = "return document.documentElement.scrollWidth"
    assert browser.execute_script(width) <= 390
    # The names of the rows stay in view.
    scroll = "const t = document.querySelector('.table'); t.scrollLeft = 300;"
    cell = "return t.querySelector('td').getBoundingClientRect().x"
    assert 0 < browser.execute_script(scroll + cell) < 30
    assert browser.console() == []


def test_an_empty_folder_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="holds no usable run; run"):
        write_report(tmp_path)


def test_details_count_all_test_images_and_rank_mistakes(digits: Dataset):
    run, test = make_run(model="cnn", conv=("4:pool2",), hidden=()), digits.test
    details = run_details(run, test)
    counts = np.array(details.confusion)
    assert counts.sum() == 360 and counts[3].sum() == (test.labels == 3).sum()
    predicted = run.predict(test.images).argmax(axis=1)
    assert counts[3, 5] == ((test.labels == 3) & (predicted == 5)).sum()
    assert np.trace(counts) == (predicted == test.labels).sum()
    confidences = [wrong.probability for wrong in details.worst]
    assert confidences == sorted(confidences, reverse=True)
    for wrong in details.worst:
        assert wrong.truth == test.labels[wrong.index] != wrong.predicted
        image = mistake_image(wrong.pixels, IMAGE_SHAPE)
        assert (image == test.images[wrong.index]).all()
    kernel = run.variables["params"]["Conv_0"]["kernel"][:, :, 0]
    np.testing.assert_allclose(details.filters, kernel, atol=1e-4)
    json.dumps(dataclasses.asdict(details))


def test_pictures_of_other_data_show_its_class_names():
    record = dataclasses.replace(RECORDS[0], class_names=SETS["kmnist"].class_names)
    *_, confusion, worst = run_pictures("mlp", [record], {0: DETAILS_OF_MLP})
    axes = confusion.figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()][:3] == ["o", "ki", "su"]
    assert worst.figure.axes[0].get_title().startswith("true ha\npred ma\n")
