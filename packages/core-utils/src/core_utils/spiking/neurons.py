"""The leaky integrate-and-fire neuron, over a whole sequence at once.

    u[t] = decay * v[t-1] + input_scale * x[t]
    s[t] = 1 if u[t] > threshold else 0            (or >=)
    v[t] = (1 - s[t]) * u[t]                       (soft reset: u[t] - threshold * s[t])

Backward through time, with ds/du the surrogate at u[t] - threshold:

    gu[t] = gs[t] * ds/du + gv[t] * (1 - s[t] - u[t] * ds/du)     (soft: 1 - threshold * ds/du)
    gx[t] = input_scale * gu[t]
    gv[t-1] = decay * gu[t]

A detached reset lets no gradient pass through the s[t] of the third line: the term with ds/du in the bracket is gone.
`decay` is a factor a step, exp(-step / tau) of a membrane time constant tau; it is no time constant.

Neurons keep nothing between calls: every call starts from `v0`, or from rest.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, overload

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from core_utils.errors import UserError
from core_utils.spiking.surrogates import Surrogate, triangle

Compare = Literal[">", ">="]
Reset = Literal["hard", "soft"]

TRIANGLE = triangle()

BLOCK = 2**15
"""Neurons a thread takes at a time on a CPU: what PyTorch gives a thread at the least, and 128 KiB a buffer."""


@dataclass(frozen=True)
class Neuron:
    """What decides a neuron's dynamics; the arguments of `lif` by the same names, checked."""

    decay: float
    threshold: float = 1.0
    input_scale: float = 1.0
    compare: Compare = ">"
    reset: Reset = "hard"
    detach_reset: bool = False
    surrogate: Surrogate = TRIANGLE

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise UserError(
                f"decay must lie in (0, 1], got {self.decay}", "for a time constant tau give exp(-step / tau)"
            )
        _require_one_of("compare", self.compare, get_args(Compare))
        _require_one_of("reset", self.reset, get_args(Reset))

    @property
    def fires(self) -> Callable[..., Tensor]:
        """Of (u, threshold): where the potential is past the threshold."""
        return torch.gt if self.compare == ">" else torch.ge

    @property
    def silent(self) -> Callable[..., Tensor]:
        """Of (u, threshold): where it is not."""
        return torch.le if self.compare == ">" else torch.lt


@overload
def lif(
    x_seq: Float[Tensor, "T B *shape"],
    *,
    decay: float,
    threshold: float = ...,
    input_scale: float = ...,
    compare: Compare = ...,
    reset: Reset = ...,
    detach_reset: bool = ...,
    surrogate: Surrogate = ...,
    v0: Float[Tensor, "B *shape"] | None = ...,
    return_v: Literal[False] = ...,
    backend: str = ...,
) -> Float[Tensor, "T B *shape"]: ...
@overload
def lif(
    x_seq: Float[Tensor, "T B *shape"],
    *,
    decay: float,
    threshold: float = ...,
    input_scale: float = ...,
    compare: Compare = ...,
    reset: Reset = ...,
    detach_reset: bool = ...,
    surrogate: Surrogate = ...,
    v0: Float[Tensor, "B *shape"] | None = ...,
    return_v: Literal[True],
    backend: str = ...,
) -> tuple[Float[Tensor, "T B *shape"], Float[Tensor, "B *shape"]]: ...
def lif(
    x_seq: Float[Tensor, "T B *shape"],
    *,
    decay: float,
    threshold: float = 1.0,
    input_scale: float = 1.0,
    compare: Compare = ">",
    reset: Reset = "hard",
    detach_reset: bool = False,
    surrogate: Surrogate = TRIANGLE,
    v0: Float[Tensor, "B *shape"] | None = None,
    return_v: bool = False,
    backend: str = "auto",
) -> Float[Tensor, "T B *shape"] | tuple[Float[Tensor, "T B *shape"], Float[Tensor, "B *shape"]]:
    """Spikes of a layer of neurons over all time steps.

    Args:
        x_seq: input current, shape [T, B, ...], floating; every other unit of this function is its unit.
        decay: factor on the membrane potential a step, in (0, 1].
        threshold: membrane potential that a spike needs.
        input_scale: factor on the input; 1 - decay gives the neuron whose input decays, too.
        compare: whether u must exceed the threshold (">") or reach it (">=").
        reset: "hard" sets the potential to 0 after a spike, "soft" subtracts the threshold.
        detach_reset: no gradient through the reset.
        surrogate: ds/du as a function of u - threshold.
        v0: membrane potential before the first step, shape [B, ...]; None is rest, 0.
        return_v: also return the membrane potential after the last step.
        backend: one of `BACKENDS`, or "auto". All give the same spikes and gradients.

    Returns:
        Spikes, 0 or 1, in the shape and dtype of `x_seq`; with `return_v` also the membrane potential, shape [B, ...],
        which is float32 where `x_seq` is half precision.

    Raises:
        UserError: no time step, fewer than 2 dimensions, no floating dtype, a `v0` of another shape, a decay outside
            (0, 1], or an unknown compare, reset or backend.
    """
    neuron = Neuron(decay, threshold, input_scale, compare, reset, detach_reset, surrogate)
    _require_one_of("backend", backend, ("auto", *BACKENDS))
    if x_seq.ndim < 2 or x_seq.shape[0] == 0:
        raise UserError(f"x_seq must be [T, B, ...] with T >= 1, got shape {list(x_seq.shape)}")
    spikes, v = BACKENDS["fused" if backend == "auto" else backend](x_seq, _start(x_seq[0], v0), neuron)
    return (spikes, v) if return_v else spikes


