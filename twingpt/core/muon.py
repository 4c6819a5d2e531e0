"""Muon's rule. It stands here once, so that every engine follows the same one.

Muon sums up the gradients of a matrix (its momentum) and brings the sum near to the closest orthogonal matrix, by a
Newton-Schulz iteration in float32 (Jordan et al., https://kellerjordan.github.io/posts/muon/). The update is made as
large as AdamW's usually is (Liu et al., arXiv 2502.16982), so that both can share a learning rate. Weight decay is
decoupled.

    momentum = beta * momentum + gradient
    update   = orthogonal(gradient + beta * momentum) * update_scale
    weight   = weight * (1 - lr * decay) - lr * update
"""

import math
from dataclasses import dataclass

from twingpt.core.params import Param

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
EPS = 1e-7


def update_scale(rows: int, columns: int) -> float:
    """An orthogonal matrix has entries of root mean square 1 / sqrt(max(rows, columns)); AdamW's are about 0.2."""
    return 0.2 * math.sqrt(max(rows, columns))


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows [start, stop) of a parameter, orthogonalised by themselves: queries, keys and values share a weight."""

    name: str
    start: int
    stop: int


def matrices_by_shape(table: dict[str, Param]) -> dict[tuple[int, int], list[Matrix]]:
    """Muon's matrices, those of one shape together: an engine works on them as one batch."""
    groups: dict[tuple[int, int], list[Matrix]] = {}
    for name, param in table.items():
        start = 0
        for rows in param.parts if param.optimizer == "muon" else ():
            groups.setdefault((rows, param.shape[1]), []).append(Matrix(name, start, start + rows))
            start += rows
    return groups
