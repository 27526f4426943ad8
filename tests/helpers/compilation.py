"""Flags and options of XLA: quick ones for most tests, those of users for some."""

from collections.abc import Callable
from typing import Any

import jax

# XLA's older fusion code, which jax 0.11 no longer has, compiles in half the time.
_HAS_OLD_FUSIONS = jax.__version_info__ < (0, 11)
# For programs that run once and need not be fast: LLVM does not optimize, and compiles
# in one piece, for the one core of a worker. Results differ by rounding only.
QUICK_FLAGS = " ".join(
    [
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",
        *(["--xla_cpu_use_fusion_emitters=false"] if _HAS_OLD_FUSIONS else []),
    ]
)


def users_options() -> dict[str, str]:
    """Returns the compiler options that users get, which `QUICK_FLAGS` change."""
    options = {"xla_backend_optimization_level": "3"}
    if _HAS_OLD_FUSIONS:
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
