"""Finds operations of a network that are faster together, for `rewrite`.

A convolution is computed with the bias, activation and max pooling that follow it, and
the dozen operations of a batch normalization as one.
"""

import collections
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from mnist_jax.models.activations import ACTIVATIONS
from mnist_jax.models.batch_norm import normalize

_LARGEST_POOL = 9  # elements of a window; each is a phase of the fused stage


class Fused(NamedTuple):
    """Equations of a jaxpr as one, in place of the equation of its first output."""

    run: Callable[..., list[jax.Array]]
    invars: list[Any]
    outvars: list[Any]
    source_info: Any  # of an equation


class Graph:
    """Which equation computes a variable, and which use it."""

    def __init__(self, jaxpr: Jaxpr) -> None:
        self.producers = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}
        self.users = collections.defaultdict(list)
        uses: list[Any] = [(eqn.invars, eqn) for eqn in jaxpr.eqns]
        for atoms, user in [*uses, (jaxpr.outvars, None)]:
            for var in filter(_is_var, atoms):
                self.users[var].append(user)

    def only_user(self, var: Any) -> Any:
        """Returns the equation that alone uses a variable, if there is one."""
        users = self.users[var]
        return users[0] if len(users) == 1 else None

    def producer(self, atom: Any) -> Any:
        """Returns the equation that computes a variable; none for an input."""
        return self.producers.get(atom) if isinstance(atom, Var) else None

    def source(self, atom: Any) -> Any:
        """Returns the variable of which another is at most a reshaped copy."""
        while (
            (eqn := self.producer(atom))
            and eqn.primitive.name in ("reshape", "broadcast_in_dim", "squeeze")
            and eqn.invars[0].aval.size == atom.aval.size
        ):
            atom = eqn.invars[0]
        return atom


# Given an equation, returns one that computes its result and others; or None.
Fusion = Callable[[JaxprEqn, Graph], Fused | None]


def fuse(jaxpr: Jaxpr, fusions: Sequence[Fusion]) -> list[Any]:
    """Returns the equations to run for a jaxpr's outputs, some of them fused."""
    graph = Graph(jaxpr)
    fused: dict[Any, Fused] = {}
    for eqn in reversed(jaxpr.eqns):  # the most that can be fused comes last
        for find in fusions:
            found = find(eqn, graph)
            if found and fused.keys().isdisjoint(found.outvars):
                fused |= dict.fromkeys(found.outvars, found)
    used, result = set(filter(_is_var, jaxpr.outvars)), []
    for eqn in reversed(jaxpr.eqns):
        if used.isdisjoint(eqn.outvars) and not eqn.effects:
            continue
        run = next((fused[var] for var in eqn.outvars if var in fused), eqn)
        if run.outvars[:1] == eqn.outvars[:1]:
            result.append(run)
        used.update(filter(_is_var, [*run.outvars, *run.invars]))
    return result[::-1]


def _is_var(atom: Any) -> bool:
    return isinstance(atom, Var)  # a literal cannot be hashed


def fuse_stage(
    convolve: Callable[..., Any],
    can_fuse: Callable[..., bool],
    eqn: JaxprEqn,
    graph: Graph,
) -> Fused | None:
    """Fuses a convolution with the bias, activation and max pooling that follow it.

    `convolve` computes them, as `ops_cpu.convolve`, for what `can_fuse` accepts.
    """
    inputs, stage = list(eqn.invars), dict(eqn.params)
    if eqn.primitive.name != "conv_general_dilated" or not can_fuse(
        *(atom.aval for atom in inputs), stage
    ):
        return None
    axes: Sequence[int] = stage["dimension_numbers"].out_spec
    out: Any = eqn.outvars[0]
    user = graph.only_user(out)
    if user and user.primitive.name == "add":
        [bias] = (atom for atom in user.invars if atom is not out)
        shape = [1] * 4
        shape[axes[1]] = out.aval.shape[axes[1]]
        if bias.aval.shape == tuple(shape):
            inputs.append(bias)
            [out] = user.outvars
            user = graph.only_user(out)
    if user and (activation := _activation(user, out.aval)):
        stage["activation"] = activation
        [out] = user.outvars
        user = graph.only_user(out)
    if user and user.primitive.name == "reduce_window_max":
        if pool := _pool_of_stage(axes, user.params):
            stage["pool"] = pool
            [out] = user.outvars

    def run(x: jax.Array, kernel: jax.Array, bias: Any = None) -> list[Any]:
        return [convolve(x, kernel, bias, **stage)]

    return Fused(run, inputs, [out], eqn.source_info)


