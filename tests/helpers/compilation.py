"""Compiles as for users, unlike most tests."""

from collections.abc import Callable
from typing import Any

import jax

from mnist_jax.pytest_plugin import HAS_OLD_FUSIONS


def users_options() -> dict[str, str]:
    """Returns the compiler options that users get, which `QUICK_FLAGS` change."""
    options = {"xla_backend_optimization_level": "3"}
    if HAS_OLD_FUSIONS:
        options["xla_cpu_use_fusion_emitters"] = "True"
    return options


def users_jit(function: Callable[..., Any], **arguments: Any) -> Any:
    """Returns `jax.jit` of a function, compiled as for users."""
    return jax.jit(function, compiler_options=users_options(), **arguments)


def optimized_jit(function: Callable[..., Any], **arguments: Any) -> Any:
    """Returns `jax.jit` of a function with LLVM's optimizations.

    For long-running references: XLA compiles float64 convolutions to plain loops, 17
    times slower without them.
    """
    options = {"xla_backend_optimization_level": "1"}
    return jax.jit(function, compiler_options=options, **arguments)
