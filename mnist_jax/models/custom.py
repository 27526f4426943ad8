"""Custom networks: Flax modules given as `path/to/file.py:Class` or `module:Class`."""

import ast
import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Sequence, Set
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict
from flax.nnx.bridge import ToLinen
from flax.traverse_util import flatten_dict, unflatten_dict

from mnist_jax.config import MODELS, TrainConfig
from mnist_jax.data.types import Shapes
from mnist_jax.errors import InputError
from mnist_jax.models.rewrite import without_rewriting

_WORDS = {"true": True, "false": False, "none": None}


def network_sha256(config: TrainConfig) -> str | None:
    """Returns the sha256 of the source of a custom network, None for a built-in one.

    It covers the file that defines the class, not what that file imports.
    """
    if config.model in MODELS:
        return None
    target, _, name = config.model.rpartition(":")
    if target.endswith(".py"):
        return hashlib.sha256(Path(target).expanduser().read_bytes()).hexdigest()
    module = importlib.import_module(target)
    if file := getattr(module, "__file__", None):
        return _module_sha256(file)
    source = inspect.getsource(getattr(module, name))  # of a notebook
    return hashlib.sha256(source.encode()).hexdigest()


@functools.cache
def _module_sha256(file: str) -> str:
    """Hashes a module's file once: editing it does not change what was imported."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def find_network(config: TrainConfig, folder: Path) -> TrainConfig:
    """Returns a run's config with the file of its custom network, wherever that is.

    A relative path is looked up in the working directory, then in the folders above the
    run directory, since the run may be read from elsewhere than where it was trained.
    """
    target, _, name = config.model.rpartition(":")
    if target.endswith(".py") and not Path(target).expanduser().exists():
        for parent in folder.resolve().parents:
            if (parent / target).exists():
                return dataclasses.replace(config, model=f"{parent / target}:{name}")
    return config


@functools.lru_cache(maxsize=16)
def create_custom(
    spec: str, sha256: str | None, args: tuple[str, ...], shapes: Shapes
) -> nn.Module:
    """Returns an instance of a custom network.

    Args:
        spec: file or module, and class.
        sha256: `network_sha256` of it, so that changed code is loaded again.
        args: as in `TrainConfig.model_args`.
        shapes: of the images, and the number of classes.
    """
    target, _, name = spec.rpartition(":")
    if target.endswith(".py"):
        module = _load_file(Path(target).expanduser().absolute(), sha256)
    else:
        module = importlib.import_module(target)
    cls = getattr(module, name, None)
    if not (inspect.isclass(cls) and issubclass(cls, nn.Module | nnx.Module)):
        raise InputError(f"--model={spec} is not the class of a Flax module")
    return instantiate(cls, args, shapes)


def instantiate(cls: Any, args: Sequence[str], shapes: Shapes) -> nn.Module:
    """Returns an instance of a linen or NNX module class.

    Fields that `args` do not give have their defaults, but a field `classes` has the
    number of classes of the data.
    """
    fields = parse_model_args(args)
    if "classes" in inspect.signature(cls.__init__).parameters:
        fields.setdefault("classes", shapes.classes)
    if issubclass(cls, nnx.Module):
        # Without its metadata, a variable is a plain array, as linen's are.
        model = NNXNetwork(cls, kwargs=FrozenDict(fields), metadata_fn=None)
    else:
        model = cls(**fields)
    hash(model)  # fields may not be lists or arrays
    return model


def parse_model_args(args: Sequence[str]) -> dict[str, Any]:
    """Returns the values of a module's fields, which are Python literals or words.

    A tuple may be spread over several `args`, since flags are split at commas. A list
    becomes a tuple.

    >>> parse_model_args(["width=32", "rates=[0.1", "0.5]", "kind=gelu"])
    {'width': 32, 'rates': (0.1, 0.5), 'kind': 'gelu'}
    """
    call: Any = ast.parse(f"f({','.join(args)})", mode="eval").body
    if call.args:
        raise InputError(
            f"--model_args={','.join(args)} must be fields with values, such as "
            "width=64,depth=2"
        )
    return {keyword.arg: _value(keyword.value) for keyword in call.keywords}


def _value(node: ast.expr) -> Any:
    """Returns the value of a literal, a tuple for a list, or the text of a word."""
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(map(_value, node.elts))
    try:
        return ast.literal_eval(node)
    except ValueError:
        text = ast.unparse(node)
        return _WORDS.get(text.lower(), text)


def rename_params(variables: dict[str, Any]) -> dict[str, Any]:
    """Returns an NNX module's variables, those of `nnx.Param`'s subclasses in `params`.

    Such as the parameters of LoRA.
    """
    renamed = {}
    for (name, *path), leaf in flatten_dict(variables).items():
        kind = nnx.variable_type_from_name(name, allow_register=True)
        renamed["params" if issubclass(kind, nnx.Param) else name, *path] = leaf
    return unflatten_dict(renamed)


class NNXNetwork(ToLinen):
    """An NNX module that maps images `[B,H,W]` to logits `[B,classes]`.

    Its parameters and batch statistics become linen's collections. Dropout and batch
    normalization are set for training or evaluation by `module.train()` and `.eval()`;
    `train` is also passed to a `__call__` that takes it.
    """

    def __call__(  # type: ignore[override]
        self, images: jax.Array, train: bool = False, **options: Any
    ) -> jax.Array:
        """Returns the logits of images."""
        if "train" in _call_arguments(self):
            options["train"] = train

        def run(module: Any, images: jax.Array) -> jax.Array:
            module.train() if train else module.eval()
            return module(images, **options)

        return super().__call__(images, nnx_method=run)


def _call_arguments(model: nn.Module) -> Set[str]:
    """Returns the names of the arguments that a network is called with."""
    network: Any = model.nnx_class if isinstance(model, NNXNetwork) else model
    return inspect.signature(network.__call__).parameters.keys()


def call_options(
    model: nn.Module, train: bool, batch_offset: Any = None
) -> dict[str, Any]:
    """Returns the keyword arguments to call a network with, of those that it takes.

    `batch_offset` is the index of the first image in the whole batch, or None.
    """
    model = without_rewriting(model)
    options = dict.fromkeys(("train", "training", "is_training"), train)
    options |= dict.fromkeys(("deterministic", "use_running_average"), not train)
    if batch_offset is not None:
        options["batch_offset"] = batch_offset
    taken = _call_arguments(model)
    if isinstance(model, NNXNetwork):  # for the modes train() and eval()
        taken |= {"train"}
    return {name: value for name, value in options.items() if name in taken}


def _load_file(path: Path, sha256: str | None) -> ModuleType:
    """Imports a file under a name unique to its content.

    The file can import the modules beside it. They are forgotten afterwards, since
    another folder may have modules of the same names.
    """
    loading = importlib.util.spec_from_file_location(f"{path.stem}_{sha256}", path)
    assert loading is not None and loading.loader is not None
    module = importlib.util.module_from_spec(loading)
    sys.modules[loading.name] = module  # dataclasses look their module up
    before = set(sys.modules)
    sys.path.insert(0, str(path.parent))
    try:
        loading.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
        for name in sys.modules.keys() - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).parent == path.parent:
                del sys.modules[name]
    return module
