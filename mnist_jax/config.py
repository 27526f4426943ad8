"""`TrainConfig`: the settings of a run, with their defaults and checks."""

import ctypes
import dataclasses
import math
import numbers
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from mnist_jax.errors import InputError

MODELS = ("mlp", "lstm", "cnn")
PRECISIONS = ("float32", "bfloat16")
CUSTOM = "FILE:CLASS"  # any custom network, where a field depends on the model
NAMED_DATASETS = ("mnist", "fashion_mnist", "kmnist", "digits")  # all of 28x28 pixels
DATASETS = ("auto", *NAMED_DATASETS, "idx")
PIXELS = ("scaled", "standardized", "raw", "l2")
ADAMS = ("adam", "keras_adam", "adamw", "muon")  # muon uses it for biases
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


_STAGE = (
    "number of filters (1..9999), then at most one each of k1..k7 (kernel), s1|s2 "
    "(stride), valid|same, relu|tanh|linear, pool2|pool3, bn (batch normalization), "
    "joined by colons"
)
_STAGE_OPTIONS: Mapping[str, tuple[str, Any]] = {
    **{f"k{size}": ("kernel", size) for size in range(1, 8)},
    **{name: ("padding", name.upper()) for name in ("valid", "same")},
    **{f"s{size}": ("strides", size) for size in (1, 2)},
    **{name: ("activation", name) for name in ("relu", "tanh", "linear")},
    **{f"pool{size}": ("pool", size) for size in (2, 3)},
    "bn": ("bn", True),
}


def parse_conv_stage(text: str) -> ConvStage:
    """Parses a stage such as `32`, `16:same:s2` or `8:k5:pool2`.

    >>> parse_conv_stage("8:k5:linear:pool2")[:4]
    (8, 5, 'VALID', 1)
    """
    filters, *options = text.strip().lower().split(":")
    stage = dict(_STAGE_OPTIONS.get(option, ("unknown", None)) for option in options)
    known = re.fullmatch(r"[1-9]\d{0,3}", filters) and "unknown" not in stage
    if not known or len(stage) < len(options):
        raise InputError(
            f"--conv: cannot parse the stage {text!r}; give the {_STAGE}, as in "
            "32:k3:valid:relu:pool2:bn"
        )
    return ConvStage(int(filters), **stage)