def lif_step(
    x: Float[Tensor, "B *shape"],
    v: Float[Tensor, "B *shape"] | None,
    *,
    decay: float,
    threshold: float = 1.0,
    input_scale: float = 1.0,
    compare: Compare = ">",
    reset: Reset = "hard",
    detach_reset: bool = False,
    surrogate: Surrogate = TRIANGLE,
) -> tuple[Float[Tensor, "B *shape"], Float[Tensor, "B *shape"]]:
    """One time step of `lif`, for cells whose input depends on their last output.

    Args:
        x: input current, shape [B, ...].
        v: membrane potential before the step, shape [B, ...]; None is rest, 0.
        decay: as of `lif`, and so are the others.
        threshold: see `lif`.
        input_scale: see `lif`.
        compare: see `lif`.
        reset: see `lif`.
        detach_reset: see `lif`.
        surrogate: see `lif`.

    Returns:
        Spikes in the dtype of `x`, and the membrane potential after the step, float32 where `x` is half precision.

    Raises:
        UserError: as `lif`.
    """
    neuron = Neuron(decay, threshold, input_scale, compare, reset, detach_reset, surrogate)
    v = _start(x, v)
    return _step(x, _rest(x) if v is None else v, neuron)


def _reference(x_seq: Tensor, v0: Tensor | None, neuron: Neuron) -> tuple[Tensor, Tensor]:
    """The plain loop under autograd: slow, hungry, and the oracle of every other backend."""
    v = _rest(x_seq[0]) if v0 is None else v0
    spikes = []
    for x in x_seq:
        s, v = _step(x, v, neuron)
        spikes.append(s)
    return torch.stack(spikes), v


def _step(x: Tensor, v: Tensor, neuron: Neuron) -> tuple[Tensor, Tensor]:
    u = neuron.decay * v + neuron.input_scale * x.to(v.dtype)
    s = _Spike.apply(u, neuron)
    resetting = s.detach() if neuron.detach_reset else s
    v = (1 - resetting) * u if neuron.reset == "hard" else u - neuron.threshold * resetting
    return s.to(x.dtype), v


