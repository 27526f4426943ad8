"""Replaces operations of a network, those that XLA:CPU compiles to slow code first.

XLA:CPU compiles the gradients of convolutions and of pooling inside a loop, such as
that over the steps of an epoch, to code up to 30 times slower than it could be
(github.com/jax-ml/jax/issues/12868). So a network is traced to a jaxpr, and evaluated
with other implementations of these operations, before it is differentiated: their
gradients are then used as well. To be removed when XLA:CPU is as fast. In the same way
the operands of products become bfloat16, on every platform.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from mnist_jax.models import conv_gpu, ops_cpu, precision
from mnist_jax.models.fusion import (
    Fusion,
    Operation,
    Value,
    fuse,
    fuse_batch_norm,
    fuse_convolution,
)

# Those without a rule come from the gradients of the others.
_SLOW = {*ops_cpu.RULES, "reduce_window", "select_and_scatter_add"}
_CALLS = "jit", "scan", "while", "cond", "remat2"  # whose functions are rewritten


class _Rules(NamedTuple):
    """What to use instead of operations."""

    # Functions of an operation's inputs and parameters, by the name of its primitive;
    # they return None to leave it as it is.
    primitives: Mapping[str, Callable[..., jax.Array | None]]
    fusions: tuple[Fusion, ...]

    @property
    def names(self) -> set[str]:
        """The operations without which a function stays as it is."""
        return {*self.primitives, *(["conv_general_dilated"] if self.fusions else [])}


def _make_rules(impl: str, bfloat16: bool) -> _Rules:
    primitives = precision.RULES if bfloat16 else {}
    if impl == "cpu":
        stage = partial(fuse_convolution, ops_cpu.convolve, ops_cpu.can_fuse)
        return _Rules(primitives | ops_cpu.RULES, (stage, fuse_batch_norm))
    if impl == "gpu":
        convolve = partial(conv_gpu.convolve, bfloat16=bfloat16)
        return _Rules(
            primitives, (partial(fuse_convolution, convolve, conv_gpu.can_fuse),)
        )
    return _Rules(primitives, ())


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """A linen module that computes the same as another, with operations replaced."""

    plain: nn.Module
    impl: str = "cpu"  # or "gpu"; "plain" replaces nothing
    bfloat16: bool = False  # rounds operands of products, and of other convolutions

    def init(self, *args: Any, **options: Any) -> Any:
        """Returns the other module's initial variables."""
        return self.plain.init(*args, **options)

    def apply(self, variables: Any, images: jax.Array, **options: Any) -> Any:
        """Returns what the other module's `apply` returns."""
        arrays = {k: v for k, v in options.items() if k in ("rngs", "batch_offset")}
        static = {k: v for k, v in options.items() if k not in arrays}

        def apply(variables: Any, images: jax.Array, arrays: Any) -> Any:
            return self.plain.apply(variables, images, **arrays, **static)

        run = rewrite(apply, self.impl, self.bfloat16)
        return run(variables, images, arrays)

    @property
    def __call__(self) -> Any:
        """The other module's `__call__`, for its signature."""
        return self.plain.__call__


def without_rewriting(model: Any) -> Any:
    """Returns the module that a network computes the same as."""
    return model.plain if isinstance(model, Rewritten) else model


