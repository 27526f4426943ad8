"""Finds operations of a network that are faster together, for `rewrite`.

A convolution is computed with the bias, activation and max pooling that follow it, and
the dozen operations of a batch normalization as one.
"""

import collections
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Literal

from mnist_jax.models.batch_norm import normalize

_LARGEST_POOL = 9  # elements of a window; each is a phase of the fused stage


class Value:
    """An array of the graph, with its shape and dtype."""

    def __init__(self, aval: Any) -> None:
        self.aval = aval


class Operation(NamedTuple):
    """An equation of a jaxpr, with the functions called by `jit` expanded into it."""

    primitive: Any
    params: dict[str, Any]
    inputs: list[Any]  # of Value or Literal
    outputs: list[Value]

    @property
    def name(self) -> str:
        return str(self.primitive.name) if self.primitive else "fused"


# Given an operation of a graph, returns one that computes it and others, and the one
# before which to insert that; or None.
Fusion = Callable[[Operation, "_Graph"], tuple[Operation, Operation] | None]


class _Graph:
    """Which operation computes a value, and which use it."""

    def __init__(self, operations: list[Operation], outputs: list[Any]) -> None:
        self.producers: dict[int, Operation] = {}
        self.users: dict[int, list[Any]] = collections.defaultdict(list)
        for operation in operations:
            for value in operation.outputs:
                self.producers[id(value)] = operation
            for value in operation.inputs:
                self.users[id(value)].append(operation)
        for value in outputs:
            self.users[id(value)].append(None)

    def only_user(self, value: Any) -> Operation | None:
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


def fuse(
    operations: list[Operation], outputs: list[Any], fusions: Sequence[Fusion]
) -> list[Operation]:
    """Inserts fused operations, which compute the results of several at once."""
    graph = _Graph(operations, outputs)
    inserted = collections.defaultdict(list)
    done: set[int] = set()
    for operation in reversed(operations):  # the most that can be fused comes last
        for find in fusions:
            position, fused = find(operation, graph) or (None, None)
            if fused and done.isdisjoint(map(id, fused.outputs)):
                inserted[id(position)].append(fused)
                done.update(map(id, fused.outputs))
    result = []
    for operation in operations:
        result += inserted[id(operation)]
        if done.isdisjoint(map(id, operation.outputs)):
            result.append(operation)
    return result


def fuse_convolution(
    convolve: Callable[..., Any],
    can_fuse: Callable[..., bool],
    operation: Operation,
    graph: _Graph,
) -> tuple[Operation, Operation] | None:
    """Fuses a convolution with the bias, activation and max pooling that follow it.

    `convolve` computes them, as `ops_cpu.convolve`, for what `can_fuse` accepts.
    """
    if operation.name != "conv_general_dilated":
        return None
    params, inputs = operation.params, list(operation.inputs)
    if not can_fuse(*(value.aval for value in inputs), params):
        return None
    numbers, last, stage = params["dimension_numbers"], operation, dict(params)
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
        return [convolve(x, kernel, bias, **stage)]

    return last, Operation(None, {"run": run}, inputs, last.outputs)


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


def fuse_batch_norm(
    operation: Operation, graph: _Graph
) -> tuple[Operation, Operation] | None:
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
    return mean, Operation(None, {"run": run}, inputs, fused)


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


def _activation(operation: Operation) -> str | None:
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
