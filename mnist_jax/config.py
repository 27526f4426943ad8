"""`TrainConfig`: the settings of a run, with their defaults and checks."""

import ctypes
import dataclasses
import math
import numbers
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from mnist_jax.errors import InputError

MODELS = ("mlp", "lstm", "cnn")
PRECISIONS = ("float32", "bfloat16")
CUSTOM = "FILE:CLASS"  # any custom network, where a field depends on the model
DATASETS = ("auto", "mnist", "fashion_mnist", "kmnist", "digits", "idx")
PIXELS = ("scaled", "standardized", "raw", "l2")
ADAMS = ("adam", "keras_adam", "adamw", "muon")  # muon uses it for biases
SPLITS = ("official", "shuffled")
VALIDATIONS = ("none", "fraction", "test")
# Augmentations by name: smallest and largest size, and the size if none is given.
AUGMENTATIONS: Mapping[str, tuple[float, float, float | None]] = {
    "flip": (1, 1, 1),  # left to right, every second image
    "rotate": (0.1, 90, None),  # degrees
    "zoom": (0.01, 0.5, None),  # fraction
    "elastic": (1, 100, 34),  # factor of the displacements, pixels
    "shift": (1, 8, None),  # whole pixels
    "erase": (1, 27, 8),  # whole pixels, side of a square
}


def model_kind(model: str) -> str:
    """Returns the name of a built-in model, and `CUSTOM` for any other.

    >>> model_kind("cnn"), model_kind("mixer.py:Mixer")
    ('cnn', 'FILE:CLASS')
    """
    return model if model in MODELS else CUSTOM


class ConvStage(NamedTuple):
    """One convolution, followed by an activation and optional max pooling."""

    filters: int
    kernel: int = 3
    padding: str = "VALID"
    strides: int = 1
    activation: str = "relu"
    pool: int = 1  # window and stride of the max pooling; 1 for none
    bn: bool = False  # whether batch normalization follows


def parse_conv_stage(text: str) -> ConvStage:
    """Parses a stage such as `32`, `16:same:s2` or `8:k5:pool2`.

    Args:
        text: the number of filters, then in any order `kN` (N by N kernel, 1..7,
            default 3), `valid` or `same` (default valid), `s1` or `s2` (stride, default
            1), `relu`, `tanh` or `linear` (default relu), `pool2` or `pool3` (default
            no pooling), and `bn` (batch normalization of the stage's output).

    Raises:
        InputError: an option is unknown or given twice.

    >>> parse_conv_stage("8:k5:linear:pool2")[:4]
    (8, 5, 'VALID', 1)
    """
    filters, *options = text.strip().lower().split(":")
    stage: dict[str, Any] = {}
    value: str | int
    ok = re.fullmatch(r"[1-9]\d{0,3}", filters) is not None
    for option in options:
        if option in ("valid", "same"):
            name, value = "padding", option.upper()
        elif option in ("relu", "tanh", "linear"):
            name, value = "activation", option
        elif option == "bn":
            name, value = "bn", True
        elif match := re.fullmatch(r"(k)([1-7])|(s)([12])|(pool)([23])", option):
            kind, size = (group for group in match.groups() if group)
            name = {"k": "kernel", "s": "strides", "pool": "pool"}[kind]
            value = int(size)
        else:
            ok = False
            break
        ok = ok and name not in stage
        stage[name] = value
    if not ok:
        raise InputError(
            f"--conv: cannot parse the stage {text!r}; a stage is a number of filters "
            "(1..9999) and at most one each of k1..k7, valid|same, s1|s2, "
            "relu|tanh|linear, pool2|pool3 and bn, as in 32:k3:valid:relu:pool2:bn"
        )
    return ConvStage(int(filters), **stage)


def parse_augmentation(text: str) -> tuple[str, float]:
    """Parses an augmentation such as `shift2`, `rotate10`, `zoom0.1` or `flip`.

    Returns:
        Its name and its size.

    Raises:
        InputError: the name is unknown, or the size is missing or out of range.

    >>> parse_augmentation("shift2"), parse_augmentation("elastic")
    (('shift', 2.0), ('elastic', 34.0))
    """
    match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)?", text.strip().lower())
    if match and match[1] in AUGMENTATIONS:
        low, high, default = AUGMENTATIONS[match[1]]
        size = float(match[2] or default or 0)
        whole = match[1] not in ("shift", "erase") or "." not in text
        if low <= size <= high and whole:
            return match[1], size
    raise InputError(
        f"--augment: cannot parse {text!r}; give any of shift1..shift8, rotate and "
        "degrees (0.1 to 90), zoom and a fraction (0.01 to 0.5), elastic (or with a "
        "factor, 1 to 100), erase (or with pixels, 1 to 27) and flip, as in "
        "shift2,rotate10,zoom0.1"
    )


