"""From a wish to a sparsity: what presses on the masks during training, and the exact end.

Four modes press a layer's density d_l = mean(M), or none:

- penalty: L += sum_l mu_l (d_l - d*) + lambda (d_l - d*)^2, each layer at the target; the multiplier mu_l rises by
  `multiplier_rate` (d_l - d*) every step, because the task's gradient pushes back, most in small layers;
- global: the same for the mean density over all weights, so that layers find their own share;
- alpha: L += alpha sum_l sum exp(-tau) (Dynamic Sparse Training); the sparsity is what comes of it;
- quantile: every step sets the thresholds to the layer's quantile; nothing is learned (a baseline).

The goal d*(t) = (1 - s)^min(1, t / ramp) falls geometrically to the target. `finalize` makes the sparsity exact.

References: Liu et al., DST, ICLR 2020, arXiv:2005.06870, eq. (5); spec section 2.6.
"""

from __future__ import annotations

import warnings
from math import ceil
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from dynsparse.converting import dynamic_layers
from dynsparse.errors import ConfigError, SparsityError, SparsityWarning, check_choice, check_sparsity
from dynsparse.layers import SDConvNd
from dynsparse.quantiles import largest, split
from dynsparse.sparsity_report import LayerSparsity, SparsityReport

MODES = ("penalty", "global", "alpha", "quantile")


class SparsityController:
    """Brings a model's learnable masks to a sparsity.

    Call `step(step)` before every training step, add `loss()` to the loss, and `finalize()` at the end. The controller
    reads the model and, in `step`, moves thresholds; a forward pass never does.

    Attributes:
        target: sparsity s, the fraction of zero weights.
        mode: one of `MODES`.
        density_goal: d*(t) of the step last given.
    """

    def __init__(
        self,
        model: nn.Module,
        target: float | int,
        mode: str = "penalty",
        *,
        ramp_steps: int = 0,
        lam: float | int = 10.0,
        multiplier_rate: float | int = 0.3,
        alpha: float | int = 1e-6,
        min_density: float | int = 0.01,
    ) -> None:
        """A controller of all layers of the model that have a threshold.

        Args:
            model: with dynamic layers.
            target: sparsity s in [0, 1).
            mode: one of `MODES`.
            ramp_steps: steps until the goal is the target; 0 asks for it at once.
            lam: lambda, weight of the squared distance from the goal.
            multiplier_rate: by which a multiplier grows per step and unit of distance; 0 for the penalty alone.
            alpha: weight of DST's term.
            min_density: no layer falls below it; one that would is named in a warning.

        Raises:
            SparsityError: the target or `min_density` is no fraction in [0, 1).
            ConfigError: no layer has a threshold, or another argument is out of range.
            ConversionError: the model has no dynamic layer.
        """
        self.target = check_sparsity(target)
        self.mode = check_choice("mode", mode, MODES)
        self.min_density = check_sparsity(min_density)
        for name, value in (
            ("ramp_steps", ramp_steps),
            ("lam", lam),
            ("multiplier_rate", multiplier_rate),
            ("alpha", alpha),
        ):
            if not value >= 0:
                raise ConfigError(f"{name} must not be negative; got {value}")
        self.ramp_steps, self.lam, self.alpha = ramp_steps, float(lam), float(alpha)
        self.multiplier_rate = float(multiplier_rate)
        self._layers = [(name, layer) for name, layer in dynamic_layers(model) if layer.threshold is not None]
        if not self._layers:
            raise ConfigError("no layer has a learnable threshold", "mask='threshold', and before it is frozen")
        self._weights = torch.tensor([layer.weight.numel() for _, layer in self._layers], dtype=torch.float64)
        self._multipliers = torch.zeros(1 if mode == "global" else len(self._layers), dtype=torch.float64)
        self.density_goal = self.goal(0)

    def goal(self, step: int) -> float:
        """d*(t) = (1 - s)^min(1, t / ramp_steps)."""
        return float((1 - self.target) ** (min(1.0, step / self.ramp_steps) if self.ramp_steps else 1.0))

    @property
    def finalized(self) -> bool:
        """Whether all masks are frozen; then `step` and `loss` have nothing to do."""
        return all(layer.frozen for _, layer in self._layers)

    @torch.no_grad()
    def step(self, step: int) -> None:
        """Moves the goal, keeps thresholds and densities in bounds, and updates the multipliers.

        Args:
            step: number of the training step that follows.
        """
        self.density_goal = self.goal(step)
        if self.finalized:
            return
        kept, highest = zip(*(_state(layer) for _, layer in self._layers), strict=True)
        densities = torch.stack(kept).to("cpu", torch.float64)
        for (name, layer), density, limit in zip(self._layers, densities.tolist(), highest, strict=True):
            if self.mode == "quantile":
                _reset(layer, self.density_goal)
            elif density < self.min_density:
                _raise_density(name, layer, self.min_density)
            else:
                layer.threshold.clamp(limit)  # type: ignore[union-attr]
        self._multipliers += self.multiplier_rate * (self._pressed(densities) - self.density_goal)

    def loss(self) -> Float[Tensor, ""]:
        """The term to add to the training loss, differentiable in thresholds and weights; 0 after `finalize`."""
        weight = self._layers[0][1].weight
        if self.finalized or self.mode == "quantile":
            return weight.new_zeros(())
        if self.mode == "alpha":
            thresholds = [layer.threshold.value() for _, layer in self._layers]  # type: ignore[union-attr]
            return self.alpha * torch.stack([torch.exp(-value).sum() for value in thresholds]).sum()
        densities = torch.stack([layer.threshold.mask(layer.weight).mean() for _, layer in self._layers])  # type: ignore[union-attr]
        excess = self._pressed(densities) - self.density_goal
        return (self._multipliers.to(excess) * excess + self.lam * excess.square()).sum()

    def finalize(self, optimizer: Optimizer | None = None, *, strict: bool = False) -> SparsityReport:
        """Moves thresholds to the exact sparsity, freezes all masks and removes the thresholds.

        Every layer gets the target in the modes penalty and quantile; in global and alpha all layers together do, each
        with the share that its margins give it.

        Args:
            optimizer: its state is set to 0 for masked weights, so that momentum does not move them again.
            strict: refuse a target that a layer cannot reach, instead of warning.

        Returns:
            What was reached.

        Raises:
            SparsityError: `strict`, and a layer cannot be as sparse; nothing is frozen then.
        """
        if self.finalized:
            return self.report()
        wanted, counts = self._counts()
        missed = [
            f"{name} keeps {kept} of {_bits(layer)} weights, not {want}"
            for (name, layer), want, kept in zip(self._layers, wanted, counts, strict=True)
            if want != kept
        ]
        if missed:
            text = f"the target sparsity {self.target:g} is out of reach: {'; '.join(missed)}"
            if strict:
                raise SparsityError(text, "lower min_density or the target, or leave small layers dense")
            warnings.warn(text, SparsityWarning, stacklevel=2)
        for (_, layer), count in zip(self._layers, counts, strict=True):
            layer.keep(count)
            if optimizer is not None:
                _forget(optimizer, layer)
        return self.report()

    def report(self) -> SparsityReport:
        """The densities now."""
        layers = []
        for name, layer in self._layers:
            density = layer.densities()
            weights = layer.weight.numel()
            layers.append(LayerSparsity(name, weights, round(density.mean * weights), density.union))
        return SparsityReport(self.target, tuple(layers))

    def state_dict(self) -> dict[str, Any]:
        """Multipliers and goal."""
        return {"multipliers": self._multipliers.clone(), "density_goal": self.density_goal}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave."""
        self._multipliers = torch.as_tensor(state_dict["multipliers"], dtype=torch.float64).clone()
        self.density_goal = float(state_dict["density_goal"])

    def _pressed(self, densities: Tensor) -> Tensor:
        """What the penalty compares with the goal: each layer's density, or that of all weights [1]."""
        if self.mode != "global":
            return densities
        return (densities * self._weights.to(densities)).sum(0, keepdim=True) / self._weights.sum().item()

    def _counts(self) -> tuple[list[int], list[int]]:
        """Mask bits that each layer would keep at the target, and those that it keeps above its floor."""
        floors = [max(ceil(self.min_density * _bits(layer)), _kernels(layer)) for _, layer in self._layers]
        if self.mode in ("penalty", "quantile"):
            wanted = [round((1 - self.target) * _bits(layer)) for _, layer in self._layers]
            return wanted, [max(pair) for pair in zip(wanted, floors, strict=True)]
        total = round((1 - self.target) * sum(_bits(layer) for _, layer in self._layers))
        if total < sum(floors):
            return _shares(self._layers, total, [0] * len(floors)), floors
        counts = _shares(self._layers, total, floors)
        return counts, counts