def _activation(eqn: JaxprEqn, aval: Any) -> str | None:
    """Returns the activation of an array that an equation computes, if it is known."""
    for name in ("relu", "tanh"):
        [known] = jax.make_jaxpr(ACTIVATIONS[name])(aval).eqns
        functions = [str(each.params.get("call_jaxpr")) for each in (known, eqn)]
        if known.primitive is eqn.primitive and functions[0] == functions[1]:
            return name
    return None


def _pool_of_stage(
    axes: Sequence[int], params: dict[str, Any]
) -> tuple[int, ...] | None:
    """Returns the window of max pooling that can be fused into a convolution.

    `axes` are those of the batch, the features, the rows and the columns.
    """
    size = params["window_dimensions"]
    batch, features, *pool = (size[axis] for axis in axes)
    dilations = *params["base_dilation"], *params["window_dilation"]
    if (
        size != params["window_strides"]
        or any(map(any, params["padding"]))
        or {batch, features, *dilations} != {1}
        or math.prod(pool) > _LARGEST_POOL
    ):
        return None
    return tuple(pool)


# A form is an operation and the forms of its inputs, or a name. Of a name in `_FORMS`,
# the variable has that form.
_FORMS: dict[str, Any] = {
    "mean": ("div", ("reduce_sum", "x"), "count"),
    "mean_square": ("div", ("reduce_sum", ("square", "x")), "count"),
    "variance": ("max", "zero", ("sub", "mean_square", ("square", "mean"))),
    "inverse": ("rsqrt", ("add", "variance", "epsilon")),
    "centred": ("sub", "x", "mean"),
    "scaled": ("mul", "centred", ("mul", "inverse", "scale")),
}
_BATCH_NORM = [  # as `nn.BatchNorm` computes them
    ("add", "scaled", "bias"),
    "scaled",
    ("add", ("mul", "centred", "inverse"), "bias"),
]


def fuse_batch_norm(eqn: JaxprEqn, graph: Graph) -> Fused | None:
    """Fuses the operations of a batch normalization of the last axis."""
    if eqn.primitive.name not in ("add", "mul"):
        return None
    for form in _BATCH_NORM:
        found: dict[str, Any] = {}
        if _match(form, eqn.outvars[0], graph, found):
            break
    else:
        return None
    x, mean, epsilon = found["x"], found["mean"], found["epsilon"]
    total = graph.producers[graph.source(graph.producers[mean].invars[0])]
    params = {name: found[name] for name in ("scale", "bias") if name in found}
    channels = x.aval.shape[-1]
    if (
        x.aval.dtype != "float32"
        or not isinstance(epsilon, Literal)
        or total.params["axes"] != tuple(range(x.aval.ndim - 1))
        or any(graph.producer(p) or p.aval.size != channels for p in params.values())
    ):
        return None
    outputs = [mean, found["variance"], eqn.outvars[0]]

    def run(x: jax.Array, *given: jax.Array) -> list[jax.Array]:
        values = {"scale": 1.0, "bias": 0.0} | dict(zip(params, given, strict=True))
        row = [jnp.broadcast_to(value, (1, channels)) for value in values.values()]
        y, *moments = normalize(x.reshape(-1, channels), *row, float(epsilon.val))
        results = zip((*moments, y), outputs, strict=True)
        return [array.reshape(var.aval.shape) for array, var in results]

    return Fused(run, [x, *params.values()], outputs, eqn.source_info)


def _match(form: Any, atom: Any, graph: Graph, found: dict[str, Any]) -> bool:
    """Returns whether a variable has a form, and finds those that the form names."""
    atom = graph.source(atom)
    if isinstance(form, str):
        known = found.setdefault(form, atom)
        if getattr(known, "val", known) != getattr(atom, "val", atom):
            return False
        return form not in _FORMS or _match(_FORMS[form], atom, graph, found)
    eqn, (name, *forms) = graph.producer(atom), form
    return (
        eqn is not None
        and eqn.primitive.name == name
        and all(
            _match(*pair, graph, found) for pair in zip(forms, eqn.invars, strict=True)
        )
    )
