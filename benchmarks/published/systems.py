"""The published systems: their reported results and their presets."""

from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from mnist_jax.cli.config_flags import config_from_flags, define_config_flags
from mnist_jax.cli.parsing import PRESETS, parse_flags
from mnist_jax.config import TrainConfig


class System(NamedTuple):
    """The results that a source reports for a system, as it prints them."""

    accuracy: str = "-"
    parameters: str = "-"
    best_accuracy: str = "-"
    loss: str = "-"
    epoch_seconds: str = "-"


# Accuracy and loss are on the test set after the last epoch, whatever the source calls
# it: ML10 and CV use the test set for validation. FJ's seconds are its total for 20
# epochs, divided by 20.
SYSTEMS = {
    "av_dnn": System("0.9721"),
    "av_lstm": System("0.9854"),
    "av_cnn": System("0.9808"),
    "ml10_mlp_raw": System("0.9240", "25,450", "0.9302", epoch_seconds="1"),
    "ml10_mlp": System("0.9501", "25,450", "0.9521", epoch_seconds="1"),
    "ml10_mlp_fresh": System(),
    "ml10_cnn": System("0.9919", "93,322", "0.9926", epoch_seconds="14-16"),
    "fj_fc": System("0.8966", "443,610", loss="0.4014", epoch_seconds="5.8"),
    "fj_cnn_pool": System(parameters="20,490"),
    "fj_cnn_stride": System("0.9828", "20,490", loss="0.0632", epoch_seconds="14.3"),
    "cv_cnn": System("0.9533", loss="0.2188", epoch_seconds="6-7"),
}

# Controls that no source ran but claims need: presets with some fields changed.
CONTROLS: dict[str, tuple[str, dict[str, Any]]] = {
    "fj_fc_adam": ("fj_fc", dict(optimizer="keras_adam")),
    "fj_fc_b32": ("fj_fc", dict(batch_size=32)),
    "fj_fc_b512": ("fj_fc", dict(batch_size=512)),
    "fj_cnn_stride_b32": ("fj_cnn_stride", dict(batch_size=32)),
    "fj_cnn_stride_b512": ("fj_cnn_stride", dict(batch_size=512)),
}


def read_flag_file(path: Path) -> flags.FlagValues:
    """Returns the config flags of a preset or recipe."""
    values = flags.FlagValues()
    define_config_flags(values)
    flags.DEFINE_string("init_from", None, "", flag_values=values)
    parse_flags([path.stem, f"--flagfile={path}"], values)
    return values


def read_preset(name: str, **changes: Any) -> tuple[TrainConfig, str | None]:
    """Returns the config of a preset or control, and the preset it starts from, if any.

    `changes` are fields that override the preset's.
    """
    preset, control = CONTROLS.get(name, (name, {}))
    values = read_flag_file(PRESETS / f"{preset}.cfg")
    start = values["init_from"].value
    return config_from_flags(values, **control, **changes), start and Path(start).name
