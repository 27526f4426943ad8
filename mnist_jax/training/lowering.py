"""Lowered programs on disk, so that a start with a full cache traces nothing.

JAX's own cache of compiled programs is asked with a program already lowered, and
tracing and lowering take most of such a start. They are saved here by keeping what
`jax.export` makes of them: StableHLO, which is data and no code.
"""

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import flax
import jax
import jaxlib
import optax
from jax import export
from jax.stages import Lowered, Wrapped

from mnist_jax.data.array_cache import cache_dir, read_checked, write_checked
from mnist_jax.records.files import code_digest
from mnist_jax.training.compile_cache import uses_compile_cache


@functools.cache
def _source() -> str:
    """Returns what decides how this package lowers a program."""
    versions = [module.__version__ for module in (jax, jaxlib, flax, optax)]
    return f"{code_digest()} {versions}"


def _program_key(name: str, arguments: Sequence[Any], identity: Any) -> str:
    """Returns what names a program's file."""
    leaves, tree = jax.tree.flatten(arguments)
    parts = (
        _source(),
        jax.default_backend(),
        sorted(jax.config.values.items()),
        name,
        identity,
        tree,
        [(leaf.aval, leaf.sharding) for leaf in leaves],
    )
    return f"{name}-{hashlib.sha256(repr(parts).encode()).hexdigest()}"


def _export(program: Wrapped, arguments: Sequence[Any]) -> export.Exported:
    """Lowers a program; flat, since only flat trees need no code to be read back."""
    leaves, tree = jax.tree.flatten(arguments)

    def flat(*leaves: jax.Array) -> list[jax.Array]:
        return jax.tree.leaves(program(*jax.tree.unflatten(tree, leaves)))

    return export.export(jax.jit(flat))(*leaves)


def lower_program(
    name: str,
    program: Wrapped,
    arguments: Sequence[Any],
    results: Any,
    identity: Any,
    donate_argnums: tuple[int, ...] = (),
) -> Lowered:
    """Lowers a jitted program, or takes it from the cache if that is in use.

    On GPUs and TPUs, where this was not tried, it is always lowered.

    Args:
        name: of the program.
        program: jitted.
        arguments: arrays with the shapes and shardings of the arguments.
        results: a tree with the structure of the results.
        identity: all values that the program was made from and its arguments' shapes
            do not tell; two programs with equal ones must be the same.
        donate_argnums: what the program donates.
    """
    if not uses_compile_cache() or jax.default_backend() != "cpu":
        return program.lower(*arguments)
    path = cache_dir() / "lowered" / _program_key(name, arguments, identity)
    exported = read_checked(path, _decode)
    if exported is None:
        exported = _export(program, arguments)
        write_checked(path, bytes(exported.serialize()))
    tree = jax.tree.structure(results)

    def call(*arguments: Any) -> Any:
        return jax.tree.unflatten(tree, exported.call(*jax.tree.leaves(arguments)))

    call.__name__ = name  # in traces, and of its file in the cache of compiled programs
    return jax.jit(call, donate_argnums=donate_argnums).lower(*arguments)


def _decode(content: memoryview) -> export.Exported:
    """Reads a program that was serialized."""
    return export.deserialize(bytearray(content))