def rewrite(
    function: Callable[..., Any], impl: str = "cpu", bfloat16: bool = False
) -> Callable[..., Any]:
    """Returns a function with the same results, by other operations.

    Args:
        function: of trees of arrays, that JAX can trace; returns such a tree.
        impl: as of `Rewritten`, as is `bfloat16`.
        bfloat16: whether to round operands.
    """
    rules = _make_rules(impl, bfloat16)

    def rewritten(*args: Any) -> Any:
        traced, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        if not _operations(traced.jaxpr, rules.names):
            return function(*args)
        outputs = _evaluate(rules, traced.jaxpr, traced.consts, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return rewritten


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """Yields the jaxprs among an equation's parameters."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                item = item.jaxpr
            if isinstance(item, Jaxpr):
                yield item


def slow_operations(jaxpr: Jaxpr) -> set[str]:
    """Returns the operations of a jaxpr, at any depth, that loops make slow."""
    return _operations(jaxpr, _SLOW)


def _operations(jaxpr: Jaxpr, names: Collection[str]) -> set[str]:
    """Returns which of these operations a jaxpr has, at any depth."""
    found = {eqn.primitive.name for eqn in jaxpr.eqns}.intersection(names)
    inner = (jaxpr for eqn in jaxpr.eqns for jaxpr in _inner_jaxprs(eqn.params))
    return found.union(*(_operations(jaxpr, names) for jaxpr in inner))


def _expand(
    rules: _Rules,
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    inputs: Sequence[Any],
    into: list[Operation],
) -> list[Any]:
    """Appends a jaxpr's operations to a list and returns its outputs."""
    env = dict(zip(jaxpr.invars, inputs, strict=True))
    env |= zip(jaxpr.constvars, consts, strict=True)

    def read(atom: Any) -> Any:
        return atom if isinstance(atom, Literal) else env[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        if eqn.primitive.name == "jit" and _operations(
            inner := eqn.params["jaxpr"].jaxpr, rules.names
        ):
            constants = map(
                Literal, eqn.params["jaxpr"].consts, (v.aval for v in inner.constvars)
            )
            outputs = _expand(rules, inner, list(constants), operands, into)
        else:
            outputs = [Value(var.aval) for var in eqn.outvars]
            into.append(Operation(eqn.primitive, eqn.params, operands, outputs))
        env |= zip(eqn.outvars, outputs, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _evaluate(
    rules: _Rules, jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]
) -> list[Any]:
    """Evaluates a jaxpr with its operations replaced."""
    inputs = [Value(var.aval) for var in (*jaxpr.constvars, *jaxpr.invars)]
    operations: list[Operation] = []
    split = len(jaxpr.constvars)
    outputs = _expand(rules, jaxpr, inputs[:split], inputs[split:], operations)
    if rules.fusions:
        operations = _keep_used(fuse(operations, outputs, rules.fusions), outputs)
    values: dict[Any, Any] = dict(zip(inputs, (*consts, *args), strict=True))

    def read(value: Any) -> Any:
        return value.val if isinstance(value, Literal) else values[value]

    for operation in operations:
        results = _run(rules, operation, [read(value) for value in operation.inputs])
        values |= zip(operation.outputs, results, strict=True)
    return [read(value) for value in outputs]


def _keep_used(operations: list[Operation], outputs: list[Any]) -> list[Operation]:
    """Leaves out the operations whose results are not used."""
    used, kept = set(map(id, outputs)), []
    for operation in reversed(operations):
        if not used.isdisjoint(map(id, operation.outputs)):
            kept.append(operation)
            used.update(map(id, operation.inputs))
    return kept[::-1]


def _run(rules: _Rules, operation: Operation, operands: list[Any]) -> list[Any]:
    """Runs an operation, or what replaces it."""
    primitive, params = operation.primitive, operation.params
    if primitive is None:
        return params["run"](*operands)
    if rule := rules.primitives.get(operation.name):
        if (result := rule(*operands, **params)) is not None:
            return [result]
    elif operation.name in _CALLS and any(
        _operations(inner, rules.names) for inner in _inner_jaxprs(params)
    ):
        if operation.name == "remat2":  # its jaxpr may have no constants
            function = partial(_evaluate, rules, params["jaxpr"], ())
            options = {name: params[name] for name in ("prevent_cse", "policy")}
            return jax.checkpoint(lambda *args: function(args), **options)(*operands)
        params = {name: _rewrite_inner(rules, params[name]) for name in params}
    results = primitive.bind(*operands, **primitive.get_bind_params(params))
    return list(results) if primitive.multiple_results else [results]


def _rewrite_inner(rules: _Rules, value: Any) -> Any:
    """Returns an equation's parameter, with its functions' operations replaced."""
    if type(value) is tuple:  # the branches of a `cond`
        return tuple(_rewrite_inner(rules, item) for item in value)
    if not isinstance(value, ClosedJaxpr):
        return value

    def function(*args: Any) -> list[Any]:
        return _evaluate(rules, value.jaxpr, value.consts, args)

    return jax.make_jaxpr(function)(*value.in_avals)
