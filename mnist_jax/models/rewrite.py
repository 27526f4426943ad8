"""Replaces the operations of a network that XLA:CPU compiles to slow code.

XLA:CPU compiles the gradients of convolutions and of pooling inside a loop, such as
that over the steps of an epoch, to code up to 30 times slower than it could be
(github.com/jax-ml/jax/issues/12868). So a network is traced to a jaxpr, and evaluated
with other implementations of these operations, before it is differentiated: their
gradients are then used as well. To be removed when XLA:CPU is as fast.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from mnist_jax.models import ops_cpu
from mnist_jax.models.batch_norm import normalize

# Those without a rule come from the gradients of the others.
_SLOW = {*ops_cpu.RULES, "reduce_window", "select_and_scatter_add"}
_LARGEST_POOL = 9  # elements of a window; each is a phase of the fused stage


class _Value:
    """An array of the graph, with its shape and dtype."""

    def __init__(self, aval: Any) -> None:
        self.aval = aval


class _Operation(NamedTuple):
    """An equation of a jaxpr, with the functions called by `jit` expanded into it."""

    primitive: Any
    params: dict[str, Any]
    inputs: list[Any]  # of _Value or Literal
    outputs: list[_Value]

    @property
    def name(self) -> str:
        return str(self.primitive.name) if self.primitive else "fused"


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
    jaxpr: Jaxpr, consts: Sequence[Any], inputs: Sequence[Any], into: list[_Operation]
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
            outputs = [_Value(var.aval) for var in eqn.outvars]
            into.append(_Operation(eqn.primitive, eqn.params, operands, outputs))
        env |= zip(eqn.outvars, outputs, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _evaluate(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Evaluates a jaxpr with its slow operations replaced."""
    inputs = [_Value(var.aval) for var in (*jaxpr.constvars, *jaxpr.invars)]
    operations: list[_Operation] = []
    split = len(jaxpr.constvars)
    outputs = _expand(jaxpr, inputs[:split], inputs[split:], operations)
    operations = _keep_used(_fuse(operations, outputs), outputs)
    values: dict[Any, Any] = dict(zip(inputs, (*consts, *args), strict=True))

    def read(value: Any) -> Any:
        return value.val if isinstance(value, Literal) else values[value]

    for operation in operations:
        results = _run(operation, [read(value) for value in operation.inputs])
        values |= zip(operation.outputs, results, strict=True)
    return [read(value) for value in outputs]


def _keep_used(operations: list[_Operation], outputs: list[Any]) -> list[_Operation]:
    """Leaves out the operations whose results are not used."""
    used, kept = set(map(id, outputs)), []
    for operation in reversed(operations):
        if not used.isdisjoint(map(id, operation.outputs)):
            kept.append(operation)
            used.update(map(id, operation.inputs))
    return kept[::-1]


def _run(operation: _Operation, operands: list[Any]) -> list[Any]:
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


class _Graph:
    """Which operation computes a value, and which use it."""

    def __init__(self, operations: list[_Operation], outputs: list[Any]) -> None:
        self.producers: dict[int, _Operation] = {}
        self.users: dict[int, list[Any]] = collections.defaultdict(list)
        for operation in operations:
            for value in operation.outputs:
                self.producers[id(value)] = operation
            for value in operation.inputs:
                self.users[id(value)].append(operation)
        for value in outputs:
            self.users[id(value)].append(None)

    def only_user(self, value: Any) -> _Operation | None:
        """Returns the operation that alone uses a value, if there is one."""
        users = self.users[id(value)]
        return users[0] if len(users) == 1 else None

    def source(self, value: Any) -> Any:
        """Returns the value of which another is at most a reshaped copy."""
        while operation := self.producers.get(id(value)):
            if operation.name not in ("reshape", "broadcast_in_dim", "squeeze"):
                break
            if isinstance(operation.inputs[0], Literal):
                break
            if operation.inputs[0].aval.size != value.aval.size:
                break
            value = operation.inputs[0]
        return value


def _fuse(operations: list[_Operation], outputs: list[Any]) -> list[_Operation]:
    """Inserts fused operations, which compute the results of several at once."""
    graph = _Graph(operations, outputs)
    inserted = collections.defaultdict(list)
    done: set[int] = set()
    for operation in reversed(operations):  # the most that can be fused comes last
        for fuse in (_fuse_convolution, _fuse_batch_norm):
            position, fused = fuse(operation, graph) or (None, None)
            if fused and done.isdisjoint(map(id, fused.outputs)):
                inserted[id(position)].append(fused)
                done.update(map(id, fused.outputs))
    result = []
    for operation in operations:
        result += inserted[id(operation)]
        if done.isdisjoint(map(id, operation.outputs)):
            result.append(operation)
    return result


