"""The student's loss: cross-entropy, expected complexity, and distance to a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from fedcl.errors import ConfigError

Scalar = Float[Tensor, ""]


class LossTerms(NamedTuple):
    """The sum that is descended, and its parts before they are weighted."""

    total: Scalar
    ce: Scalar
    complexity: Scalar
    teacher: Scalar


def tailor_loss(
    logits: Float[Tensor, "B n"],
    y: Int[Tensor, " B"],
    *,
    net: Any,
    feats: Sequence[Tensor | None] | None = None,
    teacher: tuple[Tensor, Sequence[Tensor]] | None = None,
    gamma_complexity: float = 0.3,
    gamma_teacher: float = 10.0,
) -> LossTerms:
    """CE + gamma_complexity E[C] + gamma_teacher Omega.

    Omega = (MSE(z, z_t) + sum over layers of MSE(x_l, x_t,l)) / L. Layers that were pruned away are left out of the sum,
    while the divisor stays L.

    Args:
        logits: z of the student.
        y: labels.
        net: the student.
        feats: what `net.features(x)` gave, of detached inputs; needed beside a teacher.
        teacher: the teacher's logits and features.
        gamma_complexity: 0 leaves the term out, as when fine-tuning after pruning.
        gamma_teacher: weight of Omega.

    Raises:
        ConfigError: a teacher without the student's features, or of another depth.

    Reference: Morgado and Vasconcelos, CVPR 2019, eq. 8 to 10; means instead of sums as in their released code.
    """
    ce = functional.cross_entropy(logits, y)
    zero = torch.zeros_like(ce)
    complexity = net.complexity() if gamma_complexity else zero
    distance = zero
    if teacher is not None:
        z, features = teacher
        if feats is None or len(feats) != len(features):
            raise ConfigError(f"the teacher has {len(features)} layers, the student gave {len(feats or ())}")
        pairs = [(own, theirs) for own, theirs in zip(feats, features, strict=True) if own is not None]
        terms = [functional.mse_loss(own, theirs) for own, theirs in pairs]
        distance = (functional.mse_loss(logits, z) + sum(terms, zero)) / len(features)
    total = ce + gamma_complexity * complexity + gamma_teacher * distance
    return LossTerms(total, ce, complexity, distance)
