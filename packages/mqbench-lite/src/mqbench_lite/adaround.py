"""AdaRound, layer by layer: whether each weight is rounded down or up is learned from the layer's outputs.

h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1) is the share of a step added to floor(w / s). It starts at the fractional part,
where the soft weight is the weight itself, and the regulariser lambda sum(1 - |2 h - 1|^beta) pushes it to 0 or 1. The
layer's inputs are those of the model whose layers before are quantised already, its target the float model's outputs.

Reference: Nagel et al., AdaRound, arXiv:2004.10568, eqs. (21) to (25).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int32
from torch import Tensor, nn

from mqbench_lite.calibration import calibrate, evaluating, quantizers_of, run_batch
from mqbench_lite.errors import CalibrationError, MQBenchError
from mqbench_lite.fake_quant import along
from mqbench_lite.quantizers import Quantizer, Role
from mqbench_lite.specs import QuantSpec


@dataclass(frozen=True, kw_only=True)
class AdaRoundSettings:
    """How rounding is learned.

    Attributes:
        batch_size: samples a step.
        lr: of Adam.
        strength: lambda.
        warmup: share of the steps without the regulariser.
        beta_start: exponent of the regulariser at the end of the warm-up; beta_end: at the last step, linear between.
        batches: of the calibration data, at most.
        observer: of weights and of activations.
    """

    batch_size: int = 32
    lr: float = 1e-2
    strength: float = 0.01
    warmup: float = 0.2
    beta_start: float = 20.0
    beta_end: float = 2.0
    batches: int = 32
    observer: tuple[str, str] = ("mse", "ema_mse")

    def beta(self, step: int, steps: int) -> float | None:
        """Exponent at a step, from 0; None during the warm-up."""
        first = self.warmup * steps
        if step < first:
            return None
        return self.beta_start + (self.beta_end - self.beta_start) * (step - first) / max(steps - 1 - first, 1)


class RoundedWeight(Quantizer):
    """A weight's quantiser whose rounding may have been learned.

    Attributes:
        up: 1 where a weight is rounded up, uint8, of the weight's shape.
        decided: whether `up` was learned; until then weights are rounded to the nearest code.
        variable: V while it is learned.
    """

    up: Tensor

    def __init__(self, spec: QuantSpec, role: Role, *, observer: str = "mse") -> None:
        super().__init__(spec, role, observer=observer)
        self.decided = self._starting = False
        self.variable: Tensor | None = None
        self.register_buffer("up", torch.zeros(0, dtype=torch.uint8))

    def attach(self, shape: Sequence[int], axis: int = 0) -> None:
        """Gives step sizes and roundings their final shapes."""
        super().attach(shape, axis)
        self.register_buffer("up", torch.zeros(tuple(shape), dtype=torch.uint8))

    def observe(self, observer: str | None = None) -> None:
        """Forgets the rounding as well."""
        super().observe(observer)
        self.decided = False

    def begin(self) -> None:
        """Makes the next weight that passes the one whose rounding is learned."""
        self._starting = True

    @torch.no_grad()
    def decide(self) -> None:
        """Rounds up where h is at least a half, from now on."""
        if self.variable is None:
            raise MQBenchError("no rounding was learned", "begin first")
        self.up = (self.variable >= 0).to(torch.uint8)
        self.variable, self.decided = None, True

    def quantize(self, x: Tensor) -> Tensor:
        """The weight rounded softly while that is learned, as was decided, or to the nearest code."""
        if self._starting:
            self._start(x)
        if self.variable is None and not self.decided:
            return super().quantize(x)
        z = along(self.zero_point, x, self.axis)
        added = self.up if self.variable is None else share_added(self.variable)
        return (_within(self._base(x) + added, self.qmin, self.qmax) - z) * along(self.scale, x, self.axis)

    def codes(self, x: Float[Tensor, "*shape"]) -> Int32[Tensor, "*shape"]:
        """The codes of what `quantize` gives once the rounding is decided."""
        if not self.decided:
            return super().codes(x)
        return (self._base(x) + self.up).clamp(self.qmin, self.qmax).to(torch.int32)

    def get_extra_state(self) -> Tensor:
        """As every quantiser, and whether the rounding is decided: int64 [4]."""
        return torch.cat([super().get_extra_state(), torch.tensor([int(self.decided)])])

    def set_extra_state(self, state: Any) -> None:
        """Takes over what `get_extra_state` gave."""
        super().set_extra_state(state[:3])
        self.decided = bool(state[3])

    def _start(self, x: Tensor) -> None:
        self._starting = False
        steps = x.detach() / along(self.scale, x, self.axis)
        self.variable = variable_of(steps - steps.floor()).requires_grad_()

    def _base(self, x: Tensor) -> Tensor:
        """The code of the weight rounded down."""
        return (x.detach() / along(self.scale, x, self.axis)).floor() + along(self.zero_point, x, self.axis)


def share_added(variable: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """h(V)."""
    return _within(1.2 * torch.sigmoid(variable) - 0.1, 0, 1)


def variable_of(fraction: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The V of h(V) = fraction, for fractions in [0, 1)."""
    return -torch.log(1.2 / (fraction + 0.1) - 1)


def regulariser(h: Float[Tensor, "*shape"], beta: float) -> Float[Tensor, ""]:
    """Sum of 1 - |2 h - 1|^beta: 0 where every h is 0 or 1."""
    return (1 - (2 * h - 1).abs().pow(beta)).sum()


