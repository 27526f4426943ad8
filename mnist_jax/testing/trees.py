"""Compares trees of arrays, and refuses compilations and transfers in a context."""

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import numpy as np

from mnist_jax.errors import InputError
from mnist_jax.training.checkpoints import leaf_names

# Of every compilation, also one that the cache on disk saves.
_COMPILED = "/jax/core/compile/backend_compile_duration"
LOOPS = "jit(cond)", "jit(scan)", "jit(while)"


def require(condition: Any, message: str) -> None:
    """Raises AssertionError, also under `python -O`, which skips `assert`."""
    if not condition:
        raise AssertionError(message)


def require_known(names: Collection[str], known: Collection[str]) -> None:
    """Raises InputError for the name of a check that there is not."""
    names = [names] if isinstance(names, str) else names  # not its letters
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"{unknown[0]} is not one of the checks {', '.join(known)}")


@contextlib.contextmanager
def explained(message: str) -> Iterator[None]:
    """Puts a message before that of an AssertionError in the context."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{message} ({error})") from error


def named(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by their names."""
    names = [name or "the value" for name in leaf_names(tree)]
    return dict(zip(names, jax.tree.leaves(tree), strict=True))


def require_same_types(got: Any, want: Any, what: str) -> None:
    """Asserts that the leaves of two trees have equal paths, shapes and dtypes.

    Weak types, which a jitted function is compiled for too, must be equal as well.
    """
    types = [
        {name: _describe(leaf) for name, leaf in named(tree).items()}
        for tree in (got, want)
    ]
    for name in types[1] | types[0]:
        here, there = (each.get(name, "missing") for each in types)
        require(here == there, f"{what}: {name} is {here}, not {there}")
    here, there = (str(jax.tree.structure(tree)) for tree in (got, want))
    require(here == there, f"{what}: the tree is {here}, not {there}")


def _describe(leaf: Any) -> str:
    weak = " (weak type)" if getattr(leaf, "weak_type", False) else ""
    return f"{_dtype(leaf)}{list(np.shape(leaf))}{weak}"


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else jax.dtypes.result_type(leaf)


def assert_trees_close(
    got: Any,
    want: Any,
    rtol: float = 1e-5,
    atol: float = 0.0,
    *,
    equal_nan: bool = False,
) -> None:
    """Asserts that two trees have the same structure and types, and close values.

    Args:
        got: tree of arrays, numbers or random keys.
        want: tree to compare with.
        rtol: allowed difference, relative to a leaf's largest absolute value.
        atol: allowed difference; with both 0 the values must be equal.
        equal_nan: whether NaN equals NaN.
    """
    types = [jax.tree.map(_strong, tree) for tree in (got, want)]
    require_same_types(types[0], types[1], "the trees differ")
    wanted = named(want)
    for name, leaf in named(got).items():
        found, others = _values(leaf), _values(wanted[name])
        finite = np.isfinite(others)
        allowed = atol + rtol * np.max(np.abs(others), initial=0, where=finite)
        close = np.isclose(found, others, 0, allowed, equal_nan=equal_nan)
        if not np.all(close):
            worst = np.argmax(np.where(close, -1, np.nan_to_num(abs(found - others))))
            pair = f"{found.flat[worst]:.6g}, not {others.flat[worst]:.6g}"
            raise AssertionError(
                f"{name} differs in {np.sum(~close):,} of {close.size:,} values, such "
                f"as {pair}; allowed are differences of {allowed:.3g}"
            )


def _is_key(leaf: Any) -> bool:
    return bool(jax.dtypes.issubdtype(_dtype(leaf), jax.dtypes.prng_key))


def _strong(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(leaf), _dtype(leaf))


def _values(leaf: Any) -> np.ndarray:
    """Returns the values of an array, number or random key in float64 or complex128."""
    if _is_key(leaf):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


@contextlib.contextmanager
def no_compiling(but: Collection[str] = ()) -> Iterator[None]:
    """Asserts that JAX compiles nothing in the context, but functions of these names.

    >>> with no_compiling():
    ...     jax.jit(lambda x: x + 1)(2)
    Traceback (most recent call last):
    AssertionError: JAX compiled jit(<lambda>), but should compile nothing
    """
    names: list[str] = []

    def listen(event: str, duration_secs: float, **details: Any) -> None:
        if event == _COMPILED and details["fun_name"] not in but:
            names.append(details["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    require(not names, f"JAX compiled {', '.join(names)}, but should compile nothing")


@contextlib.contextmanager
def no_transfers() -> Iterator[None]:
    """Asserts that nothing is implicitly copied between the host and the devices.

    On CPUs, JAX does not notice when an array on the device is read by NumPy.
    """
    with jax.transfer_guard("disallow"):
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if "transfer" not in str(error):
                raise
            raise AssertionError(str(error).splitlines()[0]) from error


def draws_random_numbers(function: Callable[..., Any], *arguments: Any) -> bool:
    """Returns whether a function draws random numbers, also such as nothing uses."""
    return "random_bits" in str(jax.make_jaxpr(function)(*arguments))


def require_new_keys(function: Callable[..., Any], *arguments: Any) -> None:
    """Asserts that a function uses each random key once, and no key from outside."""
    try:
        with jax.debug_key_reuse(True):
            traced = jax.jit(lambda *given: function(*given)).trace(*arguments)
    except jax.errors.KeyReuseError as error:
        why = str(error).splitlines()[0]
        raise AssertionError(f"a random key is used twice; split it ({why})") from error
    require(
        not any(map(_is_key, traced.jaxpr.consts)),
        "a random key comes from outside; derive all keys from the one that is given",
    )


@contextlib.contextmanager
def other_constant_keys() -> Iterator[None]:
    """Lets `jax.random.key(0)` be another key in the context, also where it is jitted.

    What depends on it does not depend on the key that it should.
    """
    before = jax.config.values["jax_random_seed_offset"]
    jax.config.update("jax_random_seed_offset", before + 1)
    try:
        yield
    finally:
        jax.config.update("jax_random_seed_offset", before)
