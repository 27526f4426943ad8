"""The page that describes an exported network."""

import pandas as pd

from mnist_jax.config import MODELS
from mnist_jax.reporting.summary import layer_frame
from mnist_jax.reporting.tables import (
    format_settings,
    format_versions,
    markdown_table,
)
from mnist_jax.training.checkpoints import named_leaves
from mnist_jax.training.run_dir import EXPORTED_PARAMS, TrainedRun

_CARD = """\
---
library_name: mnist_jax
pipeline_tag: image-classification
tags: [jax, flax, {dataset}]
---

# {name} on {dataset}

A network for images of {height}x{width} gray pixels, trained with mnist_jax.

{facts}

The test accuracy is that of one trained network: another seed gives another one.

## Layers

{layers}

## Use

```python
import mnist_jax

run = mnist_jax.load_run("FOLDER")  # this folder
images = mnist_jax.load_dataset({data}).test.images  # [N,{height},{width}] uint8
probabilities = run.predict(images)  # [N,{classes}]
```

`python -m experiments.predict --run_dir=FOLDER` and the other programs take it too.
{network}
Without mnist_jax, `safetensors.numpy.load_file("{params}")` returns the
arrays by layer, such as `{example}`. Kernels of dense layers are
`[inputs,outputs]`, those of convolutions `[height,width,inputs,outputs]`; the gates of
an LSTM are in the order input, forget, candidate, output.
"""
_NETWORK = """
The class of the network is `{model}`, in a file with the sha256
`{sha256}`.
The file must be there, relative to the working directory or a folder above this one.
"""


def model_card(run: TrainedRun) -> str:
    """Returns a description of a network as Markdown: results, layers, use."""
    config, record = run.record.config, run.record
    dataset, machine = record.dataset, record.environment
    facts = {
        "test accuracy": f"{record.test_accuracy:.4f} (n=1, seed {config.seed})",
        "test loss": f"{record.test_loss:.4f}",
        "data": f"{dataset}: {record.train_images:,} training, "
        f"{record.validation_images:,} validation, {record.test_images:,} test images",
        "classes": ", ".join(run.class_names),
        "epochs": str(len(record.epochs)),
        "settings besides the defaults": format_settings(record) or "none",
        "parameters": f"{record.parameters:,}",
        "device": f"{machine.device}, {record.devices} of {machine.cores} cores"
        if machine.platform == "cpu"
        else f"{record.devices} x {machine.device}",
        "versions": format_versions(machine),
        "date": machine.date,
    }
    if record.dataset_note:
        facts["note"] = record.dataset_note
    network = ""
    if config.model not in MODELS:
        network = _NETWORK.format(model=config.model, sha256=record.source_sha256)
    (height, width), classes = run.shapes
    folder = ', "FOLDER_OF_THE_DATA"' if dataset == "idx" else ""
    return _CARD.format(
        name=config.name,
        height=height,
        width=width,
        classes=classes,
        data=f'"{dataset}"{folder}',
        dataset=dataset,
        facts=markdown_table(pd.DataFrame(facts.items(), columns=["", "this run"])),
        layers=markdown_table(layer_frame(run.config, run.shapes)),
        network=network,
        params=EXPORTED_PARAMS,
        example=next(iter(named_leaves(run.params))),
    )