class _Spike(torch.autograd.Function):
    """The step at the threshold, with the surrogate for its derivative."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, neuron: Neuron) -> Tensor:
        ctx.save_for_backward(u)
        ctx.neuron = neuron
        return neuron.fires(u, neuron.threshold).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (u,) = ctx.saved_tensors
        return grad * ctx.neuron.surrogate(u - ctx.neuron.threshold), None


def _fused(x_seq: Tensor, v0: Tensor | None, neuron: Neuron) -> tuple[Tensor, Tensor]:
    """One node of the graph for all time steps: keeps its inputs alone and computes u anew in backward."""
    spikes, v = _Fused.apply(x_seq.flatten(1), v0 if v0 is None else v0.flatten(), neuron)
    return spikes.view(x_seq.shape), v.view(x_seq.shape[1:])


class _Fused(torch.autograd.Function):
    """Takes the neurons, x_seq [T, N] and v0 [N], in blocks that stay in cache over all time steps."""

    @staticmethod
    def forward(ctx: Any, x_seq: Tensor, v0: Tensor | None, neuron: Neuron) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x_seq, v0)
        ctx.set_materialize_grads(False)
        ctx.neuron = neuron
        spikes = torch.empty_like(x_seq)
        v_end = _rest(x_seq[0]) if v0 is None else v0.clone()
        for block in _blocks(v_end):
            v = v_end[block]
            for x, s in zip(x_seq[:, block], spikes[:, block], strict=True):
                _integrate_(v, x, neuron)
                neuron.fires(v, neuron.threshold, out=s)
                _reset_(v, neuron)
        return spikes, v_end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_spikes: Tensor | None, grad_v: Tensor | None) -> tuple[Tensor, Tensor | None, None]:
        x_seq, v0 = ctx.saved_tensors
        neuron: Neuron = ctx.neuron
        hard = neuron.reset == "hard"
        grad_x = torch.empty_like(x_seq, dtype=_kept(x_seq.dtype))
        grad_v0 = None if v0 is None else torch.empty_like(v0)
        for block in _blocks(x_seq[0]):
            u_seq = grad_x[:, block]  # the potential, until its gradient takes its place
            v = torch.zeros_like(u_seq[0]) if v0 is None else v0[block].clone()
            for x, u in zip(x_seq[:, block], u_seq, strict=True):
                u.copy_(_integrate_(v, x, neuron))
                _reset_(v, neuron)
            gv = torch.zeros_like(v) if grad_v is None else grad_v[block].clone()
            for t in reversed(range(len(u_seq))):
                u = u_seq[t]
                gs = 0 if grad_spikes is None else grad_spikes[t, block]
                if not neuron.detach_reset:
                    gs = gs - gv * (u if hard else neuron.threshold)
                slope = neuron.surrogate(u - neuron.threshold)
                if hard:
                    gv.mul_(neuron.silent(u, neuron.threshold, out=v))
                gv.add_(slope.mul_(gs))
                torch.mul(gv, neuron.input_scale, out=u)
                gv.mul_(neuron.decay)
            if grad_v0 is not None:
                grad_v0[block] = gv
        return grad_x.to(x_seq.dtype), grad_v0, None


def _integrate_(v: Tensor, x: Tensor, neuron: Neuron) -> Tensor:
    """The potential before the spike, in place of that before the step.

    Not `add_(alpha=)`, which rounds once where the reference rounds twice: spikes would differ.
    """
    return v.mul_(neuron.decay).add_(x if neuron.input_scale == 1 else x.to(v.dtype) * neuron.input_scale)


def _reset_(u: Tensor, neuron: Neuron) -> Tensor:
    """The potential after the spike, in place of that before it."""
    if neuron.reset == "hard":
        return u.mul_(neuron.silent(u, neuron.threshold, out=torch.empty_like(u)))
    return u.sub_(neuron.fires(u, neuron.threshold, out=torch.empty_like(u)), alpha=neuron.threshold)


def _blocks(neurons: Tensor) -> Iterator[slice]:
    """Slices of the axis of neurons, [N], that are worked on one after the other; a single one on a GPU."""
    count = len(neurons)
    size = BLOCK * torch.get_num_threads() if neurons.is_cpu else max(count, 1)
    return (slice(start, start + size) for start in range(0, count, size))


def _rest(x: Tensor) -> Tensor:
    return torch.zeros(x.shape, dtype=_kept(x.dtype), device=x.device)


def _kept(dtype: torch.dtype) -> torch.dtype:
    """The precision of the membrane potential: a comparison in half precision would move spikes."""
    return torch.promote_types(dtype, torch.float32)


def _start(x: Tensor, v: Tensor | None) -> Tensor | None:
    """The given membrane potential, checked, in the precision that it is kept in."""
    if not x.is_floating_point():
        raise UserError(f"the input of a neuron must be floating, got {x.dtype}")
    if v is None:
        return None
    if v.shape != x.shape:
        raise UserError(f"the membrane potential must have the input's shape {list(x.shape)}, got {list(v.shape)}")
    return v.to(_kept(x.dtype))


def _require_one_of(name: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise UserError(f"{name} must be one of {', '.join(valid)}, got {value!r}")


Backend = Callable[[Tensor, Tensor | None, Neuron], tuple[Tensor, Tensor]]
"""From x_seq [T, B, ...], v0 [B, ...] and the neuron to the spikes and the last membrane potential, differentiable."""

BACKENDS: dict[str, Backend] = {"reference": _reference, "fused": _fused}
