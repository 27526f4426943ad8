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
from typing import Any

import jax
from flax import linen as nn
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from mnist_jax.models import ops_cpu, precision
from mnist_jax.models.fusion import Operation, Value, fuse

# Those without a rule come from the gradients of the others.
_SLOW = {*ops_cpu.RULES, "reduce_window", "select_and_scatter_add"}
_Rules = Mapping[str, Callable[..., Any]]


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """A linen module that computes the same as another, with operations replaced."""

    plain: nn.Module
    fast: bool = True  # replaces what is slow on a CPU
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

        rules = precision.RULES if self.bfloat16 else {}
        rules = rules | (ops_cpu.RULES if self.fast else {})
        return rewrite(apply, rules)(variables, images, arrays)

    @property
    def __call__(self) -> Any:
        """The other module's `__call__`, for its signature."""
        return self.plain.__call__


def without_rewriting(model: Any) -> Any:
    """Returns the module that a network computes the same as."""
    return model.plain if isinstance(model, Rewritten) else model


def rewrite(
    function: Callable[..., Any], rules: _Rules = ops_cpu.RULES
) -> Callable[..., Any]:
    """Returns a function with the same results, by other operations.

    Args:
        function: of trees of arrays, that JAX can trace; returns such a tree.
        rules: what to use instead of primitives, by their names, as `ops_cpu.RULES`:
            a function of the operands and parameters, or None to leave it as it is.
    """

    def rewritten(*args: Any) -> Any:
        traced, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        if not _operations(traced.jaxpr, rules):
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
            inner := eqn.params["jaxpr"].jaxpr, rules
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
    if ops_cpu.RULES.items() <= rules.items():
        operations = _keep_used(fuse(operations, outputs), outputs)
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
    if rule := rules.get(operation.name):
        if (result := rule(*operands, **params)) is not None:
            return [result]
    elif any(_operations(inner, rules) for inner in _inner_jaxprs(params)):
        if call := _CALLS.get(operation.name):
            return list(call(partial(_function, rules), operands, **params))
    results = primitive.bind(*operands, **primitive.get_bind_params(params))
    return list(results) if primitive.multiple_results else [results]


def _function(rules: _Rules, closed: Any) -> Callable[..., list[Any]]:
    """Returns the function of a jaxpr, with its operations replaced."""
    if isinstance(closed, Jaxpr):
        return lambda *args: _evaluate(rules, closed, (), args)
    return lambda *args: _evaluate(rules, closed.jaxpr, closed.consts, args)


def _scan(
    function: Callable[..., Any],
    operands: list[Any],
    *,
    jaxpr: Any,
    length: int,
    reverse: bool,
    unroll: int,
    num_consts: int = 0,
    num_carry: int = 0,
    ft_in: Any = None,
    **_: Any,
) -> list[Any]:
    if ft_in is not None:  # jax 0.12: which operands are constants, carry and rows
        consts, carry, rows = map(list, ft_in.update(operands).unpack())
    else:
        consts, others = operands[:num_consts], operands[num_consts:]
        carry, rows = others[:num_carry], others[num_carry:]
    run, split = function(jaxpr), len(carry)

    def body(carry: Any, row: Any) -> tuple[list[Any], list[Any]]:
        outputs = run(*consts, *carry, *row)
        return outputs[:split], outputs[split:]

    carry, rows = lax.scan(body, carry, rows, length, reverse, unroll)
    return [*carry, *rows]


def _while(
    function: Callable[..., Any],
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
        lambda carry: function(cond_jaxpr)(*condition, *carry)[0],
        lambda carry: function(body_jaxpr)(*body, *carry),
        operands[split:],
    )


def _cond(
    function: Callable[..., Any], operands: list[Any], *, branches: Any, **_: Any
) -> list[Any]:
    index, *arguments = operands
    return lax.switch(index, list(map(function, branches)), *arguments)


def _checkpoint(
    function: Callable[..., Any],
    operands: list[Any],
    *,
    jaxpr: Jaxpr,
    prevent_cse: bool,
    policy: Any,
    **_: Any,
) -> list[Any]:
    run = jax.checkpoint(function(jaxpr), prevent_cse=prevent_cse, policy=policy)
    return run(*operands)


_CALLS: dict[str, Callable[..., Sequence[Any]]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "remat2": _checkpoint,
    "jit": lambda function, operands, *, jaxpr, **_: function(jaxpr)(*operands),
}
