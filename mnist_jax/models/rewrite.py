"""Replaces operations of a network, those that XLA:CPU compiles to slow code first.

XLA:CPU compiles the gradients of convolutions and of pooling inside a loop, such as
that over the steps of an epoch, to code up to 30 times slower than it could be
(github.com/jax-ml/jax/issues/12868). So a network is traced to a jaxpr, and evaluated
with other implementations of these operations, before it is differentiated: their
gradients are then used as well. To be removed when XLA:CPU is as fast. In the same way
the operands of products become bfloat16, on every platform.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jax.extend.core import jaxprs_in_params as inner_jaxprs

from mnist_jax.models import conv_gpu, ops_cpu, precision
from mnist_jax.models.fusion import Fused, Fusion, fuse, fuse_batch_norm, fuse_stage

# Those without a rule come from the gradients of the others.
_SLOW = {*ops_cpu.RULES, "reduce_window", "select_and_scatter_add"}
_CALLS = "jit", "scan", "while", "cond", "remat2"  # whose functions are rewritten


class _Rules(NamedTuple):
    """What to use instead of operations."""

    names: Collection[str]  # operations without which a function stays as it is
    # Functions of an operation's inputs and parameters, by the name of its primitive;
    # they return None to leave it as it is.
    primitives: Mapping[str, Callable[..., jax.Array | None]] = {}
    fusions: Sequence[Fusion] = ()


def _make_rules(impl: str, bfloat16: bool) -> _Rules:
    primitives = precision.RULES if bfloat16 else {}
    if impl == "cpu":
        primitives = primitives | ops_cpu.RULES
        stage = partial(fuse_stage, ops_cpu.convolve, ops_cpu.can_fuse)
        return _Rules(primitives.keys(), primitives, (stage, fuse_batch_norm))
    if impl == "gpu":
        convolve = partial(conv_gpu.convolve, bfloat16=bfloat16)
        stage = partial(fuse_stage, convolve, conv_gpu.can_fuse)
        return _Rules({*primitives, "conv_general_dilated"}, primitives, (stage,))
    return _Rules(primitives.keys(), primitives)


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """A linen module that computes the same as another, with operations replaced."""

    plain: nn.Module
    impl: str = "cpu"  # or "gpu"; "plain" replaces nothing
    bfloat16: bool = False  # rounds operands of products, and of other convolutions

    def apply(self, variables: Any, images: jax.Array, **options: Any) -> Any:
        """Returns what the other module's `apply` returns."""
        apply = partial(self.plain.apply, **options)
        return rewrite(apply, self.impl, self.bfloat16)(variables, images)


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
        leaves = jax.tree.leaves(args)
        # Without calls, across which nothing could be fused.
        inline = partial(_evaluate, _Rules(rules.names), traced)
        outputs = _evaluate(rules, jax.make_jaxpr(inline)(*leaves), *leaves)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return rewritten


def slow_operations(jaxpr: Jaxpr) -> set[str]:
    """Returns the operations of a jaxpr, at any depth, that loops make slow."""
    return _operations(jaxpr, _SLOW)


def _operations(jaxpr: Jaxpr, names: Collection[str]) -> set[str]:
    """Returns which of these operations a jaxpr has, at any depth."""
    found = {eqn.primitive.name for eqn in jaxpr.eqns}.intersection(names)
    inner = (jaxpr for eqn in jaxpr.eqns for jaxpr in inner_jaxprs(eqn.params))
    return found.union(*(_operations(jaxpr, names) for jaxpr in inner))


def _evaluate(rules: _Rules, closed: ClosedJaxpr, *args: Any) -> list[Any]:
    """Evaluates a jaxpr with its operations replaced."""
    jaxpr = closed.jaxpr
    inputs = (*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *args)
    values: dict[Any, Any] = dict(zip(*inputs, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for eqn in fuse(jaxpr, rules.fusions):
        operands = [read(atom) for atom in eqn.invars]
        # The names of layers, which a profile shows.
        names = source_info_util.current_name_stack() + eqn.source_info.name_stack
        with source_info_util.set_name_stack(names):
            results = _run(rules, eqn, operands)
        values |= zip(eqn.outvars, results, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _run(rules: _Rules, eqn: JaxprEqn | Fused, operands: list[Any]) -> list[Any]:
    """Runs an operation, or what replaces it."""
    if isinstance(eqn, Fused):
        return eqn.run(*operands)
    name, params = eqn.primitive.name, eqn.params
    if rule := rules.primitives.get(name):
        if (result := rule(*operands, **params)) is not None:
            return [result]
    elif name in _CALLS and any(
        _operations(inner, rules.names) for inner in inner_jaxprs(params)
    ):
        if name == "jit":
            return _evaluate(rules, params["jaxpr"], *operands)
        if name == "remat2":  # its jaxpr may have no constants
            inner = partial(_evaluate, rules, ClosedJaxpr(params["jaxpr"], ()))
            options = {name: params[name] for name in ("prevent_cse", "policy")}
            return jax.checkpoint(inner, **options)(*operands)
        params = {name: _rewrite_inner(rules, params[name]) for name in params}
    bound = eqn.primitive.get_bind_params(params)
    results = eqn.primitive.bind(*operands, **bound)
    return list(results) if eqn.primitive.multiple_results else [results]


def _rewrite_inner(rules: _Rules, value: Any) -> Any:
    """Returns an equation's parameter, with its functions' operations replaced."""
    if type(value) is tuple:  # the branches of a `cond`
        return tuple(_rewrite_inner(rules, item) for item in value)
    if not isinstance(value, ClosedJaxpr):
        return value
    return jax.make_jaxpr(partial(_evaluate, rules, value))(*value.in_avals)
