"""A router's weights in the order in which the compiled kernel reads them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dynsparse.routers import Router, SigmoidRouter


class FusedRouter(NamedTuple):
    """A router that the compiled kernel computes itself.

    Attributes:
        weights: matrices [C_i, logits] and, with hidden units, [logits, K]; then biases [K]; all flat, float32.
        logits: columns of the first matrix: hidden units, or K without any.
        hidden: whether there are hidden units.
        temperature: T of the softmax; 0 for sigmoids.
    """

    weights: Float[Tensor, " n"]
    logits: int
    hidden: bool
    temperature: float


@torch.no_grad()
def fused(router: nn.Module | None) -> FusedRouter | None:
    """The router in the kernel's order; None where there is none, or one that the kernel does not know."""
    if type(router) is Router:
        squeeze, head = router.squeeze.weight, router.kernel_head
        weights = torch.cat([squeeze.t().flatten(), head.weight.t().flatten(), head.bias])
        return FusedRouter(weights, len(squeeze), True, float(router.temperature))
    if type(router) is SigmoidRouter:
        head = router.kernel_head
        return FusedRouter(torch.cat([head.weight.t().flatten(), head.bias]), len(head.weight), False, 0.0)
    return None
