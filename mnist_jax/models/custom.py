"""Custom networks: Flax modules given as `path/to/file.py:Class` or `module:Class`."""

import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import inspect
import operator
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from flax.errors import InvalidRngError, ModifyScopeVariableError

from mnist_jax.config import MODELS, TrainConfig
from mnist_jax.data.types import Shapes
from mnist_jax.errors import InputError
from mnist_jax.models.model_args import parse_model_args
from mnist_jax.models.nnx_module import (
    NNXNetwork,
    call_arguments,
    join_params,
    wrap_nnx,
)
from mnist_jax.models.rewrite import without_rewriting

NORMALIZE = "give batch normalization use_running_average=not train"


def source_sha256(spec: str) -> str:
    """Returns the sha256 of the source of a custom network.

    It covers the file that defines the class, not what that file imports.

    Raises:
        InputError: the file, module or source cannot be found.
    """
    target, _, name = spec.rpartition(":")
    if not target.endswith(".py"):
        module = importlib.import_module(target)
        if file := getattr(module, "__file__", None):
            return _module_sha256(file)
        cls = _find_class(spec, module)
        try:
            source = inspect.getsource(cls)  # of a notebook
        except (OSError, TypeError) as error:
            raise InputError(
                f"--model={spec}: the source of {name} cannot be found; define it in a "
                "file or a notebook"
            ) from error
        return hashlib.sha256(source.encode()).hexdigest()
    return hashlib.sha256(_read(spec, Path(target))).hexdigest()


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


def network_sha256(config: TrainConfig) -> str | None:
    """Returns `source_sha256` of a custom network, None for the built-in ones."""
    return None if config.model in MODELS else source_sha256(config.model)


@functools.lru_cache(maxsize=16)
def create_custom(
    spec: str, sha256: str, args: tuple[str, ...], shapes: Shapes
) -> nn.Module:
    """Returns an instance of a custom network.

    Args:
        spec: file or module, and class.
        sha256: `source_sha256` of it, so that changed code is loaded again.
        args: as in `TrainConfig.model_args`; other fields have their defaults, but a
            field `classes` has the number of classes of the data.
        shapes: of the images, and the number of classes.

    Raises:
        InputError: the class cannot be loaded, has no such field, or does not map
            images of that shape to logits `[B,classes]`.
    """
    target, _, name = spec.rpartition(":")
    if target.endswith(".py"):
        module = _load_file(Path(target), sha256)
    else:
        module = importlib.import_module(target)
    model = instantiate(_find_class(spec, module), args, shapes)
    check_network(f"--model={spec}", model, shapes)
    return model


def instantiate(cls: Any, args: Sequence[str], shapes: Shapes) -> nn.Module:
    """Returns an instance of a linen or NNX module class, as `create_custom`."""
    fields = parse_model_args(cls, args)
    if "classes" in inspect.signature(cls.__init__).parameters:
        fields.setdefault("classes", shapes.classes)
    try:
        model = wrap_nnx(cls, fields) if _is_nnx(cls) else cls(**fields)
        hash(model)
    except TypeError as error:
        error.add_note("give every field a hashable default or a value by model_args")
        raise
    return model


def check_network(name: str, model: nn.Module, shapes: Shapes) -> None:
    """Checks that a model maps images to logits, in evaluation and in training.

    Args:
        name: of the model, for messages.
        model: a linen module.
        shapes: of the images, and the number of classes.

    Raises:
        InputError: it is not a linen module, it needs a random key in evaluation or
            another one than `dropout` in training, its batch statistics are updated in
            evaluation or never, it has no parameters, its other variables cannot be
            averaged over devices, or its outputs are not logits `[B,classes]`.
    """
    if not isinstance(model, nn.Module):
        given = f"an instance of {type(model).__name__}; give its class"
        raise InputError(
            f"{name} must be a flax.linen module or the class of a flax.nnx module; "
            f"got {given if _is_nnx(type(model)) else repr(model)}"
        )
    dropout = {"dropout": jax.random.key(1)}

    def run(images: jax.Array, train: bool) -> Any:
        options = call_options(model, train)
        variables = init_variables(model, jax.random.key(0), images[:1])
        others = {name: tree for name, tree in variables.items() if name != "params"}
        if not train:
            return variables, model.apply(variables, images, **options), others

        def forward(params: Any) -> Any:
            trained = {**others, "params": params}
            mutable, rngs = list(others), dropout
            outputs, updated = model.apply(
                trained, images, rngs=rngs, mutable=mutable, **options
            )
            trees = (each.get("batch_stats", {}) for each in (others, updated))
            kept = any(map(operator.is_, *map(jax.tree.leaves, trees)))
            if kept and not isinstance(model, NNXNetwork):  # whose layer may be unused
                raise InputError(f"{name}: no step updates its statistics; {NORMALIZE}")
            return outputs, updated

        params = variables.get("params", {})
        outputs, backward, updated = jax.vjp(forward, params, has_aux=True)
        backward(jax.tree.map(jnp.ones_like, outputs))
        return variables, outputs, updated

    for size, train in ((2, False), (1, False), (2, True)):
        given_images = f"[{size},{shapes.image[0]},{shapes.image[1]}]"
        images = jax.ShapeDtypeStruct((size, *shapes.image), jnp.float32)
        try:
            variables, logits, updated = jax.eval_shape(
                partial(run, train=train), images
            )
        except Exception as error:  # whatever the user's code raises
            phase = "training" if train else "evaluation"
            if advice := _advice(error, train):
                raise InputError(f"{name}: in {phase} {advice}") from error
            error.add_note(f"{name} was called on images {given_images} in {phase}")
            raise
        params = variables.get("params", {})
        if not params:
            raise InputError(f"{name} has no parameters; there is nothing to train")
        for collection, tree in variables.items():
            if collection in params:
                raise InputError(
                    f"{name} has a layer and a collection of variables that are both "
                    f"called {collection}; rename the layer"
                )
            for leaf in jax.tree.leaves(tree):
                if not jnp.issubdtype(leaf.dtype, jnp.floating):
                    raise InputError(
                        f"{name} has variables of type {leaf.dtype} in {collection}; "
                        "only those of a float type can be trained, or averaged over "
                        "devices"
                    )
            new, old = jax.tree.map(jnp.shape, (updated.get(collection, tree), tree))
            if new != old:
                raise InputError(
                    f"{name}: training changes the number or the shapes of the arrays "
                    f"in {collection}; give sow() a reduce_fn that keeps them, or sow "
                    "into intermediates, which training ignores"
                )
        shape = getattr(logits, "shape", None)
        expected = (size, shapes.classes)
        if shape != expected or not jnp.issubdtype(logits.dtype, jnp.floating):
            given = type(logits).__name__
            if shape is not None:
                given = f"{logits.dtype} {list(shape)}"
            raise InputError(
                f"{name} returns {given} for images {given_images}; it must return "
                f"logits {list(expected)} of a float type"
            )


