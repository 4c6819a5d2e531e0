"""How fast an engine multiplies the matrices of a spec: the limit that a whole step is held against.

Written once for all engines, as their arrays share `@` and `.T`.
"""

from __future__ import annotations

import time

from twingpt.core.measured import Arrays, Products
from twingpt.core.params import parameter_table
from twingpt.core.spec import GPTSpec

REPEATS = 3
ENOUGH = 2.0
"""Seconds after which a product is not repeated again."""


def matmul_speed(arrays: Arrays, spec: GPTSpec, tokens: int, loss_chunk: int) -> float:
    """FLOPs a second of a training step's products with weights: forward, and for the gradients of input and weight.

    tokens: of one micro-batch; the head sees loss_chunk of them at a time. Attention's own products are left out.
    """
    flops = seconds = 0.0
    shapes = [(shape, tokens, spec.n_layer) for shape in block_matrices(spec)]
    chunk = min(loss_chunk, tokens)
    shapes.append(((spec.vocab_size, spec.n_embd), chunk, -(-tokens // chunk)))
    for (rows, columns), at_a_time, times in shapes:
        x, w, g = arrays.random(at_a_time, columns), arrays.random(rows, columns), arrays.random(at_a_time, rows)
        for left, right in ((x, w.T), (g, w), (g.T, x)):
            seconds += times * fastest(arrays, [(left, right)])
        flops += times * 6.0 * at_a_time * rows * columns
    return flops / seconds


def token_seconds(arrays: Arrays, spec: GPTSpec, slots: int) -> float:
    """Seconds that the products of one generated token take in each of n slots, with every weight read from memory."""
    shapes = [*block_matrices(spec) * spec.n_layer, (spec.vocab_size, spec.n_embd)]
    weights = [arrays.random(*shape) for shape in shapes]
    inputs = {columns: arrays.random(slots, columns) for _, columns in shapes}
    return fastest(arrays, [(inputs[columns], w.T) for w, (_, columns) in zip(weights, shapes, strict=True)])


def block_matrices(spec: GPTSpec) -> list[tuple[int, int]]:
    """[out, in] of each weight matrix of one block."""
    table = parameter_table(spec)
    return [(p.shape[0], p.shape[1]) for name, p in table.items() if name.startswith("blocks.0.") and len(p.shape) == 2]


def fastest(arrays: Arrays, products: Products) -> float:
    """Seconds of the fastest of some repeats: a limit is what the machine can do, not what others left of it."""
    arrays.compute(products)
    seconds: list[float] = []
    while len(seconds) < REPEATS and sum(seconds) < ENOUGH:
        start = time.perf_counter()
        arrays.compute(products)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
