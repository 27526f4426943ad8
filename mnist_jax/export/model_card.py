"""The page that describes an exported network."""

from mnist_jax.reporting.summary import layer_frame
from mnist_jax.reporting.tables import (
    bullets,
    format_settings,
    markdown_table,
    provenance,
)
from mnist_jax.training.checkpoints import named_leaves
from mnist_jax.training.run_dir import EXPORTED_PARAMS, TrainedRun


def model_card(run: TrainedRun) -> str:
    """Returns a description of a network as Markdown: results, layers, use."""
    config, record, (height, width) = run.config, run.record, run.shapes.image
    dataset = record.dataset
    facts = [
        f"test accuracy: {record.test_accuracy:.4f} (n=1, seed {config.seed})",
        f"test loss: {record.test_loss:.4f}",
        f"data: {dataset}, {record.train_images:,} training, "
        f"{record.validation_images:,} validation, {record.test_images:,} test images",
        f"classes: {', '.join(record.class_names)}",
        f"epochs: {len(record.epochs)}",
        f"settings besides the defaults: {format_settings(record) or 'none'}",
        f"parameters: {record.parameters:,}",
        *provenance([record]),
    ]
    if record.source_sha256:
        facts.append(
            f"network: `{config.model}` in the working directory or a folder above "
            f"this one; sha256 of the file {record.source_sha256}"
        )
    if record.dataset_note:
        facts.append(f"note: {record.dataset_note}")
    data = f'"{dataset}", "FOLDER_OF_THE_DATA"' if dataset == "idx" else f'"{dataset}"'
    return f"""\
---
library_name: mnist_jax
pipeline_tag: image-classification
tags: [jax, flax, {dataset}]
---

# {config.name} on {dataset}

A network for images of {height}x{width} gray pixels, trained with mnist_jax.

{bullets(facts)}

The test accuracy is that of one trained network: another seed gives another one.

## Layers

{markdown_table(layer_frame(config, run.shapes))}

## Use

```python
import mnist_jax

run = mnist_jax.load_run("FOLDER")  # this folder
images = mnist_jax.load_dataset({data}).test.images  # [N,{height},{width}] uint8
probabilities = run.predict(images)  # [N,{record.classes}]
```

`python -m experiments.predict --run_dir=FOLDER` and the other programs take it too.

Without mnist_jax, `safetensors.numpy.load_file("{EXPORTED_PARAMS}")` returns the
arrays by layer, such as `{next(iter(named_leaves(run.variables["params"])))}`. Kernels
of dense layers are `[inputs,outputs]`, those of convolutions
`[height,width,inputs,outputs]`; the gates of an LSTM are in the order input, forget,
candidate, output.
"""
