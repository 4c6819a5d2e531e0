"""Attention that lets the past see the future, in both engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from twingpt.backends.torch_mps import model as torch_model

Rows = Callable[[int], NDArray[np.bool_]]


def everything_visible(T: int) -> NDArray[np.bool_]:
    return np.ones((T, T), dtype=np.bool_)


def one_key_too_many(T: int) -> NDArray[np.bool_]:
    """Causal, but that the last row which has a future sees one key of it."""
    mask = np.tri(T, dtype=np.bool_)
    mask[max(T - 2, 0), T - 1] = True
    return mask


def groups_of_four(T: int) -> NDArray[np.bool_]:
    """Masked once per group of four queries, as in pytorch#195910."""
    rows = np.arange(T)
    return np.asarray(rows[None, :] <= (rows // 4 * 4 + 3)[:, None])


LEAKS: dict[str, Rows] = {
    "not causal": everything_visible,
    "one key too many": one_key_too_many,
    "groups of four": groups_of_four,
}


def leak_everywhere(monkeypatch: pytest.MonkeyPatch, rows: Rows) -> None:
    """Attention of both engines, whichever way it is asked for a causal mask."""
    torch_attention, mlx_attention = F.scaled_dot_product_attention, mx.fast.scaled_dot_product_attention

    def in_torch(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        if q.shape[-2] > 1:
            options |= {"is_causal": False, "attn_mask": torch.from_numpy(rows(q.shape[-2]))}
        return torch_attention(q, k, v, **options)

    def in_mlx(q: Any, k: Any, v: Any, *, scale: float, mask: Any) -> Any:
        mask = mx.array(rows(q.shape[-2])) if isinstance(mask, str) else mask
        return mlx_attention(q, k, v, scale=scale, mask=mask)

    monkeypatch.setattr(F, "scaled_dot_product_attention", in_torch)
    monkeypatch.setattr(torch_model, "causal_mask", lambda T, device: torch.from_numpy(rows(T)))
    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", in_mlx)
    monkeypatch.setattr(mx, "tri", lambda T, dtype: mx.array(rows(T)))