def _fuse_convolution(operation: _Operation, graph: _Graph) -> Any:
    """Fuses a convolution with the bias, activation and max pooling that follow it."""
    if operation.name != "conv_general_dilated":
        return None
    params, (x, kernel) = operation.params, (v.aval for v in operation.inputs)
    if (
        not ops_cpu.can_convolve(x, kernel, params)
        or params["feature_group_count"] > 1
        or {*params["lhs_dilation"], x.ndim - 3} != {1}
    ):
        return None
    numbers, last = params["dimension_numbers"], operation
    inputs, stage = list(operation.inputs), dict(params)
    user = graph.only_user(last.outputs[0])
    if user and user.name == "add":
        bias = next(v for v in user.inputs if v is not last.outputs[0])
        shape = [1] * 4
        shape[numbers.out_spec[1]] = last.outputs[0].aval.shape[numbers.out_spec[1]]
        if bias.aval.shape == tuple(shape):
            inputs.append(bias)
            last, user = user, graph.only_user(user.outputs[0])
    if user and (activation := _activation(user)):
        stage["activation"] = activation
        last, user = user, graph.only_user(user.outputs[0])
    if user and user.name == "reduce_window_max":
        if pool := _pool_of_stage(numbers, **user.params):
            stage["pool"] = pool
            last = user

    def run(x: jax.Array, kernel: jax.Array, bias: Any = None) -> list[Any]:
        return [ops_cpu.convolve(x, kernel, bias=bias, **stage)]

    return last, _Operation(None, {"run": run}, inputs, last.outputs)


def _pool_of_stage(
    numbers: lax.ConvDimensionNumbers,
    *,
    window_dimensions: Sequence[int],
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    base_dilation: Sequence[int],
    window_dilation: Sequence[int],
) -> tuple[int, int] | None:
    """Returns the window of max pooling that can be fused into a convolution."""
    batch, features, rows, columns = (window_dimensions[i] for i in numbers.out_spec)
    if (
        window_dimensions != window_strides
        or any(map(any, padding))
        or {*base_dilation, *window_dilation, batch, features} != {1}
        or rows * columns > _LARGEST_POOL
    ):
        return None
    return rows, columns


_MEAN = ("div", ("reduce_sum", "x"), "count")
_MEAN_SQUARE = ("div", ("reduce_sum", ("square", "x")), "count")
_VARIANCE = ("max", ("sub", _MEAN_SQUARE, ("square", "mean")), "zero")
_CENTRED = ("sub", "x", "mean")
_INVERSE = ("rsqrt", ("add", "variance", "epsilon"))
_SCALED = ("mul", _CENTRED, ("mul", _INVERSE, "scale"))
_BATCH_NORM = [
    ("add", _SCALED, "bias"),
    _SCALED,
    ("add", ("mul", _CENTRED, _INVERSE), "bias"),
]


def _fuse_batch_norm(operation: _Operation, graph: _Graph) -> Any:
    """Fuses the operations of a batch normalization of the last axis."""
    if operation.name not in ("add", "mul"):
        return None
    for form in _BATCH_NORM:
        found: dict[str, Any] = {}
        if (
            _match(form, operation.outputs[0], graph, found)
            and _match(_VARIANCE, found["variance"], graph, found)
            and _match(_MEAN, found["mean"], graph, found)
        ):
            break
    else:
        return None
    x = found["x"]
    mean = graph.producers[id(found["mean"])]
    total = graph.producers[id(mean.inputs[0])]
    channels = x.aval.shape[-1]
    if (
        total.params["axes"] != tuple(range(x.aval.ndim - 1))
        or x.aval.dtype != "float32"
    ):
        return None
    names = [name for name in ("scale", "bias") if name in found]
    if any(id(found[name]) in graph.producers for name in names):
        return None
    if any(found[name].aval.size != channels for name in names):
        return None
    epsilon = found["epsilon"].val

    def run(x: jax.Array, *given: jax.Array) -> list[jax.Array]:
        params = {"scale": 1.0, "bias": 0.0} | dict(zip(names, given, strict=True))
        rows = x.reshape(-1, channels)
        scale, bias = (
            jnp.broadcast_to(params[n], (1, channels)) for n in ("scale", "bias")
        )
        y, *moments = normalize(rows, scale, bias, float(epsilon))
        return [y.reshape(x.shape), *(m[0] for m in moments)]

    fused = [operation.outputs[0], found["mean"], found["variance"]]
    inputs = [x, *(found[name] for name in names)]
    return mean, _Operation(None, {"run": run}, inputs, fused)


def _match(form: Any, value: Any, graph: _Graph, found: dict[str, Any]) -> bool:
    """Matches a value with a form: a name for it, or an operation and its inputs."""
    value = value if isinstance(value, Literal) else graph.source(value)
    if isinstance(form, str):
        known = found.setdefault(form, value)
        return known is value or (
            isinstance(value, Literal)
            and isinstance(known, Literal)
            and value.val == known.val
        )
    operation = None if isinstance(value, Literal) else graph.producers.get(id(value))
    if operation is None or operation.name != form[0]:
        return False
    orders = [operation.inputs]
    if operation.name in ("add", "mul", "max"):
        orders.append(operation.inputs[::-1])
    for inputs in orders:
        trial = dict(found)
        if all(
            _match(f, v, graph, trial) for f, v in zip(form[1:], inputs, strict=True)
        ):
            found.update(trial)
            return True
    return False


def _activation(operation: _Operation) -> str | None:
    """Returns the name of the activation that an operation applies, if it is known."""
    if operation.name == "tanh":
        return "tanh"
    if operation.name == "custom_jvp_call" and _is_relu(operation.params["call_jaxpr"]):
        return "relu"
    return None


def _is_relu(jaxpr: Any) -> bool:
    """Returns whether the function of a `custom_jvp` is that of `jax.nn.relu`."""
    if len(jaxpr.eqns) != 1:
        return False
    (eqn,) = jaxpr.eqns
    if eqn.primitive.name == "jit":
        return eqn.params["name"] == "relu" and _is_relu(eqn.params["jaxpr"])
    literals = [atom.val for atom in eqn.invars if isinstance(atom, Literal)]
    return eqn.primitive.name == "max" and literals == [0]
