"""What side_by_side_loras.py needs beside a model: stacked adapters, the loss, attention for one token."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn.functional import linear
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

RANK, ALPHA = 8, 32


class Lora(torch.nn.Module):
    """A frozen linear layer with a stack of adapters."""

    off = False

    def __init__(self, frozen: torch.nn.Linear) -> None:
        super().__init__()
        self.frozen, self.down, self.up = frozen, None, None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.frozen(x)
        if self.down is None or Lora.off:
            return y
        split = x.reshape(len(self.down), -1, x.shape[-1])
        low = torch.bmm(split, self.down.to(x.dtype).transpose(1, 2))
        up = self.up.to(x.dtype).transpose(1, 2)
        return torch.baddbmm(y.reshape(*split.shape[:2], -1), low, up, alpha=ALPHA / RANK).view_as(y)


class HeadLoss(torch.autograd.Function):
    """Weighted sum of cross entropies, or of KL to a teacher's hidden states; logits are made in pieces."""

    @staticmethod
    def forward(ctx: Any, hidden: Any, head: Any, targets: Any, taught: Any, weights: Any) -> torch.Tensor:
        total, grad = torch.zeros((), device=hidden.device), torch.empty_like(hidden)
        for part in torch.arange(len(hidden), device=hidden.device).split(4096):
            log_p = linear(hidden[part], head).float().log_softmax(-1)
            if taught is None:
                total += (-log_p.gather(1, targets[part, None])[:, 0] * weights[part]).sum()
                slope = log_p.exp_()
                slope[torch.arange(len(part)), targets[part]] -= 1
            else:
                log_t = linear(taught[part], head).float().log_softmax(-1)
                total += ((log_t.exp() * (log_t - log_p)).sum(1) * weights[part]).sum()
                slope = log_p.exp_() - log_t.exp_()
            grad[part] = (slope * weights[part, None]).to(hidden.dtype) @ head
        ctx.save_for_backward(grad)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[Any, ...]:
        return ctx.saved_tensors[0] * upstream.to(ctx.saved_tensors[0].dtype), None, None, None, None


def grouped_attention(module: Any, q: Any, k: Any, v: Any, mask: Any, scaling: float, **more: Any) -> tuple[Any, None]:
    """Attention for one new token without copies of the shared keys; torch's own for longer inputs."""
    if q.shape[2] > 1 or mask is None:
        return sdpa_attention_forward(module, q, k, v, mask, scaling=scaling, **more)
    batch, heads, _, size = q.shape
    scores = q.view(batch, k.shape[1], -1, size) @ k.transpose(2, 3) * scaling
    scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    weighted = scores.float().softmax(-1).to(v.dtype) @ v
    return weighted.view(batch, 1, heads, size), None


AttentionInterface.register("grouped", grouped_attention)
AttentionMaskInterface.register("grouped", sdpa_mask)
