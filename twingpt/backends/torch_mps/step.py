"""Loss and update in PyTorch: chunked cross-entropy, clipping, AdamW, Muon."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from twingpt.backends.torch_mps.model import GPT, Drop
from twingpt.core.backend import EngineConfig
from twingpt.core.muon import COEFFICIENTS, EPS, STEPS, matrices_by_shape, update_scale
from twingpt.core.params import Param

Soft = tuple[Tensor, Tensor]
"""What targets are learned as: int64 ids [..., K] and their shares, float32 [..., K], which sum to one."""


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy whose logits exist for one chunk of tokens at a time.

    The gradient is made in the forward pass, while a chunk's logits are at hand: softmax(logits) - onehot(target), or
    less the shares of the tokens of soft targets [n, K].
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, soft: Soft | None, chunk: int, with_grad: bool
    ) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        loss = torch.zeros((), device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if with_grad else None
        grad_weight: Tensor | None = None
        with torch.autocast(device, enabled=False):
            w = weight.to(dtype)
            for start in range(0, hidden.shape[0], chunk):
                h = hidden[start : start + chunk].to(dtype)
                target = targets[start : start + chunk, None]
                counted = target >= 0
                target = target.clamp(min=0)
                shares = None
                if soft is not None:
                    target, shares = (part[start : start + chunk] for part in soft)
                logits = F.linear(h, w).float()
                own = logits.gather(1, target)
                if shares is not None:
                    own = (own * shares).sum(dim=1, keepdim=True)
                # One exponential serves the loss and the gradient.
                highest = logits.amax(dim=1, keepdim=True)
                exponentials = logits.sub_(highest).exp_()
                z = exponentials.sum(dim=1, keepdim=True)
                loss += torch.where(counted, z.log() + highest - own, 0.0).sum()
                if grad_hidden is None:
                    continue
                grad_logits = exponentials.mul_(counted / z)
                wanted = counted.float() if shares is None else counted * shares
                grad_logits.scatter_add_(1, target, -wanted)
                g = grad_logits.to(dtype)
                grad_hidden[start : start + chunk] = g @ w
                if grad_weight is None:
                    grad_weight = (g.T @ h).to(weight.dtype)
                elif dtype == weight.dtype:
                    grad_weight.addmm_(g.T, h)
                else:
                    grad_weight += g.T @ h
        ctx.grads = (grad_hidden, grad_weight)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        # Held by autograd alone, they can be added to in place.
        grad_hidden, grad_weight = ctx.grads
        del ctx.grads
        return grad_hidden.mul_(grad_loss), grad_weight.mul_(grad_loss), None, None, None, None


def loss_sum(
    model: GPT, inputs: Tensor, targets: Tensor, chunk: int, drop: Drop | None = None, soft: Soft | None = None
) -> Tensor:
    """Summed cross-entropy in nats of int64 [B, T] over the targets that are not -1; a float32 scalar.

    soft: [B, T, K], what the targets are learned as.
    """
    hidden = model(inputs, drop=drop)
    # Inside, gradients are off, and a weight says that it wants one also where nobody will ask for it.
    with_grad = torch.is_grad_enabled()
    loss: Tensor = _ChunkedCrossEntropy.apply(
        hidden.flatten(0, 1),
        model.head_weight,
        targets.flatten(),
        None if soft is None else tuple(part.flatten(0, 1) for part in soft),
        chunk,
        with_grad,
    )
    return loss


class Optimizer:
    """AdamW, or Muon for the matrices of the blocks and AdamW for the rest, with all moments allocated now."""

    def __init__(self, model: GPT, table: dict[str, Param], config: EngineConfig) -> None:
        self.parameters = {name: dict(model.named_parameters())[name] for name in table}
        self.muon = Muon(self.parameters, table, config) if config.optimizer == "muon" else None
        by_adamw = [name for name, param in table.items() if self.muon is None or param.optimizer == "adamw"]
        self.adamw_parameters = {name: self.parameters[name] for name in by_adamw}
        groups = [
            {
                "params": [self.parameters[name] for name in by_adamw if table[name].decay is decay],
                "weight_decay": config.weight_decay if decay else 0.0,
            }
            for decay in (True, False)
        ]
        self.adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=0.0,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )
        for parameter in self.adamw_parameters.values():
            self.adamw.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        self._on_device_skip = skips_found_inf(next(iter(self.parameters.values())).device)

    def step(self, lr: float, finite: Tensor) -> None:
        """Apply the gradients, or leave everything alone where `finite` is false; then clear them."""
        for group in self.adamw.param_groups:
            group["lr"] = lr
        if self.muon is not None:
            self.muon.step(lr, finite)
        if self._on_device_skip:
            self.adamw.found_inf = (~finite).float()  # type: ignore[attr-defined]
            self.adamw.step()
        elif bool(finite):
            self.adamw.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None


def clip_and_update(
    optimizer: Optimizer, loss: Tensor, tokens: int, config: EngineConfig, lr: float
) -> tuple[Tensor, Tensor]:
    """Turn summed gradients into means, clip their global norm, apply the optimizer; clears the gradients.

    Returns (gradient norm before clipping, whether the update was applied), both still on the device. A batch without
    a counted target has no mean: its norm is NaN, and as after any norm that is not finite, nothing is applied.
    """
    grads = [parameter.grad for parameter in optimizer.parameters.values() if parameter.grad is not None]
    # Row by row, as in the MLX engine: one float32 sum over a whole tensor is not exact enough to clip by.
    norm = torch.linalg.vector_norm(torch.cat([torch.linalg.vector_norm(g, dim=-1).flatten() for g in grads])) / tokens
    scale = torch.full_like(norm, 1.0 / tokens if tokens else math.nan)
    if config.grad_clip > 0.0:
        # The 1e-6 keeps a zero gradient from dividing by zero, as in torch.nn.utils.clip_grad_norm_.
        scale = scale * (config.grad_clip / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(grads, scale)
    finite = torch.isfinite(norm) & torch.isfinite(loss)
    optimizer.step(lr, finite)
    return norm, finite


class Muon:
    """The rule of twingpt.core.muon, on all matrices of one shape at a time."""

    def __init__(self, parameters: dict[str, nn.Parameter], table: dict[str, Param], config: EngineConfig) -> None:
        self._parameters = parameters
        self._groups = matrices_by_shape(table)
        self._config = config
        names = [name for name, param in table.items() if param.optimizer == "muon"]
        self.momentum = {name: torch.zeros_like(parameters[name]) for name in names}
        self.count = torch.zeros((), device=parameters[names[0]].device)

    @torch.no_grad()
    def step(self, lr: float, finite: Tensor) -> None:
        lr, beta = lr * self._config.muon_lr_scale, self._config.muon_momentum
        self.count += finite
        for (rows, columns), group in self._groups.items():
            directions = []
            for matrix in group:
                part = slice(matrix.start, matrix.stop)
                momentum, grad = self.momentum[matrix.name][part], self._parameters[matrix.name].grad
                assert grad is not None
                new = momentum * beta + grad[part]
                directions.append(grad[part] + beta * new)
                momentum.copy_(torch.where(finite, new, momentum))
            updates = orthogonal(torch.stack(directions)) * (lr * update_scale(rows, columns))
            for matrix, update in zip(group, updates, strict=True):
                weight = self._parameters[matrix.name][matrix.start : matrix.stop]
                new = weight * (1.0 - lr * self._config.weight_decay) - update
                weight.copy_(torch.where(finite, new, weight))


def orthogonal(x: Tensor) -> Tensor:
    """Matrices [n, rows, columns] brought near to the closest orthogonal ones, by Newton and Schulz's iteration."""
    a, b, c = COEFFICIENTS
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    # Row by row, as in the MLX engine.
    x = x / (torch.linalg.vector_norm(torch.linalg.vector_norm(x, dim=2), dim=1)[:, None, None] + EPS)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def skips_found_inf(device: torch.device) -> bool:
    """Whether the fused AdamW of this device leaves weights alone when told so.

    On MPS, torch releases before pull request 186360 ignored `found_inf`.
    """
    probe = torch.ones(4, device=device, requires_grad=True)
    probe.grad = torch.ones_like(probe)
    optimizer = torch.optim.AdamW([probe], lr=0.1, fused=True)
    optimizer.found_inf = torch.ones((), device=device)  # type: ignore[attr-defined]
    optimizer.step()
    return bool((probe == 1.0).all())
