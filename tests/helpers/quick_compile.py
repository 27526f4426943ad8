"""Compiles what a test needs once in less time, or as it is compiled for users."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

# Neither changes what is computed but for rounding: LLVM without its optimizations, and
# XLA's older way to write fusions. Together they compile a stage of a convolution and
# its gradients in 0.1 s of CPU time, not 0.7 s.
_QUICK = {
    "xla_backend_optimization_level": "0",
    "xla_cpu_use_fusion_emitters": "False",
}
# XLA's defaults, which `conftest.py` has changed.
_USERS = {
    "xla_backend_optimization_level": "3",
    "xla_cpu_use_fusion_emitters": "True",
}


@functools.cache
def _known_options(users: bool) -> Mapping[str, str]:
    """Returns those of the options that this jaxlib has."""
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
    """Returns `jax.jit` of a function, to be called by no other jitted function.

    For references, and for formulas that other tests hold to the definition as users
    compile them.

    Args:
        function: to compile.
        optimize: leaves LLVM its optimizations, for a program that runs long: XLA
            writes convolutions in float64 as plain loops, 17 times slower without.
        **arguments: of `jax.jit`.
    """
    options = dict(_known_options(users=False))
    if optimize:
        options.pop("xla_backend_optimization_level", None)
    return jax.jit(function, compiler_options=options, **arguments)


def users_options() -> dict[str, str]:
    """Returns the compiler options that programs have for users."""
    return dict(_known_options(users=True))


def users_jit(function: Callable[..., Any], **arguments: Any) -> Any:
    """Returns `jax.jit` of a function, compiled as for users."""
    return jax.jit(function, compiler_options=users_options(), **arguments)
