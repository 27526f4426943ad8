"""The report: what it shows, what it refuses, and how it behaves in a real browser."""

import base64
import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from helpers.browser import Browser

from benchmarks.readme import RESULTS as RECORDED
from mnist_jax.config import default_config
from mnist_jax.data.datasets import Dataset
from mnist_jax.errors import InputError
from mnist_jax.models.networks import create_model, init_params
from mnist_jax.records.schema import TYPES, read_jsonl
from mnist_jax.reporting.plots import budget_figure, confusion_figure, history_figure
from mnist_jax.reporting.predictions import make_predict, mistake_image, run_details
from mnist_jax.reporting.report import DETAILS, PICTURES, RESULTS, write_report
from mnist_jax.reporting.tables import budget_frame, history_frame
from mnist_jax.training.experiment import make_scale

PIXELS = base64.b64encode(bytes(range(196)) * 4).decode()
WRONG = dict(place=8, truth=5, predicted=6, probability=0.998, pixels=PIXELS)


def details_of(record: dict) -> dict:
    """Returns details such as a run of that record would have."""
    confusion = (np.eye(10, dtype=int) * 980 + np.eye(10, k=3, dtype=int)).tolist()
    filters = np.linspace(-1, 1, 72).reshape(3, 3, 8).tolist()
    is_cnn = record["config"]["model"] == "cnn"
    identity = {name: record[name] for name in TYPES.keys() & record.keys()}
    return identity | dict(
        confusion=confusion, worst=[WRONG] * 5, filters=filters if is_cnn else None
    )


def write_lines(path: Path, values: list) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


@pytest.fixture(scope="module")
def records() -> list[dict]:
    """Recorded runs of the three networks."""
    return list(read_jsonl(RECORDED / RESULTS))


@pytest.fixture(scope="module")
def out(tmp_path_factory, records) -> Path:
    """A folder with results and their report."""
    folder = tmp_path_factory.mktemp("results")
    write_lines(folder / RESULTS, records)
    write_lines(folder / DETAILS, [details_of(record) for record in records])
    write_report(folder)
    return folder


def test_the_page_is_one_file_with_every_picture(out: Path):
    page = (out / "report.html").read_text()
    assert len(page) < 3e6
    assert not re.search(r'(?:src|srcset|href)="(?!data:)', page)
    # One picture of all networks, four of each, and the CNN's filters; light and dark.
    names = sorted(path.name for path in (out / PICTURES).iterdir())
    assert page.count("data:image/svg+xml") == len(names) == 2 * (1 + 3 * 4 + 1)
    assert "1-1-cnn-filters.png" in names and "1-accuracy-by-time.svg" in names
    assert "21 of 29,421 wrong" in page  # of three seeds
    assert "NOT MNIST" not in page and "sha256" in page


def test_a_report_without_details_says_what_is_missing(tmp_path, records):
    stand_in = {"dataset": "digits", "dataset_note": "<b>NOT MNIST</b>", "checksum": ""}
    bad = {"config": records[0]["config"] | {"optimizer": "<img src=x>"}}
    write_lines(tmp_path / RESULTS, [records[0] | stand_in | bad])
    page = write_report(tmp_path).read_text()
    assert "recorded without them (details.jsonl)" in page
    assert "&lt;b&gt;NOT MNIST" in page and "&lt;img src=x&gt;" in page


def test_sorting_works_by_click_and_tells_assistive_technology(
    out: Path, browser: Browser
):
    browser.open((out / "report.html").as_uri())
    state = (
        "return [[...document.querySelectorAll('tbody tr')].map(r => r.cells[0]"
        ".textContent), document.querySelectorAll('th')[arguments[0]].ariaSort]"
    )
    click = "document.querySelectorAll('th button')[arguments[0]].click();"
    assert browser.run(state, 1) == [["cnn", "lstm", "mlp"], None]
    assert browser.run(click + state, 1) == [["lstm", "cnn", "mlp"], "ascending"]
    assert browser.run(click + state, 1) == [["mlp", "cnn", "lstm"], "descending"]
    assert browser.run(click + state, 0) == [["cnn", "lstm", "mlp"], "ascending"]
    assert browser.run("return document.querySelectorAll('[aria-sort]').length") == 1
    focus = "const b = document.querySelector('th button'); b.focus();"
    assert browser.run(focus + "return document.activeElement === b")
    assert browser.console() == []


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_a_phone_and_every_picture_loads(
    out: Path, browser: Browser, dark: bool
):
    browser.resize(390, 844)
    browser.prefer_dark(dark)
    browser.open((out / "report.html").as_uri())
    sizes = browser.run(
        "const images = [...document.images];"
        "return Promise.all(images.map(image => image.decode()))"
        ".then(() => images.map(image => [image.naturalWidth, image.alt,"
        " image.currentSrc === image.src]))"
    )
    assert len(sizes) == 14
    for width, alt, light in sizes:
        assert width > 100 and alt and light != dark
    width = "return document.documentElement.scrollWidth"
    assert browser.run(width) <= 390
    assert browser.console() == []


