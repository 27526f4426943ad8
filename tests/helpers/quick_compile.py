"""Compiles programs quickly for tests, or with the options that users get."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

# LLVM without optimizations, and XLA's older fusion code. Results differ only by
# rounding. A convolution stage and its gradients compile in 0.1 s of CPU time, not 0.7.
_QUICK = {
    "xla_backend_optimization_level": "0",
    "xla_cpu_use_fusion_emitters": "False",
}
# XLA's defaults, which `conftest.py` changes.
_USERS = {
    "xla_backend_optimization_level": "3",
    "xla_cpu_use_fusion_emitters": "True",
}


@functools.cache
def _known_options(users: bool) -> Mapping[str, str]:
    """Returns the options that this jaxlib supports."""
    known = {}
    for name, value in (_USERS if users else _QUICK).items():
        try:
            jax.jit(lambda: 0, compiler_options={name: value})()
        except jax.errors.JaxRuntimeError:
            continue
        known[name] = value
    return known


def quick_jit(
    function: Callable[..., Any], optimize: bool = False, **arguments: Any
) -> Any:
    """Returns `jax.jit` of a function with options that compile quickly.

    For references, and for code that other tests check as compiled for users. The
    result must not be called in another jitted function.

    Args:
        function: the function to compile.
        optimize: enables LLVM's optimizations, for long-running programs: XLA compiles
            float64 convolutions to plain loops, 17 times slower without them.
        **arguments: arguments of `jax.jit`.
    """
    options = dict(_known_options(users=False))
    if optimize:
        options.pop("xla_backend_optimization_level", None)
    return jax.jit(function, compiler_options=options, **arguments)


def users_options() -> dict[str, str]:
    """Returns the compiler options that users get."""
    return dict(_known_options(users=True))


def users_jit(function: Callable[..., Any], **arguments: Any) -> Any:
    """Returns `jax.jit` of a function, compiled as for users."""
    return jax.jit(function, compiler_options=users_options(), **arguments)
