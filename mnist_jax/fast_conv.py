"""Convolution, bias, activation and max pooling in the forms XLA runs fast on CPU.

Inside a `lax.scan` XLA:CPU compiles the gradient of a convolution to a naive loop and
the gradient of `nn.max_pool` to a slow select-and-scatter. Here a whole stage is matrix
products and elementwise loops, in one of three forms (`_choose_form`). All three see
the inputs as overlapping tiles, one tile for each pooled output:

    tiles[p][q] [B,h,w,C] holds x[:, step * i + p, step * j + q], step = strides * pool
    phase (r,s) is the convolution's output at place (r,s) of every pooling window
    tap (k,l) of phase (r,s) reads tiles[strides * r + k][strides * s + l]

so nothing is computed that pooling would drop. The layout is [B,H,W,C] throughout.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from mnist_jax.errors import InputError

Tiles = list[list[jax.Array]]
Grid = Any  # rows of arrays, as lists
Matrix = Sequence[Sequence[float]]

# Winograd's F(2x2,3x3) (Lavin and Gray, arXiv:1509.09308): with d a 4x4 input tile and
# k a 3x3 kernel, the 2x2 outputs are OUTPUTS (KERNEL k KERNEL^T * INPUTS d INPUTS^T)
# OUTPUTS^T: 16 multiplications where the definition has 36.
_INPUTS: Matrix = [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]
_KERNEL: Matrix = [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]
_OUTPUTS: Matrix = [[1, 1, 1, 0], [0, 1, -1, -1]]

_ACTIVATIONS = {"linear": lambda y: y, "relu": jax.nn.relu, "tanh": jnp.tanh}


class _Stage(NamedTuple):
    """What is fixed at compile time about a stage."""

    strides: int
    activation: str
    pool: int


def conv_pool(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    *,
    strides: int,
    padding: str,
    activation: str,
    pool: int,
) -> jax.Array:
    """Convolves, adds the bias, applies the activation and max-pools.

    Equal to `lax.conv_general_dilated`, the bias, the activation and `nn.max_pool` to
    float32 rounding, gradients included. Where a window holds equal maxima the first in
    row order gets the gradient, as in `nn.max_pool`. Pooling comes first here, which
    changes nothing: bias and activation are monotone and treat a whole window alike.
    Only two unequal values that the bias rounds to the same number (or that both
    saturate tanh) may hand the gradient, in `nn.max_pool`, to the earlier one instead
    of to the larger; where ReLU makes them equal, at zero, the gradient is zero.

    Args:
        x: Inputs [B,H,W,C] float32.
        kernel: Weights [k,k,C,D] float32.
        bias: [D] float32.
        strides: Step of the convolution in both directions.
        padding: "SAME" or "VALID".
        activation: "relu", "tanh" or "linear".
        pool: Side and step of the pooling window, without padding; 1 for no pooling.

    Returns:
        [B,h,w,D] float32.

    Raises:
        InputError: Padding or activation is unknown, or no output is left.

    Example:
        >>> x, kernel = jnp.ones((2, 28, 28, 1)), jnp.ones((3, 3, 1, 8))
        >>> stage = dict(strides=1, padding="VALID", activation="relu", pool=2)
        >>> conv_pool(x, kernel, jnp.zeros(8), **stage).shape
        (2, 13, 13, 8)
    """
    if padding not in ("SAME", "VALID"):
        raise InputError(f"Padding is {padding!r}; it must be 'SAME' or 'VALID'.")
    if activation not in _ACTIVATIONS:
        raise InputError(
            f"Activation is {activation!r}; it must be one of {list(_ACTIVATIONS)}."
        )
    if padding == "SAME":
        x = _pad_same(x, kernel.shape[0], strides)
    stage = _Stage(strides, activation, pool)
    if min(_output_lengths(x, kernel.shape[0], stage)) < 1:
        raise InputError(
            f"Kernel size {kernel.shape[0]}, strides {strides} and pool {pool} leave"
            f" nothing of inputs {x.shape[1:3]}; make one of the three smaller."
        )
    return _conv_pool(x, kernel, bias, stage)


def _pad_same(x: jax.Array, size: int, strides: int) -> jax.Array:
    """Adds the zeros of SAME padding, the odd one at the end."""
    pads = [(0, 0, 0)]
    for length in x.shape[1:3]:
        total = max((-(-length // strides) - 1) * strides + size - length, 0)
        pads.append((total // 2, total - total // 2, 0))
    return _materialize(lambda x: lax.pad(x, 0.0, [*pads, (0, 0, 0)]), x)


def _choose_form(kernel_shape: tuple[int, ...], stage: _Stage) -> "_Form":
    """Picks the form of a stage by its time in a training step.

    Whole steps, batch 64 a core, Zen 5: against patches the direct form took 1.3, 2.0
    and 2.9 ms less with 8, 16 and 32 pooled features; Winograd 2.0 ms less from 32
    channels (the 93k CNN) and no less from 16, where it only compiles longer.
    """
    size, _, channels, _ = kernel_shape
    if channels == 1 and (size * stage.pool) ** 2 <= 100:
        return _DIRECT
    if size == 3 and stage.strides == 1 and stage.pool == 2 and channels >= 32:
        return _WINOGRAD
    return _PATCHES


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _conv_pool(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, stage: _Stage
) -> jax.Array:
    """Runs a stage on inputs that are padded already."""
    return _conv_pool_fwd(x, kernel, bias, stage)[0]


def _conv_pool_fwd(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, stage: _Stage
) -> tuple[jax.Array, tuple]:
    """Returns the outputs and what the gradients need."""
    form = _choose_form(kernel.shape, stage)
    out, winner, saved = form.forward(x, kernel, bias, stage)
    return out, (x, kernel, out, winner, saved)


def _conv_pool_bwd(
    stage: _Stage, residuals: tuple, g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the gradients of inputs, kernel and bias."""
    x, kernel, out, winner, saved = residuals
    form = _choose_form(kernel.shape, stage)
    return form.backward(x, kernel, out, winner, saved, g, stage)