def _advice(error: Exception, train: bool) -> str:
    """Returns what is wrong with dropout or normalization, "" for other errors."""
    if isinstance(error, InvalidRngError):
        needed = str(error).partition(" (https://")[0].replace("None", "it")
        if train:
            advice = 'dropout is the only random key there; use make_rng("dropout")'
        else:
            advice = (
                "nothing may be random there; give nn.Dropout deterministic=not train"
            )
        return f"{needed}, but {advice}"
    if isinstance(error, ModifyScopeVariableError):
        return f"it updates variables, which only training may; {NORMALIZE}"
    if missing := re.match(r'Parameter "(\w+)" must be passed', str(error)):
        return f"a layer has no {missing[1]}; give it {missing[1]}=not train"
    return ""


def _is_nnx(cls: Any) -> bool:
    return inspect.isclass(cls) and issubclass(cls, nnx.Module)


def _is_module(cls: Any) -> bool:
    return _is_nnx(cls) or inspect.isclass(cls) and issubclass(cls, nn.Module)


def init_variables(
    model: nn.Module, key: jax.Array, images: jax.Array
) -> dict[str, Any]:
    """Returns a network's initial variables, by collection."""
    model = without_rewriting(model)
    # An NNX module asks for the key of its dropout when it is created.
    keys = {"params": key, "dropout": key}
    # Without the boxes of `nn.with_partitioning`: our mesh has none of their axes.
    variables = nn.unbox(model.init(keys, images, **call_options(model, False)))
    return join_params(variables) if isinstance(model, NNXNetwork) else dict(variables)


def call_options(
    model: nn.Module, train: bool, batch_offset: Any = None
) -> dict[str, Any]:
    """Returns the keyword arguments to call a network with, of those that it takes.

    Args:
        model: any linen module.
        train: whether it is called for training.
        batch_offset: index of the first image in the whole batch, or None.
    """
    model = without_rewriting(model)
    options = dict.fromkeys(("train", "training", "is_training"), train)
    options |= dict.fromkeys(("deterministic", "use_running_average"), not train)
    if batch_offset is not None:
        options["batch_offset"] = batch_offset
    if isinstance(model, NNXNetwork):  # needs train for the modes train() and eval()
        taken = call_arguments(model.nnx_class) | {"train"}
    else:
        taken = call_arguments(model)
    return {name: value for name, value in options.items() if name in taken}


def _find_class(spec: str, module: ModuleType) -> Any:
    """Returns the Flax module class that a spec names in its Python module."""
    target, _, name = spec.rpartition(":")
    cls = getattr(module, name, None)
    if cls is not None and not _is_module(cls):
        raise InputError(f"--model={spec}: {name} is not a Flax module class")
    if cls is None:
        modules = [key for key, value in vars(module).items() if _is_module(value)]
        raise InputError(
            f"--model={spec}: {target} has no Flax module {name}; it has "
            f"{', '.join(modules) or 'none'}"
        )
    return cls


def _read(spec: str, path: Path) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise InputError(
            f"--model={spec}: cannot read {path} ({error.strerror}); give the path of "
            "a Python file, relative to the working directory (or, for a finished run, "
            "to a folder above its run directory)"
        ) from error


def _load_file(path: Path, sha256: str) -> ModuleType:
    """Imports a file under a name unique to its content.

    The file can import the modules beside it. They are forgotten afterwards, since
    another folder may have modules of the same names.
    """
    path = Path(path).expanduser().absolute()
    loading = importlib.util.spec_from_file_location(f"{path.stem}_{sha256[:12]}", path)
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
