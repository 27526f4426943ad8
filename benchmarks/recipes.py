"""Recipes for `speedrun`: files of config flags that follow the rules of records."""

from pathlib import Path
from typing import Any

from absl import flags

from mnist_jax.cli.config_flags import config_from_flags, define_config_flags
from mnist_jax.cli.parsing import parse_flags
from mnist_jax.config import DATASETS, TrainConfig
from mnist_jax.errors import InputError

RECIPES = Path(__file__).parents[1] / "experiments" / "recipes"
NAMED = [name for name in DATASETS if name not in ("auto", "idx")]
# What the rules allow in a recipe: all training images, the usual test images.
RULES: dict[str, list[Any]] = {
    "dataset": NAMED,
    "validation": ["none"],
    "train_size": [None],
    "split": ["official"],
}


def read_recipe(path: Path) -> TrainConfig:
    """Returns the config of a recipe.

    Raises:
        InputError: a flag is unknown or wrong, or it does not train on all training
            images of a given dataset and test on its test set.
    """
    values = flags.FlagValues()
    define_config_flags(values)
    parse_flags(["recipe", f"--flagfile={path}"], values)
    config = config_from_flags(values)
    for name, allowed in RULES.items():
        if (value := getattr(config, name)) not in allowed:
            raise InputError(
                f"the recipe {path} must have --{name}={' or '.join(map(str, allowed))}"
                f", by the rules in docs/records.md; got {value}"
            )
    return config
