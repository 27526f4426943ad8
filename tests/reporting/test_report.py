"""Tests of the report: its content, its errors, and its behaviour in a browser."""

import base64
import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.browser import Browser
from helpers.records import make_record

from benchmarks.readme import RESULTS as RECORDED
from mnist_jax.config import TrainConfig
from mnist_jax.data.pixels import Preprocess
from mnist_jax.data.published import SETS
from mnist_jax.data.types import IMAGE_SHAPE, MNIST, Dataset
from mnist_jax.errors import InputError
from mnist_jax.models.networks import create_model, init_model
from mnist_jax.records.schema import (
    DetailsRecord,
    MistakeRecord,
    RunRecord,
    read_jsonl,
    write_json,
)
from mnist_jax.reporting.pictures import run_pictures
from mnist_jax.reporting.predictions import mistake_image, run_details
from mnist_jax.reporting.report import (
    DETAILS,
    PICTURES,
    RESULTS,
    write_report,
)
from mnist_jax.training.run_dir import RECORD, TrainedRun

PIXELS = base64.b64encode(bytes(range(196)) * 4).decode()
WRONG = MistakeRecord(index=8, truth=5, predicted=6, probability=0.998, pixels=PIXELS)


def details_of(record: RunRecord) -> DetailsRecord:
    """Returns plausible details for the run of a record."""
    confusion = (np.eye(10, dtype=int) * 980 + np.eye(10, k=3, dtype=int)).tolist()
    filters = np.linspace(-1, 1, 72).reshape(3, 3, 8).tolist()
    is_cnn = record.config.model == "cnn"
    return DetailsRecord(confusion, [WRONG] * 5, filters if is_cnn else None)


def write_run(
    out: Path,
    record: RunRecord,
    details: DetailsRecord | None = None,
    name: str = "",
) -> None:
    """Writes the files of a run directory that the report reads, under `out`."""
    name = name or record.config.model
    folder = out / "runs" / name / f"seed{record.config.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RECORD, record)
    if details:
        write_json(folder / DETAILS, details)


@pytest.fixture(scope="module")
def records() -> list[RunRecord]:
    """Recorded runs of the three networks."""
    return read_jsonl(RunRecord, RECORDED / RESULTS)


@pytest.fixture(scope="module")
def out(tmp_path_factory, records) -> Path:
    """A folder with results and their report."""
    folder = tmp_path_factory.mktemp("results")
    for record in records:
        write_run(folder, record, details_of(record))
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


def test_a_report_without_details_lists_the_missing_pictures(tmp_path, records):
    config = dataclasses.replace(records[0].config, freeze=("<img src=x>",))
    note = "<b>NOT MNIST</b>"
    stand_in = dict(dataset="digits", dataset_note=note, checksum="", config=config)
    write_run(tmp_path, dataclasses.replace(records[0], **stand_in))
    page = write_report(tmp_path).read_text()
    assert "recorded without details.json" in page
    assert "&lt;b&gt;NOT MNIST" in page and "&lt;img src=x&gt;" in page


def test_a_click_on_a_header_sorts_and_sets_aria_sort(out: Path, browser: Browser):
    browser.open((out / "report.html").as_uri())
    state = (
        "return [[...document.querySelectorAll('tbody tr')].map(r => r.cells[0]"
        ".textContent), document.querySelectorAll('th')[arguments[0]].ariaSort]"
    )
    click = "document.querySelectorAll('th button')[arguments[0]].click();"
    titles = "return [...document.querySelectorAll('th')].map(cell => cell.textContent)"
    difference = browser.run(titles).index("difference")  # mlp "-", lstm +0.0083, cnn
    assert browser.run(state, 0) == [["cnn", "lstm", "mlp"], None]
    assert browser.run(click + state, difference) == [
        ["lstm", "cnn", "mlp"],
        "ascending",
    ]
    assert browser.run(click + state, difference) == [
        ["cnn", "lstm", "mlp"],
        "descending",
    ]
    assert browser.run(click + state, 0) == [["cnn", "lstm", "mlp"], "ascending"]
    assert browser.run("return document.querySelectorAll('[aria-sort]').length") == 1
    focus = "const b = document.querySelector('th button'); b.focus();"
    assert browser.run(focus + "return document.activeElement === b")
    assert browser.console() == []


def test_the_page_fits_a_phone_and_every_picture_loads(out: Path, browser: Browser):
    browser.resize(390, 844)
    browser.open((out / "report.html").as_uri())
    sizes = browser.run(
        "const images = [...document.images];"
        "return Promise.all(images.map(image => image.decode()))"
        ".then(() => images.map(image => [image.naturalWidth, image.alt]))"
    )
    assert len(sizes) == 15 and all(width > 100 and alt for width, alt in sizes)
    width = "return document.documentElement.scrollWidth"
    assert browser.run(width) <= 390
    # The names of the rows stay in view.
    scroll = "const t = document.querySelector('.table'); t.scrollLeft = 300;"
    cell = "return t.querySelector('td').getBoundingClientRect().x"
    assert 0 < browser.run(scroll + cell) < 30
    assert browser.console() == []


def test_an_empty_folder_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="holds no usable run; run"):
        write_report(tmp_path)


def test_details_count_all_test_images_and_rank_mistakes(digits: Dataset):
    record = make_record("cnn", conv=("4:pool2",), hidden=())
    config, preprocess = record.config, Preprocess(record.config.pixels)
    model = create_model(config, MNIST)
    variables = jax.jit(lambda key: init_model(model, key, IMAGE_SHAPE))(
        jax.random.key(0)
    )
    run = TrainedRun(config, record, variables, preprocess)
    details = run_details(run, digits.test)
    counts = np.array(details.confusion)
    assert counts.sum() == 360 and counts[3].sum() == (digits.test.labels == 3).sum()
    logits = model.apply(variables, preprocess(digits.test.images))
    right = np.argmax(logits, axis=1) == digits.test.labels
    assert np.trace(counts) == right.sum()
    confidences = [wrong.probability for wrong in details.worst]
    assert confidences == sorted(confidences, reverse=True)
    for wrong in details.worst:
        assert wrong.truth == digits.test.labels[wrong.index] != wrong.predicted
        image = mistake_image(wrong.pixels, IMAGE_SHAPE)
        assert (image == digits.test.images[wrong.index]).all()
    kernel = variables["params"]["Conv_0"]["kernel"][:, :, 0]
    np.testing.assert_allclose(details.filters, kernel, atol=1e-4)
    json.dumps(dataclasses.asdict(details))


def test_pictures_of_other_data_show_its_class_names(records):
    names = SETS["kmnist"].class_names
    record = dataclasses.replace(records[0], class_names=names)
    details = dataclasses.replace(details_of(record), filters=None)
    *_, confusion, worst = run_pictures("mlp", [record], {0: details})
    axes = confusion.figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()][:3] == ["o", "ki", "su"]
    assert worst.figure.axes[0].get_title().startswith("true ha\npred ma\n")