def _bits(layer: SDConvNd) -> int:
    """Bits of a layer's mask: K |W|, or |W| when shared."""
    return layer.weight.numel() // (layer.num_kernels if layer.mask_sharing == "shared" else 1)


def _kernels(layer: SDConvNd) -> int:
    """Masks of a layer, each of which should keep a weight."""
    return 1 if layer.mask_sharing == "shared" else layer.num_kernels


@torch.no_grad()
def _shares(layers: list[tuple[str, SDConvNd]], total: int, floors: list[int]) -> list[int]:
    """How many of the `total` largest margins of all layers lie in each, after each took its floor."""
    margins = []
    for (_, layer), floor in zip(layers, floors, strict=True):
        q = layer.threshold(layer.weight).flatten()  # type: ignore[misc]
        margins.append(q.masked_fill(largest(q, floor), torch.inf))
    chosen = largest(torch.cat(margins), total)
    return [int(part.sum()) for part in chosen.split([len(q) for q in margins])]


def _state(layer: SDConvNd) -> tuple[Tensor, Tensor]:
    """Density of the mask and greatest magnitude, both on the device."""
    threshold = layer.threshold
    assert threshold is not None  # noqa: S101 -- the controller has no others before finalize
    magnitude = threshold.magnitude(layer.weight)
    kept = (magnitude > threshold.level(layer.weight.dim())).sum() / magnitude.numel()
    return kept, magnitude.amax()


def _reset(layer: SDConvNd, density: float) -> None:
    """Sets all thresholds of a layer to the quantile of its magnitudes."""
    threshold = layer.threshold
    assert threshold is not None  # noqa: S101
    magnitude = threshold.magnitude(layer.weight)
    threshold.set(split(magnitude, max(1, round(density * magnitude.numel()))))


def _raise_density(name: str, layer: SDConvNd, density: float) -> None:
    """Lowers a layer's thresholds until so many of its weights are kept."""
    threshold = layer.threshold
    assert threshold is not None  # noqa: S101
    margins = threshold(layer.weight)
    threshold.shift(split(margins, max(1, ceil(density * margins.numel()))))
    warnings.warn(
        f"layer {name} fell below the least density {density:g}; its thresholds are lowered",
        SparsityWarning,
        stacklevel=3,
    )


def _forget(optimizer: Optimizer, layer: SDConvNd) -> None:
    """Sets the optimiser's state of masked weights to 0."""
    mask = layer.masks()
    for value in optimizer.state.get(layer.weight, {}).values():
        if isinstance(value, Tensor) and value.shape == mask.shape:
            value.mul_(mask)