def damaged(record: dict, **changes: object) -> dict:
    return {k: v for k, v in (record | changes).items() if v is not ...}


DAMAGES = {
    "empty folder": (None, ""),
    "empty file": ([], ""),
    "no object": ([[1]], "compare.jsonl line 1 is damaged"),
    "field missing": ([dict(test_accuracy=...)], "line 1 lacks test_accuracy"),
    "other type": ([dict(test_loss="low")], "line 1 has no usable test_loss"),
    "epochs": ([dict(epochs=[{"epoch": 1}])], "line 1 has no usable epochs"),
    "no epoch": ([dict(epochs=[])], ""),
    "machine": ([dict(environment={"device": 3})], "lacks environment.platform"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_without_a_usable_run_one_sentence_says_so(case, records, tmp_path, caplog):
    lines, warning = DAMAGES[case]
    if lines is not None:
        values = [damaged(records[0], **r) if isinstance(r, dict) else r for r in lines]
        write_lines(tmp_path / RESULTS, values)
    with pytest.raises(InputError, match="holds no usable run in compare.jsonl; run"):
        write_report(tmp_path)
    assert warning in caplog.text
    assert not (tmp_path / "report.html").exists()


def test_a_damaged_line_is_named_and_left_out(records, tmp_path, caplog):
    whole, torn = json.dumps(records[0]), json.dumps(records[1])[:500]
    (tmp_path / RESULTS).write_text(f"{torn}\n{whole}\n")
    write_lines(tmp_path / DETAILS, [damaged(details_of(records[0]), filters=...)])
    assert "(n=1)" in write_report(tmp_path).read_text()
    assert "compare.jsonl line 1 is damaged" in caplog.text
    assert "details.jsonl line 1 lacks filters" in caplog.text


@pytest.mark.parametrize(
    "change", [dict(confusion=[[1]]), dict(worst=[WRONG | {"pixels": "AAAA"}])]
)
def test_details_that_are_no_matrix_or_image_are_refused(change, records, tmp_path):
    write_lines(tmp_path / RESULTS, records[:1])
    write_lines(tmp_path / DETAILS, [details_of(records[0]) | change])
    with pytest.raises(InputError, match="details of mlp are damaged"):
        write_report(tmp_path)


def test_details_count_every_test_image_and_show_the_surest_mistakes(digits: Dataset):
    config = default_config("cnn", conv=("4:pool2",), hidden=())
    params = init_params(create_model(config), jax.random.key(0))
    scale = make_scale(config, digits)
    predict = make_predict(create_model(config), scale)
    details = run_details(config, params, predict, digits.test)
    counts = np.array(details.confusion)
    assert counts.sum() == 360 and counts[3].sum() == (digits.test.labels == 3).sum()
    logits = create_model(config).apply({"params": params}, scale(digits.test.images))
    right = np.argmax(logits, axis=1) == digits.test.labels
    assert np.trace(counts) == right.sum()
    sureness = [wrong.probability for wrong in details.worst]
    assert sureness == sorted(sureness, reverse=True)
    for wrong in details.worst:
        assert wrong.truth == digits.test.labels[wrong.place] != wrong.predicted
        image = mistake_image(wrong.pixels)
        assert (image == digits.test.images[wrong.place]).all()
    kernel = params["Conv_0"]["kernel"][:, :, 0]
    np.testing.assert_allclose(details.filters, kernel, atol=1e-4)
    json.dumps(dataclasses.asdict(details))


def test_curves_show_means_and_budgets_show_every_seed(records):
    mlp = [record for record in records if record["config"]["model"] == "mlp"]
    frames = [history_frame(record) for record in mlp]
    line = history_figure(pd.concat(frames)).axes[0].lines[0]
    np.testing.assert_allclose(
        line.get_ydata(), np.mean([frame["loss"] for frame in frames], axis=0)
    )
    budgets = [budget_frame(record) for record in mlp]
    lines = budget_figure({"mlp": budgets}, "validation accuracy").axes[0].lines
    assert len(lines[1].get_xdata()) == sum(map(len, frames))
    assert budgets[0]["seconds"].is_monotonic_increasing
    epochs = [epoch | {"val_accuracy": None} for epoch in mlp[0]["epochs"]]
    [accuracy] = budget_frame(mlp[0] | {"epochs": epochs})["accuracy"]
    assert accuracy == mlp[0]["test_accuracy"]


def test_a_matrix_without_mistakes_is_drawn():
    figure = confusion_figure(np.eye(10, dtype=int))
    assert [text.get_text() for text in figure.axes[0].texts] == ["1"] * 10
