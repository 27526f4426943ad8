"""The published systems and the default networks, on all of MNIST's test images.

It takes minutes; `-rP` prints the largest difference of a probability of each network.
"""

import dataclasses

import numpy as np
import pytest

from benchmarks.published.systems import SYSTEMS, read_preset
from mnist_jax.api import train
from mnist_jax.config import MODELS, TrainConfig
from mnist_jax.data.splits import split_dataset
from mnist_jax.data.types import Dataset
from mnist_jax.export.formats import FORMATS, export_run

pytestmark = pytest.mark.faults

# Of the same config as `ml10_mlp`, which starts from the parameters of another run.
PUBLISHED = [name for name in SYSTEMS if name != "ml10_mlp_fresh"]


@pytest.mark.parametrize("name", [*MODELS, *PUBLISHED])
def test_all_test_images_have_the_same_class(name, mnist: Dataset, tmp_path):
    config = TrainConfig(model=name) if name in MODELS else read_preset(name)[0]
    config = dataclasses.replace(config, dataset="mnist")
    [run] = train(config, dataset=mnist, quiet=True)
    images = split_dataset(mnist, config).test.images
    expected = run.predict(images)
    facts = [f"accuracy {run.record.test_accuracy:.4f}"]
    for form in ("onnx", "stablehlo"):
        path = tmp_path / form
        export_run(run, form, path, images[:1_000])
        found = FORMATS[form].predict(path, images, run)
        assert len(found) == len(images) == 10_000
        np.testing.assert_array_equal(found.argmax(axis=1), expected.argmax(axis=1))
        difference = np.abs(found - expected).max()
        assert difference < 1e-5
        facts.append(f"{form} {difference:.1e}, {path.stat().st_size:,} bytes")
    print(f"{name}: {'; '.join(facts)}")
