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

from typing import Literal, overload

from jaxtyping import Float
from torch import Tensor

from core_utils.errors import UserError
from core_utils.spiking.backends import BACKENDS, fastest
from core_utils.spiking.backends.reference import step
from core_utils.spiking.dynamics import TRIANGLE, Compare, Neuron, Reset, kept, require_one_of, rest
from core_utils.spiking.surrogates import Surrogate


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
        backend: one of `BACKENDS`, or "auto": "numba" on a CPU, "triton" on CUDA, "fused" elsewhere and where these
            cannot be loaded. All give the same spikes and gradients. What numba (half precision) or both (a surrogate
            of your own) cannot compute, they leave to "fused".

    Returns:
        Spikes, 0 or 1, in the shape and dtype of `x_seq`; with `return_v` also the membrane potential, shape [B, ...],
        which is float32 where `x_seq` is half precision.

    Raises:
        UserError: no time step, fewer than 2 dimensions, no floating dtype, a `v0` of another shape, a decay outside
            (0, 1], or an unknown compare, reset or backend.

    Reference: the neurons of arXiv 2202.11946 (decay 0.5, threshold 1, ">", triangle), arXiv 2203.06145 (0.25, 0.5,
    ">=", rectangle) and arXiv 2201.10355 (0.25, 1, ">=", atan; input scaled by 0.75, reset detached).
    """
    neuron = Neuron(decay, threshold, input_scale, compare, reset, detach_reset, surrogate)
    require_one_of("backend", backend, ("auto", *BACKENDS))
    if x_seq.ndim < 2 or x_seq.shape[0] == 0:
        raise UserError(f"x_seq must be [T, B, ...] with T >= 1, got shape {list(x_seq.shape)}")
    compute = fastest(x_seq.device.type) if backend == "auto" else BACKENDS[backend]
    spikes, v = compute(x_seq, _start(x_seq[0], v0), neuron)
    return (spikes, v) if return_v else spikes


def lif_step(  # noqa: D417
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
        decay: as of `lif`, and so are all that follow.

    Returns:
        Spikes in the dtype of `x`, and the membrane potential after the step, float32 where `x` is half precision.

    Raises:
        UserError: as `lif`.
    """
    neuron = Neuron(decay, threshold, input_scale, compare, reset, detach_reset, surrogate)
    v = _start(x, v)
    return step(x, rest(x) if v is None else v, neuron)


def _start(x: Tensor, v: Tensor | None) -> Tensor | None:
    """The given membrane potential, checked, in the precision that it is kept in."""
    if not x.is_floating_point():
        raise UserError(f"the input of a neuron must be floating, got {x.dtype}")
    if v is None:
        return None
    if v.shape != x.shape:
        raise UserError(f"the membrane potential must have the input's shape {list(x.shape)}, got {list(v.shape)}")
    return v.to(kept(x.dtype))
