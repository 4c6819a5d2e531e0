"""Loss and update in PyTorch: chunked cross-entropy, clipping, AdamW."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from twingpt.backends.torch_mps.model import GPT
from twingpt.core.backend import EngineConfig
from twingpt.core.params import Param


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy whose logits exist for one chunk of tokens at a time.

    The gradient is made in the forward pass, while a chunk's logits are at hand: softmax(logits) - onehot(target).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        with_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        loss = torch.zeros((), device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if with_grad else None
        grad_weight = torch.zeros_like(weight) if with_grad else None
        with torch.autocast(device, enabled=False):
            w = weight.to(dtype)
            for start in range(0, hidden.shape[0], chunk):
                h = hidden[start : start + chunk].to(dtype)
                target = targets[start : start + chunk, None]
                counted = target >= 0
                target = target.clamp(min=0)
                logits = F.linear(h, w).float()
                log_z = torch.logsumexp(logits, dim=1, keepdim=True)
                loss += torch.where(counted, log_z - logits.gather(1, target), 0.0).sum()
                if grad_hidden is None or grad_weight is None:
                    continue
                grad_logits = logits.sub_(log_z).exp_()
                grad_logits.scatter_add_(1, target, torch.full_like(log_z, -1.0))
                grad_logits.mul_(counted)
                g = grad_logits.to(dtype)
                grad_hidden[start : start + chunk] = g @ w
                if dtype == weight.dtype:
                    grad_weight.addmm_(g.T, h)
                else:
                    grad_weight += g.T @ h
        ctx.grads = (grad_hidden, grad_weight)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.grads
        return grad_hidden.mul_(grad_loss), grad_weight.mul_(grad_loss), None, None


def loss_sum(model: GPT, inputs: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """Summed cross-entropy in nats of int64 [B, T] over the targets that are not -1; a float32 scalar."""
    hidden = model(inputs)
    loss: Tensor = _ChunkedCrossEntropy.apply(hidden.flatten(0, 1), model.head_weight, targets.flatten(), chunk)
    return loss


def create_optimizer(
    model: GPT, table: dict[str, Param], config: EngineConfig
) -> tuple[torch.optim.AdamW, dict[str, nn.Parameter]]:
    """AdamW with its moments allocated now, and the parameters by canonical name."""
    parameters = dict(model.named_parameters())
    groups = [
        {
            "params": [parameters[name] for name, param in table.items() if param.decay is decay],
            "weight_decay": config.weight_decay if decay else 0.0,
        }
        for decay in (True, False)
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=0.0,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
    for parameter in parameters.values():
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer, parameters


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


def clip_and_update(
    optimizer: torch.optim.AdamW,
    parameters: list[nn.Parameter],
    loss: Tensor,
    tokens: int,
    config: EngineConfig,
    lr: float,
    on_device_skip: bool,
) -> tuple[Tensor, Tensor]:
    """Turn summed gradients into means, clip their global norm, apply AdamW; clears the gradients.

    Returns (gradient norm before clipping, whether the update was applied), both still on the device.
    """
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    # Row by row, as in the MLX engine: one float32 sum over a whole tensor is not exact enough to clip by.
    norm = torch.linalg.vector_norm(torch.cat([torch.linalg.vector_norm(g, dim=-1).flatten() for g in grads])) / tokens
    scale = torch.full_like(norm, 1.0 / tokens)
    if config.grad_clip > 0.0:
        # The 1e-6 keeps a zero gradient from dividing by zero, as in torch.nn.utils.clip_grad_norm_.
        scale = scale * (config.grad_clip / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(grads, scale)
    finite = torch.isfinite(norm) & torch.isfinite(loss)

    for group in optimizer.param_groups:
        group["lr"] = lr
    if on_device_skip:
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        optimizer.step()
    elif bool(finite):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm, finite
