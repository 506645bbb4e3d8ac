"""Which weights stay when a given number of them is to stay."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def largest(margins: Float[Tensor, "*shape"], keep: int) -> Bool[Tensor, "*shape"]:
    """True for the `keep` largest margins; which of equal ones is not defined, how many is."""
    mask = torch.zeros(margins.numel(), dtype=torch.bool, device=margins.device)
    mask[margins.flatten().topk(keep, sorted=False).indices] = True
    return mask.reshape(margins.shape)


def split(margins: Float[Tensor, "*shape"], keep: int) -> float:
    """A number that the `keep` largest margins exceed and the others do not, as far as they differ."""
    count, flat = margins.numel(), margins.flatten()
    if keep >= count:
        return flat.min().item() - 1.0
    below = flat.kthvalue(count - keep).values.item()
    above = flat.kthvalue(count - keep + 1).values.item() if keep else below + 1.0
    return (above + below) / 2
