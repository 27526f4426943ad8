"""Replaces the operations of a network that XLA:CPU compiles to slow code.

XLA:CPU compiles the gradients of convolutions and of pooling inside a loop, such as
that over the steps of an epoch, to code up to 30 times slower than it could be
(github.com/jax-ml/jax/issues/12868). So a network is traced to a jaxpr, and evaluated
with other implementations of these operations, before it is differentiated: their
gradients are then used as well. To be removed when XLA:CPU is as fast.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from flax import linen as nn
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from mnist_jax.models import ops_cpu
from mnist_jax.models.fusion import Operation, Value, fuse

# Those without a rule come from the gradients of the others.
_SLOW = {*ops_cpu.RULES, "reduce_window", "select_and_scatter_add"}


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """A linen module that computes the same as another, faster on a CPU."""

    plain: nn.Module

    def init(self, *args: Any, **options: Any) -> Any:
        """Returns the other module's initial variables."""
        return self.plain.init(*args, **options)

    def apply(self, variables: Any, images: jax.Array, **options: Any) -> Any:
        """Returns what the other module's `apply` returns."""
        arrays = {k: v for k, v in options.items() if k in ("rngs", "batch_offset")}
        static = {k: v for k, v in options.items() if k not in arrays}

        def apply(variables: Any, images: jax.Array, arrays: Any) -> Any:
            return self.plain.apply(variables, images, **arrays, **static)

        return rewrite(apply)(variables, images, arrays)

    @property
    def __call__(self) -> Any:
        """The other module's `__call__`, for its signature."""
        return self.plain.__call__


def without_rewriting(model: Any) -> Any:
    """Returns the module that a network computes the same as."""
    return model.plain if isinstance(model, Rewritten) else model


def rewrite(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function with the same results, faster in a compiled loop on a CPU.

    Args:
        function: of trees of arrays, that JAX can trace; returns such a tree.
    """

    def rewritten(*args: Any) -> Any:
        traced, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        if not slow_operations(traced.jaxpr):
            return function(*args)
        outputs = _evaluate(traced.jaxpr, traced.consts, jax.tree.leaves(args))
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
    names = {eqn.primitive.name for eqn in jaxpr.eqns} & _SLOW
    inner = (jaxpr for eqn in jaxpr.eqns for jaxpr in _inner_jaxprs(eqn.params))
    return names.union(*map(slow_operations, inner))


def _expand(
    jaxpr: Jaxpr, consts: Sequence[Any], inputs: Sequence[Any], into: list[Operation]
) -> list[Any]:
    """Appends a jaxpr's operations to a list and returns its outputs."""
    env = dict(zip(jaxpr.invars, inputs, strict=True))
    env |= zip(jaxpr.constvars, consts, strict=True)

    def read(atom: Any) -> Any:
        return atom if isinstance(atom, Literal) else env[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        if eqn.primitive.name == "jit" and slow_operations(
            inner := eqn.params["jaxpr"].jaxpr
        ):
            constants = map(
                Literal, eqn.params["jaxpr"].consts, (v.aval for v in inner.constvars)
            )
            outputs = _expand(inner, list(constants), operands, into)
        else:
            outputs = [Value(var.aval) for var in eqn.outvars]
            into.append(Operation(eqn.primitive, eqn.params, operands, outputs))
        env |= zip(eqn.outvars, outputs, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _evaluate(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Evaluates a jaxpr with its slow operations replaced."""
    inputs = [Value(var.aval) for var in (*jaxpr.constvars, *jaxpr.invars)]
    operations: list[Operation] = []
    split = len(jaxpr.constvars)
    outputs = _expand(jaxpr, inputs[:split], inputs[split:], operations)
    operations = _keep_used(fuse(operations, outputs), outputs)
    values: dict[Any, Any] = dict(zip(inputs, (*consts, *args), strict=True))

    def read(value: Any) -> Any:
        return value.val if isinstance(value, Literal) else values[value]

    for operation in operations:
        results = _run(operation, [read(value) for value in operation.inputs])
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


def _run(operation: Operation, operands: list[Any]) -> list[Any]:
    """Runs an operation, or what replaces it."""
    primitive, params = operation.primitive, operation.params
    if primitive is None:
        return params["run"](*operands)
    if rule := ops_cpu.RULES.get(operation.name):
        if (result := rule(*operands, **params)) is not None:
            return [result]
    elif any(map(slow_operations, _inner_jaxprs(params))):
        if call := _CALLS.get(operation.name):
            return list(call(operands, **params))
    results = primitive.bind(*operands, **primitive.get_bind_params(params))
    return list(results) if primitive.multiple_results else [results]


def _function(closed: Any) -> Callable[..., list[Any]]:
    """Returns the function of a jaxpr, with its slow operations replaced."""
    if isinstance(closed, Jaxpr):
        return lambda *args: _evaluate(closed, (), args)
    return lambda *args: _evaluate(closed.jaxpr, closed.consts, args)


def _scan(
    operands: list[Any],
    *,
    jaxpr: ClosedJaxpr,
    num_consts: int,
    num_carry: int,
    length: int,
    reverse: bool,
    unroll: int,
    **_: Any,
) -> list[Any]:
    consts, carry = operands[:num_consts], operands[num_consts:][:num_carry]

    def body(carry: Any, row: Any) -> tuple[list[Any], list[Any]]:
        outputs = _function(jaxpr)(*consts, *carry, *row)
        return outputs[:num_carry], outputs[num_carry:]

    rows = operands[num_consts + num_carry :]
    carry, rows = lax.scan(body, carry, rows, length, reverse, unroll)
    return [*carry, *rows]


def _while(
    operands: list[Any],
    *,
    cond_jaxpr: ClosedJaxpr,
    cond_nconsts: int,
    body_jaxpr: ClosedJaxpr,
    body_nconsts: int,
    **_: Any,
) -> list[Any]:
    split = cond_nconsts + body_nconsts
    condition, body = operands[:cond_nconsts], operands[cond_nconsts:split]
    return lax.while_loop(
        lambda carry: _function(cond_jaxpr)(*condition, *carry)[0],
        lambda carry: _function(body_jaxpr)(*body, *carry),
        operands[split:],
    )


def _cond(operands: list[Any], *, branches: Any, **_: Any) -> list[Any]:
    index, *arguments = operands
    return lax.switch(index, [_function(branch) for branch in branches], *arguments)


def _checkpoint(
    operands: list[Any], *, jaxpr: Jaxpr, prevent_cse: bool, policy: Any, **_: Any
) -> list[Any]:
    function = _function(jaxpr)
    return jax.checkpoint(function, prevent_cse=prevent_cse, policy=policy)(*operands)


_CALLS: dict[str, Callable[..., Sequence[Any]]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "remat2": _checkpoint,
    "jit": lambda operands, *, jaxpr, **_: _function(jaxpr)(*operands),
}