def _option(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    check: Callable[[Any], bool] | None = None,
    allowed: str = "",
    needs: tuple[str, tuple[str, ...]] | None = None,
    by: str = "model",
) -> Any:
    """Declares a field: its default, help text, allowed values and dependency.

    `default` is a mapping if it depends on the field `by`, model or dataset. `needs`
    names another field and its values for which this field is used. Setting this
    field's flag with any other value of that field is an error.
    """
    mapping = default if isinstance(default, Mapping) else {}
    if choices:
        check, allowed = (
            (lambda value: value in choices),
            "one of " + ", ".join(choices),
        )
    metadata = dict(
        help=help,
        choices=tuple(choices),
        check=check,
        allowed=allowed,
        needs=needs,
        by_model=mapping if by == "model" else {},
        by_dataset=mapping if by == "dataset" else {},
    )
    return dataclasses.field(default=None if mapping else default, metadata=metadata)


def _is_width(value: int) -> bool:
    return 1 <= value <= 100_000


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that determines a run's results; each field is a flag.

    The defaults work well for five epochs of MNIST on a CPU; some depend on the model.
    `epochs` depends on the dataset: with `dataset="auto"` it is None until the dataset
    is loaded.

    Raises:
        InputError: a value is out of range, or two values conflict.

    >>> TrainConfig(model="cnn").hidden, TrainConfig(model="lstm").hidden
    ((64,), ())
    >>> TrainConfig(dataset="mnist").epochs, TrainConfig(dataset="digits").epochs
    (5, 40)

    >>> TrainConfig(model="cnn", batch_size=0)
    Traceback (most recent call last):
    ...
    mnist_jax.errors.InputError: --batch_size must be a positive integer; got 0
    """

    model: str = _option(
        "mlp",
        "network: mlp, lstm, cnn, or a Flax module as path/to/file.py:Class or "
        "package.module:Class",
        check=lambda model: model in MODELS or bool(re.fullmatch(r".+:\w+", model)),
        allowed="mlp, lstm, cnn, or a Flax module such as path/to/file.py:Class",
    )
    model_args: tuple[str, ...] = _option(
        (),
        "fields of the class of a custom network, such as width=64,depth=2",
        check=lambda args: not args or "=" in args[0],
        allowed="fields with values, such as width=64,depth=2",
        needs=("model", (CUSTOM,)),
    )
    hidden: tuple[int, ...] = _option(
        {"mlp": (128, 128), "lstm": (), "cnn": (64,), CUSTOM: ()},
        "widths of the hidden dense layers, comma-separated; empty for none",
        check=lambda widths: all(map(_is_width, widths)),
        allowed="widths from 1 to 100000",
        needs=("model", MODELS),
    )
    conv: tuple[str, ...] = _option(
        ("32:pool2", "64:pool2", "64"),
        "convolution stages, comma-separated: number of filters, then any of k1..k7, "
        "valid|same, s1|s2, relu|tanh|linear, pool2|pool3, bn (batch normalization), "
        "joined by colons",
        check=lambda stages: bool([parse_conv_stage(stage) for stage in stages]),
        allowed="at least one stage such as 32:k3:valid:relu:pool2",
        needs=("model", ("cnn",)),
    )
    lstm_units: tuple[int, ...] = _option(
        (128,),
        "units of each LSTM layer, comma-separated",
        check=lambda units: len(units) > 0 and all(map(_is_width, units)),
        allowed="one or more widths from 1 to 100000",
        needs=("model", ("lstm",)),
    )
    activation: str = _option(
        "tanh",
        "activation of the LSTM's cell candidate and output",
        choices=("tanh", "relu"),
        needs=("model", ("lstm",)),
    )
    crop: int = _option(
        0,
        "pixels to leave out at each border of the image, in training and evaluation; "
        "MNIST's digits lie within the inner 20x20",
        check=lambda pixels: 0 <= pixels <= 10,
        allowed="an integer from 0 to 10",
        needs=("model", MODELS),
    )
    dropout: tuple[float, ...] = _option(
        (0.0,),
        "dropout rate after each LSTM and hidden dense layer: one for all, or one each",
        check=lambda rates: all(0.0 <= rate < 1.0 for rate in rates),
        allowed="one or more numbers >= 0 and < 1",
        needs=("model", MODELS),
    )
    freeze: tuple[str, ...] = _option(
        (),
        "layers to keep at their initial parameters, comma-separated, as in Dense_0",
    )
    dataset: str = _option(
        "auto",
        "dataset; auto is MNIST if it is available or can be downloaded, otherwise "
        "scikit-learn's small digits; idx is any set of IDX files, or an .npz file, in "
        "--data_dir",
        choices=DATASETS,
    )
    train_size: int | None = _option(
        None,
        "use only the first N training images",
        check=lambda size: size is None or size >= 1,
        allowed="a positive integer",
    )
    pixels: str = _option(
        "scaled",
        "pixel values: scaled by 1/255, standardized by the training set's mean and "
        "standard deviation, raw 0..255, or each image column divided by its l2 norm",
        choices=PIXELS,
    )
    split: str = _option(
        "official",
        "the official training and test sets, or all images shuffled with --split_seed "
        "and split again",
        choices=SPLITS,
    )
    split_seed: int = _option(
        0,
        "seed of the shuffle",
        check=lambda seed: 0 <= seed < 2**32,
        allowed="an integer from 0 to 4294967295",
        needs=("split", ("shuffled",)),
    )
    validation: str = _option(
        "fraction",
        "validation set: none, a fraction from the end of the training set, or the "
        "test set (as some tutorials do; it then does not measure generalization)",
        choices=VALIDATIONS,
    )
    validation_fraction: float = _option(
        0.1,
        "fraction of the training set to hold out for validation",
        check=lambda fraction: 0.0 < fraction < 1.0,
        allowed="a number > 0 and < 1",
        needs=("validation", ("fraction",)),
    )
    augment: tuple[str, ...] = _option(
        (),
        "random changes of training images, comma-separated: any of shiftN (up to N "
        "pixels), rotateN (degrees), zoomX (fraction), elastic, erase (a square), flip",
        check=lambda names: len(dict(map(parse_augmentation, names))) == len(names),
        allowed="augmentations of different names",
    )
    label_smoothing: float = _option(
        0.0,
        "share of the labels that is spread evenly over all classes in training",
        check=lambda share: 0.0 <= share < 1.0,
        allowed="a number >= 0 and < 1",
    )
    optimizer: str = _option(
        "adam",
        "optimizer; keras_adam is Adam with epsilon applied as in Keras, muon is Muon "
        "for kernels and Adam for biases",
        choices=("adam", "keras_adam", "adamw", "muon", "sgd"),
    )
    beta1: float = _option(
        0.9,
        "decay per step of Adam's mean of the gradients",
        check=lambda value: 0.0 <= value < 1.0,
        allowed="a number >= 0 and < 1",
        needs=("optimizer", ADAMS),
    )
    beta2: float = _option(
        0.999,
        "decay per step of Adam's mean of the squared gradients",
        check=lambda value: 0.0 <= value < 1.0,
        allowed="a number >= 0 and < 1",
        needs=("optimizer", ADAMS),
    )
    momentum: float = _option(
        0.0,
        "momentum of SGD",
        check=lambda value: 0.0 <= value < 1.0,
        allowed="a number >= 0 and < 1",
        needs=("optimizer", ("sgd",)),
    )
    nesterov: bool = _option(
        False, "use Nesterov momentum", needs=("optimizer", ("sgd",))
    )
    weight_decay: float = _option(
        1e-4,
        "decoupled weight decay of AdamW",
        check=lambda value: 0.0 <= value < math.inf,
        allowed="a finite number >= 0",
        needs=("optimizer", ("adamw",)),
    )
    learning_rate: float = _option(
        {"mlp": 3e-3, "lstm": 5e-3, "cnn": 3e-3, CUSTOM: 3e-3},
        "learning rate, or its peak under a schedule; chosen for Adam",
        check=lambda value: 0.0 < value < math.inf,
        allowed="a finite number > 0",
    )
    schedule: str = _option(
        "onecycle",
        "learning rate schedule: constant, cosine (linear warm-up, cosine decay to 0) "
        "or onecycle (cosine warm-up, cosine decay to almost 0)",
        choices=("constant", "cosine", "onecycle"),
    )
    warmup_fraction: float = _option(
        0.1,
        "fraction of the steps over which the rate rises to --learning_rate",
        check=lambda fraction: 0.0 < fraction < 1.0,
        allowed="a number > 0 and < 1",
        needs=("schedule", ("cosine", "onecycle")),
    )
    clip_norm: float | None = _option(
        None,
        "clip gradients to this global norm",
        check=lambda norm: norm is None or 0.0 < norm < math.inf,
        allowed="a finite number > 0",
    )
    ema: float | None = _option(
        None,
        "evaluate and save an exponential moving average of the parameters, with this "
        "decay per step",
        check=lambda decay: decay is None or 0.0 < decay < 1.0,
        allowed="a number > 0 and < 1, such as 0.999",
    )
    batch_size: int = _option(
        128,
        "training images per step",
        check=lambda size: size >= 1,
        allowed="a positive integer",
    )
    epochs: int = _option(
        {"mnist": 5, "fashion_mnist": 5, "kmnist": 5, "digits": 40, "idx": 5},
        "passes over the training set",
        check=lambda epochs: epochs >= 1,
        allowed="a positive integer",
        by="dataset",
    )
    patience: int | None = _option(
        None,
        "stop after N epochs without a lower validation loss, and keep the parameters "
        "of the epoch with the lowest",
        check=lambda epochs: epochs is None or epochs >= 1,
        allowed="a positive integer",
    )
    tta: int = _option(
        0,
        "test also with probabilities averaged over all shifts by up to this many "
        "pixels (test-time augmentation)",
        check=lambda pixels: 0 <= pixels <= 4,
        allowed="an integer from 0 to 4",
    )
    seed: int = _option(
        0,
        "seed of the initial parameters, shuffling and dropout",
        check=lambda seed: 0 <= seed < 2**32,
        allowed="an integer from 0 to 4294967295",
    )
    impl: str = _option(
        "auto",
        "implementation of convolution, pooling and LSTM: cpu is written for CPUs, "
        "gpu for GPUs, plain is Flax's; auto chooses by device",
        choices=("auto", "cpu", "gpu", "plain"),
    )
    precision: str = _option(
        "float32",
        "operands of matrix products and convolutions; on CPUs those of weight "
        "gradients, and with --impl=cpu of convolutions, stay float32. GPUs and TPUs "
        "round float32 operands too, unless JAX_DEFAULT_MATMUL_PRECISION=highest",
        choices=PRECISIONS,
    )
    cpu_devices: int = _option(
        0,
        "number of host devices on a CPU; 0 uses as many as speed up training",
        check=lambda devices: 0 <= devices <= 1024,
        allowed="an integer from 0 to 1024",
    )

    @property
    def name(self) -> str:
        """Short name of the network: the model, or the class of a custom one."""
        return self.model.rpartition(":")[2]

    def require_validation(self, flag: str, value: object) -> None:
        """Raises InputError unless the config holds out images of the training set.

        Args:
            flag: name of the flag that needs them.
            value: its value.
        """
        if self.validation != "fraction":
            raise InputError(
                f"--{flag}={value} needs a validation set from the training set; got "
                f"--validation={self.validation}; give --validation=fraction or leave "
                f"--{flag} out"
            )

    def for_dataset(self, name: str) -> "TrainConfig":
        """Returns the config with the defaults that `dataset="auto"` left open.

        Args:
            name: of the dataset; one that is none of `DATASETS` has MNIST's defaults.
        """
        defaults = {
            field.name: by_dataset.get(name, by_dataset["mnist"])
            for field in dataclasses.fields(self)
            if (by_dataset := field.metadata["by_dataset"])
            and getattr(self, field.name) is None
        }
        return dataclasses.replace(self, **defaults)

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            by_model, value = field.metadata["by_model"], getattr(self, field.name)
            if by_model and value is None:
                value = by_model[model_kind(self.model)]
            if (by_dataset := field.metadata["by_dataset"]) and value is None:
                if self.dataset == "auto":
                    continue
                value = by_dataset[self.dataset]
            value = _convert(field.name, hints[field.name], value)
            object.__setattr__(self, field.name, value)
            check, rounded = field.metadata["check"], _as_float32(value)
            effect = check is not None and _has_effect(self, field)
            if effect and not (check(value) and check(rounded)):
                note = f", which is {as_text(rounded)} in float32"
                raise InputError(
                    f"--{field.name} must be {field.metadata['allowed']}; "
                    f"got {as_text(value)}{note if check(value) else ''}"
                )
        if self.nesterov and self.optimizer == "sgd" and self.momentum == 0.0:
            raise InputError(
                "--nesterov needs --momentum above 0; got --momentum=0.0; give a value "
                "such as --momentum=0.9"
            )
        if self.patience is not None:
            self.require_validation("patience", self.patience)
        if self.model == "cnn" and self.dataset != "idx":  # whose images have any size
            check_stages(self.conv, 28 - 2 * self.crop, 28 - 2 * self.crop)
        layers = len(self.hidden) + len(self.lstm_units) * (self.model == "lstm")
        if len(self.dropout) not in (1, layers) and self.model in MODELS:
            raise InputError(
                f"--dropout must be one rate, or one for each of the {layers} LSTM and "
                f"hidden dense layers; got {as_text(self.dropout)}"
            )


def _convert(name: str, hint: Any, value: Any) -> Any:
    """Returns a value as the type of its field; raises InputError if it has another.

    Lists become tuples and integers become floats where the field is one.
    """
    if isinstance(hint, types.UnionType):
        return None if value is None else _convert(name, hint.__args__[0], value)
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        if isinstance(value, list | tuple):
            return tuple(_convert(name, item, v) for v in value)
        kind = f"tuple of {item.__name__}"
    else:
        kind = hint.__name__
        accepted = {int: numbers.Integral, float: numbers.Real}.get(hint, hint)
        if isinstance(value, accepted) and isinstance(value, bool) == (hint is bool):
            if not isinstance(value, int):  # NumPy compares in its own precision
                value = hint(value)
            # The comparison is also false for NaN.
            if hint is float and not abs(value) <= sys.float_info.max:
                raise InputError(f"--{name} must be a finite number; got {value}")
            return hint(value)
    if name == "model" and callable(value):
        cls = value if isinstance(value, type) else type(value)
        raise InputError(
            f'--model must be a string, as in "{cls.__module__}:{cls.__name__}"; got '
            f"{'the class' if value is cls else 'an instance of'} {cls.__name__}"
        )
    raise InputError(f"--{name} must be of type {kind}; got {value!r}")


def _as_float32(value: Any) -> Any:
    """Returns the value with its floats rounded: 0.99999999 to 1, 1e-50 to 0."""
    if isinstance(value, tuple):
        return tuple(map(_as_float32, value))
    return ctypes.c_float(value).value if isinstance(value, float) else value


def _has_effect(config: TrainConfig, field: "dataclasses.Field[Any]") -> bool:
    """Returns whether a field is used with the values of the others."""
    if not field.metadata["needs"]:
        return True
    name, values = field.metadata["needs"]
    value = getattr(config, name)
    return (model_kind(value) if name == "model" else value) in values


def check_used(config: TrainConfig, given: Collection[str] | None = None) -> None:
    """Raises InputError if a field that the user chose has no effect with the others.

    Args:
        config: the settings.
        given: names of those fields; default: those whose value is not the default.
    """
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        if given is None:
            by_model = field.metadata["by_model"]
            default = by_model[model_kind(config.model)] if by_model else field.default
            chosen = value != default
        else:
            chosen = name in given
        if chosen and not _has_effect(config, field):
            other, values = field.metadata["needs"]
            raise InputError(
                f"--{name}={as_text(value)} only applies with "
                f"--{other}={' or '.join(values)}; got "
                f"--{other}={getattr(config, other)}; leave one of them out"
            )
    if any(config.dropout) and not config.hidden and config.model != "lstm":
        raise InputError(
            f"--dropout={as_text(config.dropout)} applies after hidden dense layers, "
            "but --hidden is empty; leave one of them out"
        )


def check_stages(stages: Sequence[str], *sides: int) -> None:
    """Raises InputError if convolution stages shrink an image to nothing.

    Args:
        stages: as in `TrainConfig.conv`.
        sides: height and width of the image.
    """
    for number, text in enumerate(stages, start=1):
        stage = parse_conv_stage(text)
        window = stage.kernel if stage.padding == "VALID" else 1
        outputs = [
            ((side - window) // stage.strides + 1) // stage.pool for side in sides
        ]
        if min(outputs) < 1:
            raise InputError(
                f"--conv: stage {number} ({text}) leaves no pixel of its "
                f"{'x'.join(map(str, sides))} input; use fewer stages, smaller "
                "kernels, less pooling or same padding"
            )
        sides = tuple(outputs)


def as_text(value: Any) -> str:
    """Formats a field's value as on the command line."""
    if value is None:
        return "none"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def changed_fields(config: TrainConfig, dataset: str) -> dict[str, Any]:
    """Returns the fields, without the seed, that differ from the model's defaults.

    Args:
        config: the settings.
        dataset: name of the loaded dataset, whose defaults `dataset="auto"` takes.
    """
    default = TrainConfig(model=config.model).for_dataset(dataset)
    return {
        field.name: value
        for field in dataclasses.fields(config)
        if field.name not in ("model", "seed", "dataset")
        and (value := getattr(config, field.name)) != getattr(default, field.name)
    }