_conv_pool.defvjp(_conv_pool_fwd, _conv_pool_bwd)


# What the forms share.


def _materialize(fn: Callable, *args: Any) -> Any:
    """Computes `fn(*args)` into arrays that XLA cannot merge with anything outside.

    XLA:CPU fuses elementwise work into each of its consumers and so repeats it, here up
    to 16 times, and `lax.optimization_barrier` is gone before it fuses. A call that may
    not be inlined stays: the CNN's step takes 5.8 ms so and 11.5 ms without (one Zen 5
    core, batch 64, two runs). Calls inside `fn`, such as `jnp.where`'s own, may be
    inlined again.
    """

    def inner(*args: Any) -> Any:
        with set_xla_metadata(inlineable="true"):
            return fn(*args)

    with set_xla_metadata(inlineable="false"):
        return jax.jit(inner)(*args)


def _output_lengths(x: jax.Array, size: int, stage: _Stage) -> list[int]:
    """Returns height and width of a stage's outputs for padded inputs [B,H,W,C]."""
    return [((n - size) // stage.strides + 1) // stage.pool for n in x.shape[1:3]]


def _tile_inputs(x: jax.Array, size: int, stage: _Stage) -> Tiles:
    """Slices the inputs [B,H,W,C] of a kernel of this size into tiles [B,h,w,C]."""
    strides, _, pool = stage
    step = strides * pool
    height, width = _output_lengths(x, size, stage)
    side = strides * (pool - 1) + size

    def take(p: int, q: int) -> jax.Array:
        rows = slice(p, p + step * (height - 1) + 1, step)
        return x[:, rows, q : q + step * (width - 1) + 1 : step]

    return [[take(p, q) for q in range(side)] for p in range(side)]


def _overlap_add(
    collect: Callable, arrays: Any, step: int, shape: tuple[int, ...]
) -> jax.Array:
    """Adds gradients of tiles to the gradient of the inputs, of this shape [B,H,W,C].

    `collect(arrays)` makes the gradients of the tiles, {(p, q): [B,h,w,C]}.
    """
    (batch, height, width, channels), places = _common_shape(collect, arrays)
    reach = max(max(place) for place in places) // step  # steps beyond a tile's own
    rows, cols = (height + reach) * step, (width + reach) * step

    def add(arrays: Any) -> dict:
        sums: dict[tuple[int, int], jax.Array] = {}
        for (p, q), tile in collect(arrays).items():
            down, right = p // step, q // step
            pads = [(down, reach - down, 0), (right, reach - right, 0)]
            part = lax.pad(tile, 0.0, [(0, 0, 0), *pads, (0, 0, 0)])
            place = p % step, q % step
            sums[place] = sums[place] + part if place in sums else part
        return sums

    def weave(sums: Any) -> jax.Array:
        zeros = jnp.zeros((batch, height + reach, width + reach, channels))
        parts = [
            jnp.stack([sums.get((p, q), zeros) for q in range(step)], axis=3)
            for p in range(step)
        ]
        dx = jnp.stack(parts, axis=2)  # [B,h+reach,step,w+reach,step,C]
        ends = [(0, shape[1] - rows, 0), (0, shape[2] - cols, 0)]
        dx = dx.reshape(batch, rows, cols, channels)
        return lax.pad(dx, 0.0, [(0, 0, 0), *ends, (0, 0, 0)])

    return _materialize(weave, _materialize(add, arrays))


def _common_shape(collect: Callable, arrays: Any) -> tuple[tuple[int, ...], list]:
    """Returns the shape of the tiles and their places, computing nothing."""
    tiles = jax.eval_shape(collect, arrays)
    return next(iter(tiles.values())).shape, list(tiles)


def _activate(y: jax.Array, activation: str) -> jax.Array:
    """Applies the activation."""
    return _ACTIVATIONS[activation](y)


def _activation_grad(out: jax.Array, g: jax.Array, activation: str) -> jax.Array:
    """Carries a gradient back through the activation, from its output alone."""
    if activation == "relu":
        return jnp.where(out > 0, g, 0.0)
    return g * (1.0 - out * out) if activation == "tanh" else g


def _pool_phases(
    phases: Any, bias: jax.Array, stage: _Stage
) -> tuple[jax.Array, jax.Array | None]:
    """Takes the maximum over the phases [B,h,w,D], then adds the bias and activates.

    Returns the outputs and, for the gradient, which phase was the first to hold the
    maximum (int8), or None if there is no pooling.
    """
    best = phases[0]
    winner: Any = jnp.zeros(best.shape, jnp.int8) if len(phases) > 1 else None
    for index, phase in enumerate(phases[1:], 1):
        winner = jnp.where(phase > best, jnp.int8(index), winner)
        best = jnp.maximum(best, phase)
    return _activate(best + bias[None, None, None, :], stage.activation), winner


def _phase_grads(
    winner: jax.Array | None, g: jax.Array, stage: _Stage
) -> list[jax.Array]:
    """Gives each phase the gradient [B,h,w,D] where it was the winner, else zero."""
    if winner is None:
        return [g]
    return [jnp.where(winner == i, g, 0.0) for i in range(stage.pool**2)]


def _rows(x: jax.Array) -> jax.Array:
    """Reshapes [B,h,w,C] to [B*h*w,C]."""
    return x.reshape(-1, x.shape[-1])


def _transpose(matrices: Any) -> Any:
    """Transposes matrices in memory.

    For a product that contracts the rows of both, XLA leaves its fast library (95
    against 190 GFLOP/s on one Zen 5 core, [1600,32] by [1600,64]).
    """
    return _materialize(lambda tree: jax.tree.map(jnp.transpose, tree), matrices)


# Form 1, one input channel: the sum over the taps as an elementwise loop.


def _direct_forward(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, stage: _Stage
) -> tuple:
    """Multiplies, adds, pools and activates in one loop."""
    size, pool, strides = kernel.shape[0], stage.pool, stage.strides

    def run(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> tuple:
        tiles = _tile_inputs(x, size, stage)

        def phase(r: int, s: int) -> Any:
            return sum(
                tiles[strides * r + k][strides * s + m] * kernel[k, m][None, None]
                for k in range(size)
                for m in range(size)
            )

        phases = [phase(r, s) for r in range(pool) for s in range(pool)]
        return _pool_phases(phases, bias, stage)

    x = _materialize(lambda x: x, x)
    return *_materialize(run, x, kernel, bias), x


def _direct_backward(
    x: jax.Array,
    kernel: jax.Array,
    out: jax.Array,
    winner: jax.Array | None,
    saved: Any,
    g: jax.Array,
    stage: _Stage,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Takes kernel and bias gradient as one product with the tile's inputs and ones.

    The product also multiplies inputs and phases that no tap joins, and still beats a
    product per phase, whose patches must be built first (0.4 against 1.4 ms for
    [64,28,28,1] to 32 channels on one Zen 5 core).
    """
    size, _, _, channels = kernel.shape
    phases = stage.pool**2

    def spread(out: jax.Array, winner: jax.Array | None, g: jax.Array) -> Any:
        g = _activation_grad(out, g, stage.activation)[:, :, :, None, :]
        if winner is None:
            return g
        index = lax.broadcasted_iota(jnp.int8, (1, 1, 1, phases, 1), 3)
        return jnp.where(winner[:, :, :, None, :] == index, g, 0.0)

    def inputs_and_ones(x: jax.Array) -> jax.Array:
        tiles = sum(_tile_inputs(x[..., 0], size, stage), [])
        return jnp.stack([*tiles, jnp.ones_like(tiles[0])])

    g = _materialize(spread, out, winner, g).reshape(-1, phases * channels)
    inputs = _materialize(inputs_and_ones, saved)  # [side*side+1,B,h,w]
    products = inputs.reshape(inputs.shape[0], -1) @ g
    scatter = functools.partial(_scatter_kernel, stage=stage)
    (dkernel,) = jax.linear_transpose(scatter, kernel)(products[:-1])
    dbias = products[-1].reshape(phases, channels).sum(0)
    # Of the first layer nothing asks for dx, and XLA removes the rest of this function.
    side = stage.strides * (stage.pool - 1) + size
    dinputs = (g @ _materialize(scatter, kernel).T).reshape(*out.shape[:3], -1)

    def collect(dinputs: Any) -> dict:
        places = [(p, q) for p in range(side) for q in range(side)]
        return {place: dinputs[..., i : i + 1] for i, place in enumerate(places)}

    dx = _overlap_add(collect, dinputs, stage.strides * stage.pool, x.shape)
    return dx, dkernel, dbias


def _scatter_kernel(kernel: jax.Array, stage: _Stage) -> jax.Array:
    """Writes the kernel [k,k,1,D] as a matrix [tile inputs, phases * D]."""
    size = kernel.shape[0]
    room = stage.strides * (stage.pool - 1)

    def place(r: int, s: int) -> jax.Array:
        row, col = r * stage.strides, s * stage.strides
        pads = [(row, room - row, 0), (col, room - col, 0), (0, 0, 0), (0, 0, 0)]
        return lax.pad(kernel, 0.0, pads)

    placed = [place(r, s) for r in range(stage.pool) for s in range(stage.pool)]
    return jnp.concatenate(placed, axis=2).reshape((room + size) ** 2, -1)


# Form 2, 3x3 kernel, step 1, 2x2 pooling: Winograd, whose 2x2 tile is the window.


def _sandwich(matrix: Matrix, grid: Grid) -> Grid:
    """Multiplies matrix, grid of arrays and transposed matrix, leaving out zeros."""

    def combine(weights: Sequence[float], arrays: Any) -> Any:
        terms = [
            array if weight == 1 else -array if weight == -1 else weight * array
            for weight, array in zip(weights, arrays, strict=True)
            if weight
        ]
        return sum(terms[1:], terms[0])

    columns = list(zip(*grid, strict=True))
    half = [[combine(weights, column) for column in columns] for weights in matrix]
    return [[combine(weights, row) for weights in matrix] for row in half]


def _transposed(matrix: Matrix) -> Matrix:
    """Transposes a matrix of numbers."""
    return list(zip(*matrix, strict=True))


def _multiply_grids(left: Grid, right: Grid) -> Grid:
    """Multiplies the matrices of two grids, place by place."""
    return [
        [a @ b for a, b in zip(*rows, strict=True)]
        for rows in zip(left, right, strict=True)
    ]


def _winograd_forward(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, stage: _Stage
) -> tuple:
    """Makes 16 products [B*h*w,C] @ [C,D] instead of the definition's 36."""

    def transform_inputs(x: jax.Array) -> Grid:
        return _sandwich(_INPUTS, _tile_inputs(x, 3, stage))

    def transform_kernel(kernel: jax.Array) -> Grid:
        return _sandwich(_KERNEL, [[kernel[k, m] for m in range(3)] for k in range(3)])

    def finish(products: Any, bias: jax.Array) -> tuple:
        return _pool_phases(sum(_sandwich(_OUTPUTS, products), []), bias, stage)

    inputs = _materialize(transform_inputs, x)
    shape = inputs[0][0].shape[:3]
    inputs = jax.tree.map(_rows, inputs)
    weights = _materialize(transform_kernel, kernel)
    products = _multiply_grids(inputs, weights)
    products = jax.tree.map(lambda m: m.reshape(*shape, -1), products)
    return *_materialize(finish, products, bias), (inputs, weights)


def _winograd_backward(
    x: jax.Array,
    kernel: jax.Array,
    out: jax.Array,
    winner: jax.Array | None,
    saved: Any,
    g: jax.Array,
    stage: _Stage,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Takes both gradients where the forward pass multiplied, 16 products each."""
    inputs, weights = saved

    def spread(winner: jax.Array | None, g: jax.Array) -> Any:
        phases = _phase_grads(winner, g, stage)
        return _sandwich(_transposed(_OUTPUTS), [phases[:2], phases[2:]])

    def collect_kernel(dweights: Any) -> jax.Array:
        dkernel = _sandwich(_transposed(_KERNEL), dweights)
        return jnp.stack([jnp.stack(row) for row in dkernel])

    def collect_tiles(dinputs: Any) -> dict:
        grid = _sandwich(_transposed(_INPUTS), dinputs)
        return {(p, q): grid[p][q] for p in range(4) for q in range(4)}

    g = _materialize(lambda out, g: _activation_grad(out, g, stage.activation), out, g)
    dproducts = jax.tree.map(_rows, _materialize(spread, winner, g))
    dweights = _multiply_grids(_transpose(inputs), dproducts)
    dinputs = _multiply_grids(dproducts, _transpose(weights))
    dinputs = jax.tree.map(lambda m: m.reshape(*g.shape[:3], -1), dinputs)
    dx = _overlap_add(collect_tiles, dinputs, 2, x.shape)
    return dx, _materialize(collect_kernel, dweights), _rows(g).sum(0)


# Form 3, everything else: a matrix of patches for each phase.


def _tap_places(size: int, stage: _Stage) -> list[list[tuple[int, int]]]:
    """Lists, for each phase and then for each tap, the place in the tile it reads."""
    return [
        [
            (stage.strides * r + k, stage.strides * s + m)
            for k in range(size)
            for m in range(size)
        ]
        for r in range(stage.pool)
        for s in range(stage.pool)
    ]


def _patches_forward(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, stage: _Stage
) -> tuple:
    """Multiplies the patches [B*h*w,k*k*C] of each phase by the kernel."""
    size = kernel.shape[0]

    def cut(x: jax.Array) -> list[jax.Array]:
        tiles = _tile_inputs(x, size, stage)
        return [
            jnp.concatenate([tiles[p][q] for p, q in places], axis=-1)
            for places in _tap_places(size, stage)
        ]

    patches = _materialize(cut, x)
    shape = patches[0].shape[:3]
    patches = [_rows(p) for p in patches]
    weights = _rows(kernel)
    phases = [(p @ weights).reshape(*shape, -1) for p in patches]
    finish = functools.partial(_pool_phases, stage=stage)
    return *_materialize(finish, phases, bias), patches


def _patches_backward(
    x: jax.Array,
    kernel: jax.Array,
    out: jax.Array,
    winner: jax.Array | None,
    saved: Any,
    g: jax.Array,
    stage: _Stage,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Adds the patches' gradients to the inputs' tile by tile."""
    size, _, channels, _ = kernel.shape

    def spread(out: jax.Array, winner: jax.Array | None, g: jax.Array) -> Any:
        g = _activation_grad(out, g, stage.activation)
        return _phase_grads(winner, g, stage)

    def collect(dpatches: Any) -> dict:
        tiles: dict[tuple[int, int], jax.Array] = {}
        for dpatch, places in zip(dpatches, _tap_places(size, stage), strict=True):
            for tap, place in enumerate(places):
                part = dpatch[..., tap * channels : (tap + 1) * channels]
                tiles[place] = tiles[place] + part if place in tiles else part
        return tiles

    phases = [_rows(phase) for phase in _materialize(spread, out, winner, g)]
    # g.T @ p takes half as long as p.T @ g ([576,576] by [576,64], one Zen 5 core), to
    # which XLA turns it back unless the result is transposed in memory.
    dweights = sum(phase.T @ p for phase, p in zip(phases, saved, strict=True))
    dkernel = _transpose(dweights).reshape(kernel.shape)
    dbias: Any = sum(phase.sum(0) for phase in phases)
    weights = _transpose(_rows(kernel))
    dpatches = [(phase @ weights).reshape(*g.shape[:3], -1) for phase in phases]
    dx = _overlap_add(collect, dpatches, stage.strides * stage.pool, x.shape)
    return dx, dkernel, dbias


class _Form(NamedTuple):
    """One way to compute a stage, forward and backward."""

    forward: Callable
    backward: Callable


_DIRECT = _Form(_direct_forward, _direct_backward)
_WINOGRAD = _Form(_winograd_forward, _winograd_backward)
_PATCHES = _Form(_patches_forward, _patches_backward)
