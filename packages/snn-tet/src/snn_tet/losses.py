"""The losses of a spiking network's outputs over time.

With outputs O[t], t = 1..T, labels y, and CE the cross-entropy:

    SDT:  L = CE( 1/T sum_t O[t], y )                                       eq. (5)
    TET:  L = (1 - lambda) 1/T sum_t CE( O[t], y ) + lambda mean (O - phi)^2    eqs. (9) to (11)

SDT's gradient is the same at every step and vanishes as soon as the mean is right. TET gives every step its own error:
dL/dO[t] = (softmax(O[t]) - y) / T. By the convexity of CE in the logits, SDT <= TET (lambda 0) on the same outputs.

Reference: Deng et al., "Temporal Efficient Training of Spiking Neural Network via Gradient Re-weighting", ICLR 2022,
arXiv 2202.11946.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional

from core_utils.errors import UserError

Outputs = Float[Tensor, "*shape"] | Sequence[Float[Tensor, "B K"]]
"""A tensor with a dimension of time, or one [B, K] for every step, as a loop over time collects them."""
Criterion = Callable[[Tensor, Tensor], Tensor]
"""The mean loss of one step's outputs [B, K] against the targets."""


class LossError(UserError):
    """Outputs, targets or weights that a loss cannot take."""


class TETLoss(nn.Module):
    """The TET loss as a module; works on the outputs of any spiking network.

    Args:
        criterion: loss of one step's outputs [B, K] against the targets, a scalar; or "cross_entropy".
        lam: lambda, weight of the term that keeps outputs near phi, in [0, 1].
        phi: where that term pulls the outputs; the neuron's threshold.
        step_weights: "uniform" (None), "last", or T weights that sum to a positive number; normalised to sum 1.
        time_dim: dimension of the time steps, 0 for [T, B, K] or 1 for [B, T, K].
        label_smoothing: of the cross-entropy, in [0, 1).

    Attributes:
        components: the two terms of the last call, "ce" and "mse", before weighting; a term of weight 0 is left out.

    Raises:
        LossError: a value outside its range.
    """

    def __init__(
        self,
        criterion: str | Criterion = "cross_entropy",
        lam: float = 0.05,
        phi: float = 1.0,
        step_weights: str | Sequence[float] | None = None,
        time_dim: int = 0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if isinstance(criterion, str) and criterion != "cross_entropy":
            raise LossError(f"criterion must be 'cross_entropy' or callable, got {criterion!r}")
        if callable(criterion) and label_smoothing != 0:
            raise LossError("label_smoothing belongs to the cross-entropy; a criterion of one's own smooths itself")
        if not 0 <= lam <= 1:
            raise LossError(f"lam must lie in [0, 1], got {lam}")
        if not 0 <= label_smoothing < 1:
            raise LossError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")
        self.criterion = criterion
        self.lam = lam
        self.phi = phi
        self.step_weights = step_weights
        self.time_dim = time_dim
        self.label_smoothing = label_smoothing
        self.components: dict[str, Tensor] = {}

    def forward(self, outputs: Outputs, target: Shaped[Tensor, "*labels"]) -> Float[Tensor, ""]:
        """The loss of a batch.

        Args:
            outputs: shape [T, B, K] (or [B, T, K] with `time_dim` 1), or a list of T tensors [B, K] whatever
                `time_dim`; floating, half precision is taken to float32.
            target: class indices, int64 [B], or class probabilities, floating [B, K].

        Returns:
            A scalar.

        Raises:
            LossError: other shapes, an index outside 0..K-1, time and batch swapped, weights of another length.
        """
        o_seq, target = _checked(outputs, target, self.time_dim)
        self.components = {}
        loss = o_seq.new_zeros(())
        if self.lam < 1:
            weights = _weights(self.step_weights, len(o_seq)).to(o_seq)
            ce = torch.dot(weights, self._per_step(o_seq, target))
            self.components["ce"] = ce.detach()
            loss = loss + (1 - self.lam) * ce
        if self.lam > 0:
            mse = (o_seq - self.phi).square().mean()
            self.components["mse"] = mse.detach()
            loss = loss + self.lam * mse
        return loss

    def _per_step(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The criterion at every step, [T]."""
        if callable(self.criterion):
            return torch.stack([self.criterion(output, target) for output in outputs])
        steps, batch = outputs.shape[:2]
        repeated = target.expand(steps, *target.shape).flatten(0, 1)
        losses = functional.cross_entropy(
            outputs.flatten(0, 1), repeated, label_smoothing=self.label_smoothing, reduction="none"
        )
        return losses.view(steps, batch).mean(1)


def tet_loss(
    outputs: Outputs,
    target: Shaped[Tensor, "*labels"],
    *,
    lam: float = 0.05,
    phi: float = 1.0,
    time_dim: int = 0,
) -> Float[Tensor, ""]:
    """The TET loss, cross-entropy at every step; see `TETLoss`.

    Reference: arXiv 2202.11946, eqs. (9) to (11).
    """
    return TETLoss(lam=lam, phi=phi, time_dim=time_dim)(outputs, target)


def sdt_loss(outputs: Outputs, target: Shaped[Tensor, "*labels"], *, time_dim: int = 0) -> Float[Tensor, ""]:
    """Standard direct training: the cross-entropy of the outputs' mean over time.

    Args:
        outputs: shape [T, B, K] (or [B, T, K] with `time_dim` 1), or a list of T tensors [B, K]; floating.
        target: class indices, int64 [B], or class probabilities, floating [B, K].
        time_dim: dimension of the time steps.

    Returns:
        A scalar.

    Raises:
        LossError: as `TETLoss`.

    Reference: arXiv 2202.11946, eq. (5).
    """
    o_seq, target = _checked(outputs, target, time_dim)
    return functional.cross_entropy(o_seq.mean(0), target)


def step_gradients(
    outputs: Float[Tensor, "T B K"], target: Shaped[Tensor, "*labels"], loss: Criterion
) -> dict[str, Tensor]:
    """How hard a loss pulls at each time step, and whether the steps pull the same way.

    Args:
        outputs: shape [T, B, K].
        target: what `loss` takes.
        loss: from (outputs, target) to a scalar, such as `tet_loss` or `sdt_loss`.

    Returns:
        `norm`: of dL/dO[t], [T]; `cosine`: between the gradients of every two steps, [T, T], 0 where one vanishes.

    Reference: arXiv 2202.11946, section 3.2: all steps share SDT's gradient, each has its own with TET.
    """
    leaf = outputs.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf, target), leaf)
    flat = gradient.flatten(1)
    unit = functional.normalize(flat, dim=1, eps=torch.finfo(flat.dtype).tiny)
    return {"norm": flat.norm(dim=1), "cosine": unit @ unit.T}


def _checked(outputs: Any, target: Tensor, time_dim: int) -> tuple[Tensor, Tensor]:
    """Outputs as [T, B, K] in at least float32, and targets that fit them."""
    if time_dim not in (0, 1):
        raise LossError(f"time_dim must be 0 or 1, got {time_dim}")
    if not isinstance(outputs, Tensor):
        outputs, time_dim = _stacked(outputs), 0
    layout = "[T, B, K]" if time_dim == 0 else "[B, T, K]"
    if outputs.ndim != 3 or 0 in outputs.shape:
        raise LossError(f"outputs must be {layout} and not empty, got shape {list(outputs.shape)}")
    outputs = outputs.movedim(time_dim, 0)
    steps, batch, classes = outputs.shape
    if len(target) != batch:
        swapped = f"; time and batch look swapped, try time_dim={1 - time_dim}" if len(target) == steps else ""
        raise LossError(f"outputs hold {batch} samples and {steps} steps as {layout}, targets {len(target)}{swapped}")
    if target.is_floating_point():
        if target.shape != (batch, classes):
            raise LossError(f"class probabilities must be [{batch}, {classes}], got shape {list(target.shape)}")
        target = target.to(torch.promote_types(outputs.dtype, torch.float32))
    elif target.ndim != 1:
        raise LossError(f"class indices must be [{batch}], got shape {list(target.shape)}")
    elif target.min() < 0 or target.max() >= classes:
        raise LossError(f"class indices must lie in 0..{classes - 1}, got {target.min()}..{target.max()}")
    else:
        target = target.long()
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32)), target


def _stacked(outputs: Any) -> Tensor:
    """One tensor of a list of each step's outputs."""
    steps = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
    shapes = [list(step.shape) if isinstance(step, Tensor) else type(step).__name__ for step in steps]
    if not steps or any(not isinstance(shape, list) or len(shape) != 2 or shape != shapes[0] for shape in shapes):
        raise LossError(
            f"a list of outputs must hold a tensor [B, K] for every step, all of one shape, got {shapes}",
            "a network that also returns its states must be unpacked first",
        )
    return torch.stack(steps)


def _weights(weights: str | Sequence[float] | None, steps: int) -> Tensor:
    if weights is None or weights == "uniform":
        return torch.full((steps,), 1 / steps, dtype=torch.float64)
    if weights == "last":
        return torch.eye(steps, dtype=torch.float64)[-1]
    if isinstance(weights, str):
        raise LossError(f"step_weights must be uniform, last, or a number for each step, got {weights!r}")
    given = torch.tensor(list(weights), dtype=torch.float64)
    if len(given) != steps or not given.isfinite().all() or (given < 0).any() or given.sum() <= 0:
        raise LossError(f"step_weights must be {steps} numbers, none negative, not all zero, got {given.tolist()}")
    return given / given.sum()