@dataclass(frozen=True)
class AdaRound:
    """The algorithm `adaround`."""

    name: ClassVar[str] = "adaround"
    kind: ClassVar[Literal["qat", "ptq"]] = "ptq"
    api_version: ClassVar[int] = 1

    def make_quantizer(self, spec: QuantSpec, role: Role) -> Quantizer:
        """A weight's quantiser with roundings, or one with a fixed range."""
        return RoundedWeight(spec, role) if role == "weight" else Quantizer(spec, role, observer="ema_mse")

    def apply(
        self, qmodel: nn.Module, calib_loader: Iterable[Any], *, seed: int = 0, steps: int = 20_000, **options: Any
    ) -> nn.Module:
        """Finds ranges and learns the rounding of one layer after another, in place.

        Args:
            qmodel: whose layers have `weight_quantizer`s of this algorithm.
            calib_loader: batches as for `calibrate`; read once for every layer, so it must be iterable again.
            seed: decides which samples make a step.
            steps: of each layer.
            **options: fields of `AdaRoundSettings`.

        Returns:
            The model, its quantisers frozen.
        """
        if steps < 1:
            raise MQBenchError(f"steps must be at least 1, got {steps}")
        try:
            settings = AdaRoundSettings(**options)
        except TypeError as error:
            known = ", ".join(AdaRoundSettings.__dataclass_fields__)
            raise MQBenchError(f"adaround: {error}", f"its options are {known}") from None
        calibrate(qmodel, calib_loader, settings.batches, settings.observer)
        with evaluating(qmodel):
            for layer, often in _layers_in_order(qmodel, calib_loader):
                inputs, targets, rest = _inputs_and_targets(qmodel, layer, often, calib_loader, settings.batches)
                learn_rounding(layer, inputs, targets, rest, seed=seed, steps=steps, settings=settings)
        for _, quantizer in quantizers_of(qmodel):
            quantizer.freeze()
        return qmodel


def learn_rounding(
    layer: nn.Module,
    inputs: Float[Tensor, "n ..."],
    targets: Float[Tensor, "n ..."],
    rest: tuple[Any, ...] = (),
    *,
    seed: int,
    steps: int,
    settings: AdaRoundSettings,
) -> None:
    """Learns the rounding of one layer's weight, in place.

    Args:
        layer: a module with a `weight_quantizer`.
        inputs: what it gets in the quantised model.
        targets: what it gives in the float model.
        rest: its further arguments.
        seed: decides which samples make a step.
        steps: of Adam.
        settings: the rest.
    """
    quantizer: Any = layer.weight_quantizer
    quantizer.begin()
    with torch.no_grad():
        layer(inputs[:1], *rest)
    optimizer = torch.optim.Adam([quantizer.variable], lr=settings.lr)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        chosen = torch.randperm(len(inputs), generator=generator)[: settings.batch_size].to(inputs.device)
        difference = layer(inputs[chosen], *rest) - targets[chosen]
        loss = difference.square().sum(1).mean()
        beta = settings.beta(step, steps)
        if beta is not None:
            loss = loss + settings.strength * regulariser(share_added(quantizer.variable), beta)
        (quantizer.variable.grad,) = torch.autograd.grad(loss, [quantizer.variable])
        optimizer.step()
    if not quantizer.variable.isfinite().all():
        raise CalibrationError(quantizer.label, quantizer.batch, "learning its rounding left the finite numbers")
    quantizer.decide()


def _within(x: Tensor, low: int, high: int) -> Tensor:
    """Clamped, with no gradient beyond the ends."""
    return torch.where(x > high, high, torch.where(x < low, low, x))


def _layers_in_order(qm: nn.Module, loader: Iterable[Any]) -> list[tuple[nn.Module, int]]:
    """The layers whose rounding is learned as they are first called, with how often."""
    layers = [m for m in qm.modules() if isinstance(getattr(m, "weight_quantizer", None), RoundedWeight)]
    calls: dict[nn.Module, int] = {}

    def count(layer: nn.Module, *_: Any) -> None:
        calls[layer] = calls.get(layer, 0) + 1

    handles = [layer.register_forward_pre_hook(count) for layer in layers]
    try:
        with torch.no_grad():
            run_batch(qm, next(iter(loader)))
    finally:
        for handle in handles:
            handle.remove()
    return list(calls.items())


def _inputs_and_targets(
    qm: nn.Module, layer: nn.Module, often: int, loader: Iterable[Any], batches: int
) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    """What the layer gets in the quantised model, what it gives in the float one, and its further arguments."""
    inputs, targets, rest = [], [], ()
    for batch in islice(loader, batches):
        for (given, *further), _ in _calls(qm, layer, often, batch):
            inputs.append(given)
            rest = tuple(further)
        with _floating(qm):
            targets += [result for _, result in _calls(qm, layer, often, batch)]
    return torch.cat(inputs), torch.cat(targets), rest


class _Reached(Exception):  # noqa: N818 -- ends a forward pass that has gone far enough
    pass


@torch.no_grad()
def _calls(qm: nn.Module, layer: nn.Module, often: int, batch: Any) -> list[tuple[tuple[Any, ...], Tensor]]:
    """Arguments and output of every call of the layer; nothing after the last runs."""
    seen: list[tuple[tuple[Any, ...], Tensor]] = []

    def keep(_: nn.Module, arguments: tuple[Any, ...], result: Tensor) -> None:
        seen.append((arguments, result))
        if len(seen) == often:
            raise _Reached

    handle = layer.register_forward_hook(keep)
    try:
        run_batch(qm, batch)
    except _Reached:
        pass
    finally:
        handle.remove()
    return seen


@contextmanager
def _floating(qm: nn.Module) -> Iterator[None]:
    """All quantisers disabled while inside."""
    before = [(quantizer, quantizer.enabled) for _, quantizer in quantizers_of(qm)]
    for quantizer, _ in before:
        quantizer.enabled = False
    try:
        yield
    finally:
        for quantizer, enabled in before:
            quantizer.enabled = enabled