def parse_augmentation(text: str) -> tuple[str, float]:
    """Returns the name and size of an augmentation such as `shift2` or `zoom0.1`.

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
    known = (f"{name} {low}..{high}" for name, (low, high, _) in AUGMENTATIONS.items())
    raise InputError(
        f"--augment: cannot parse {text!r}; give any of {', '.join(known)}, as in "
        "shift2,rotate10,zoom0.1,flip"
    )


class Rule(NamedTuple):
    """The values that a field, or each item of a tuple, may have."""

    allowed: str
    check: Callable[[Any], bool]  # gets floats as they are in float32


def _integers(low: int, high: int) -> Rule:
    return Rule(f"from {low} to {high}", lambda value: low <= value <= high)


_ANY = Rule("", lambda _: True)
_POSITIVE = Rule("a positive integer", lambda value: value >= 1)
_WIDTH = _integers(1, 100_000)
_SEED = _integers(0, 2**32 - 1)
# A decay of 0.99999999 is 1 in float32, a rate of 1e-46 is 0.
_DECAY = Rule("a number >= 0 and < 1 in float32", lambda value: 0 <= value < 1)
_FRACTION = Rule("a number > 0 and < 1 in float32", lambda value: 0 < value < 1)
_SIZE = Rule("a finite number > 0 in float32", lambda value: 0 < value < math.inf)


def _option(
    default: Any,
    help: str,
    rule: Rule = _ANY,
    *,
    choices: Sequence[str] = (),
    needs: tuple[str, ...] = (),
) -> Any:
    """Declares a field: its default, help text, allowed values and dependency.

    `default` is a mapping if it depends on the model or the dataset. `needs` is another
    field and its values for which this field is used. Setting this field's flag with
    any other value of that field is an error.
    """
    if choices:
        rule = Rule(f"one of {', '.join(choices)}", lambda value: value in choices)
    varies = isinstance(default, Mapping)
    defaults = default if varies else {}
    metadata = dict(
        help=help, choices=choices, rule=rule, needs=needs, defaults=defaults
    )
    return dataclasses.field(default=None if varies else default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that determines a run's results; each field is a flag.

    The defaults work well for five epochs of MNIST on a CPU; some depend on the model.
    `epochs` depends on the dataset: with `dataset="auto"` it is None until the dataset
    is loaded.

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
        Rule(
            "mlp, lstm, cnn, or a Flax module such as path/to/file.py:Class",
            lambda model: model in MODELS or bool(re.fullmatch(r".+:\w+", model)),
        ),
    )
    model_args: tuple[str, ...] = _option(
        (),
        "fields of the class of a custom network, such as width=64,depth=2",
        needs=("model", CUSTOM),
    )
    hidden: tuple[int, ...] = _option(
        {"mlp": (128, 128), "lstm": (), "cnn": (64,), CUSTOM: ()},
        "widths of the hidden dense layers, comma-separated; empty for none",
        _WIDTH,
        needs=("model", *MODELS),
    )
    conv: tuple[str, ...] = _option(
        ("32:pool2", "64:pool2", "64"),
        f"convolution stages, comma-separated: {_STAGE}",
        needs=("model", "cnn"),
    )
    lstm_units: tuple[int, ...] = _option(
        (128,),
        "units of each LSTM layer, comma-separated",
        _WIDTH,
        needs=("model", "lstm"),
    )
    activation: str = _option(
        "tanh",
        "activation of the LSTM's cell candidate and output",
        choices=("tanh", "relu"),
        needs=("model", "lstm"),
    )
    crop: int = _option(
        0,
        "pixels to leave out at each border of the image, in training and evaluation; "
        "MNIST's digits lie within the inner 20x20",
        _integers(0, 10),
        needs=("model", *MODELS),
    )
    dropout: tuple[float, ...] = _option(
        (0.0,),
        "dropout rate after each LSTM and hidden dense layer: one for all, or one each",
        _DECAY,
        needs=("model", *MODELS),
    )
    freeze: tuple[str, ...] = _option(
        (), "layers to keep at their initial parameters, comma-separated, as in Dense_0"
    )
    dataset: str = _option(
        "auto",
        "dataset; auto is MNIST if it is available or can be downloaded, otherwise "
        "scikit-learn's small digits; idx is any set of IDX files, or an .npz file, in "
        "--data_dir",
        choices=DATASETS,
    )
    train_size: int | None = _option(
        None, "use only the first N training images", _POSITIVE
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
        choices=("official", "shuffled"),
    )
    split_seed: int = _option(
        0, "seed of the shuffle", _SEED, needs=("split", "shuffled")
    )
    validation: str = _option(
        "fraction",
        "validation set: none, a fraction from the end of the training set, or the "
        "test set (as some tutorials do; it then does not measure generalization)",
        choices=("none", "fraction", "test"),
    )
    validation_fraction: float = _option(
        0.1,
        "fraction of the training set to hold out for validation",
        _FRACTION,
        needs=("validation", "fraction"),
    )
    augment: tuple[str, ...] = _option(
        (),
        "random changes of training images, comma-separated: any of shiftN (up to N "
        "pixels), rotateN (degrees), zoomX (fraction), elastic, erase (a square), flip",
    )
    label_smoothing: float = _option(
        0.0,
        "share of the labels that is spread evenly over all classes in training",
        _DECAY,
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
        _DECAY,
        needs=("optimizer", *ADAMS),
    )
    beta2: float = _option(
        0.999,
        "decay per step of Adam's mean of the squared gradients",
        _DECAY,
        needs=("optimizer", *ADAMS),
    )
    momentum: float = _option(
        0.0, "momentum of SGD", _DECAY, needs=("optimizer", "sgd")
    )
    nesterov: bool = _option(False, "use Nesterov momentum", needs=("optimizer", "sgd"))
    weight_decay: float = _option(
        1e-4,
        "decoupled weight decay of AdamW",
        Rule("a finite number >= 0", lambda value: 0 <= value < math.inf),
        needs=("optimizer", "adamw"),
    )
    learning_rate: float = _option(
        {"mlp": 3e-3, "lstm": 5e-3, "cnn": 3e-3, CUSTOM: 3e-3},
        "learning rate, or its peak under a schedule; chosen for Adam",
        _SIZE,
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
        _FRACTION,
        needs=("schedule", "cosine", "onecycle"),
    )
    clip_norm: float | None = _option(None, "clip gradients to this global norm", _SIZE)
    ema: float | None = _option(
        None,
        "evaluate and save an exponential moving average of the parameters, with this "
        "decay per step",
        _FRACTION,
    )
    batch_size: int = _option(128, "training images per step", _POSITIVE)
    epochs: int = _option(
        {"mnist": 5, "fashion_mnist": 5, "kmnist": 5, "digits": 40, "idx": 5},
        "passes over the training set",
        _POSITIVE,
    )
    patience: int | None = _option(
        None,
        "stop after N epochs without a lower validation loss, and keep the parameters "
        "of the epoch with the lowest",
        _POSITIVE,
    )
    tta: int = _option(
        0,
        "test also with probabilities averaged over all shifts by up to this many "
        "pixels (test-time augmentation)",
        _integers(0, 4),
    )
    seed: int = _option(
        0, "seed of the initial parameters, shuffling and dropout", _SEED
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
        _integers(0, 1024),
    )

    @property
    def name(self) -> str:
        """Short name of the network: the model, or the class of a custom one."""
        return self.model.rpartition(":")[2]

    def require_validation(self, flag: str, value: object) -> None:
        """Raises InputError if a flag needs images held out of the training set."""
        if self.validation != "fraction":
            raise InputError(
                f"--{flag}={value} needs a validation set from the training set; got "
                f"--validation={self.validation}; give --validation=fraction or leave "
                f"--{flag} out"
            )

    def for_dataset(self, name: str) -> "TrainConfig":
        """Returns the config with the defaults that `dataset="auto"` left open.

        A dataset of another name than those of `DATASETS` has MNIST's defaults.
        """
        if self.epochs is not None:
            return self
        name = name if name in DATASETS else "mnist"
        return dataclasses.replace(self, epochs=TrainConfig(dataset=name).epochs)

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            defaults, rule = field.metadata["defaults"], field.metadata["rule"]
            if value is None and defaults:
                value = defaults.get(model_kind(self.model), defaults.get(self.dataset))
                if value is None:  # until the dataset is loaded
                    continue
            value = _convert(name, hints[name], rule, value)
            if value == () and field.default:
                raise InputError(f"--{name} must not be empty")
            object.__setattr__(self, name, value)
        if self.nesterov and self.optimizer == "sgd" and self.momentum == 0.0:
            raise InputError(
                "--nesterov needs --momentum above 0; got --momentum=0.0; give a value "
                "such as --momentum=0.9"
            )
        if self.patience is not None:
            self.require_validation("patience", self.patience)
        for stage in self.conv:
            parse_conv_stage(stage)
        if len(dict(map(parse_augmentation, self.augment))) < len(self.augment):
            raise InputError(
                f"--augment={as_text(self.augment)} has an augmentation twice; leave "
                "one of them out"
            )
        layers = len(self.hidden) + len(self.lstm_units) * (self.model == "lstm")
        if len(self.dropout) not in (1, layers) and self.model in MODELS:
            raise InputError(
                f"--dropout must be one rate, or one for each of the {layers} LSTM and "
                f"hidden dense layers; got {as_text(self.dropout)}"
            )


def _convert(name: str, hint: Any, rule: Rule, value: Any) -> Any:
    """Returns a checked value as the type of its field.

    Lists become tuples, integers floats, and NumPy's numbers Python's.
    """
    if isinstance(hint, types.UnionType):
        return None if value is None else _convert(name, hint.__args__[0], rule, value)
    kind: Any = typing.get_origin(hint) or hint
    kinds: Mapping[Any, Any] = {int: numbers.Integral, float: numbers.Real, tuple: list}
    fits = isinstance(value, kind | kinds.get(kind, kind))
    if not fits or isinstance(value, bool) != (kind is bool):
        raise InputError(f"--{name} must be of type {hint}; got {value!r}")
    if kind is tuple:
        return tuple(_convert(name, hint.__args__[0], rule, item) for item in value)
    value = kind(value)
    if not rule.check(ctypes.c_float(value).value if kind is float else value):
        raise InputError(f"--{name} must be {rule.allowed}; got {value}")
    return value


def check_used(config: TrainConfig, given: Collection[str] | None = None) -> None:
    """Raises InputError if a field that the user chose has no effect with the others.

    Those fields are `given`, by default all whose value is not the default.
    """
    given = changed_fields(config, config.dataset) if given is None else given
    for field in dataclasses.fields(config):
        if field.name not in given or not field.metadata["needs"]:
            continue
        other, *values = field.metadata["needs"]
        chosen = getattr(config, other)
        if (model_kind(chosen) if other == "model" else chosen) not in values:
            raise InputError(
                f"--{field.name}={as_text(getattr(config, field.name))} only applies "
                f"with --{other}={' or '.join(values)}; got --{other}={chosen}; leave "
                "one of them out"
            )
    if any(config.dropout) and not config.hidden and config.model != "lstm":
        raise InputError(
            f"--dropout={as_text(config.dropout)} applies after hidden dense layers, "
            "but --hidden is empty; leave one of them out"
        )


def as_text(value: Any) -> str:
    """Formats a field's value as on the command line."""
    if value is None:
        return "none"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def changed_fields(config: TrainConfig, dataset: str) -> dict[str, Any]:
    """Returns the fields, without the seed, that differ from the model's defaults.

    `dataset` is the name of the loaded dataset, whose defaults `dataset="auto"` takes.
    """
    default = TrainConfig(model=config.model).for_dataset(dataset)
    return {
        field.name: value
        for field in dataclasses.fields(config)
        if field.name not in ("model", "seed", "dataset")
        and (value := getattr(config, field.name)) != getattr(default, field.name)
    }
