"""Per-sample kernels: y_b = conv(x_b, sum_k pi_bk W_k) + sum_k pi_bk b_k, in three exact forms.

- grouped: mixes the kernels, B |W| floats, and convolves all samples at once as groups;
- mix_outputs: convolves with all K kernels and mixes the outputs, K times the activations; nothing of it depends on the
  batch size, so it is the form to export;
- bmm: for kernels of one position, a batched matrix product with the mixed kernels.

Convolution is linear in its kernel, so all give the same up to rounding; which is fastest depends on the shape.

Reference: spec section 2.5.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from dynsparse.errors import ConfigError
from dynsparse.geometry import Geometry

Form = Callable[[Tensor, Tensor, Tensor | None, Tensor, Geometry], Tensor]


def convolve(
    x: Float[Tensor, "b c_i *space"], weight: Tensor, bias: Tensor | None, geometry: Geometry
) -> Float[Tensor, "b c_o *out"]:
    """The plain convolution of torch for any number of spatial axes."""
    conv = (functional.conv1d, functional.conv2d, functional.conv3d)[x.dim() - 3]
    return conv(x, weight, bias, *geometry)


def mixed(stack: Float[Tensor, " k *rest"], pi: Float[Tensor, "b k"]) -> Float[Tensor, " b *rest"]:
    """sum_k pi_bk V_k for every sample."""
    return (pi @ stack.flatten(1)).reshape(pi.shape[0], *stack.shape[1:])


def grouped(
    x: Float[Tensor, "b c_i *space"],
    weight: Float[Tensor, "k c_o c_g *kernel"],
    bias: Float[Tensor, "k c_o"] | None,
    pi: Float[Tensor, "b k"],
    geometry: Geometry,
) -> Float[Tensor, "b c_o *out"]:
    """Mixes the kernels, then convolves the samples as groups of one convolution."""
    return per_sample(x, mixed(weight, pi), None if bias is None else mixed(bias, pi), geometry)


def per_sample(
    x: Float[Tensor, "b c_i *space"],
    weight: Float[Tensor, "b c_o c_g *kernel"],
    bias: Float[Tensor, "b c_o"] | None,
    geometry: Geometry,
) -> Float[Tensor, "b c_o *out"]:
    """A convolution of each sample with a kernel of its own."""
    batch = x.shape[0]
    rows = x.reshape(1, batch * x.shape[1], *x.shape[2:])
    y = convolve(
        rows,
        weight.flatten(0, 1),
        None if bias is None else bias.flatten().to(weight.dtype),
        geometry._replace(groups=batch * geometry.groups),
    )
    return y.reshape(batch, weight.shape[1], *y.shape[2:])


def mix_outputs(
    x: Float[Tensor, "b c_i *space"],
    weight: Float[Tensor, "k c_o c_g *kernel"],
    bias: Float[Tensor, "k c_o"] | None,
    pi: Float[Tensor, "b k"],
    geometry: Geometry,
) -> Float[Tensor, "b c_o *out"]:
    """Convolves with all kernels, then mixes their outputs."""
    kernels, filters = weight.shape[:2]
    groups = geometry.groups
    by_group = weight.unflatten(1, (groups, filters // groups)).transpose(0, 1)  # [G, K, C_o/G, ...]
    y = convolve(x, by_group.reshape(kernels * filters, *weight.shape[2:]), None, geometry)
    space = y.shape[2:]
    each = y.reshape(x.shape[0], groups, kernels, filters // groups * prod(space))
    y = (pi.to(y.dtype)[:, None, None] @ each).reshape(x.shape[0], filters, *space)
    return y if bias is None else y + channelwise(mixed(bias, pi), y)


def bmm(
    x: Float[Tensor, "b c_i *space"],
    weight: Float[Tensor, "k c_o c_g *kernel"],
    bias: Float[Tensor, "k c_o"] | None,
    pi: Float[Tensor, "b k"],
    geometry: Geometry,
) -> Float[Tensor, "b c_o *out"]:
    """Mixes the kernels of one position, then multiplies.

    Raises:
        ConfigError: the kernel has several positions, or the input is padded.
    """
    if not takes_bmm(weight, geometry):
        raise ConfigError("form bmm takes kernels of size 1 without padding", "use grouped or mix_outputs")
    for axis, stride in enumerate(geometry.stride, start=2):
        x = x[(slice(None),) * axis + (slice(None, None, stride),)]
    groups, space = geometry.groups, x.shape[2:]
    per_group = mixed(weight, pi).reshape(x.shape[0] * groups, weight.shape[1] // groups, weight.shape[2])
    rows = x.reshape(x.shape[0] * groups, weight.shape[2], prod(space)).to(per_group.dtype)
    y = torch.bmm(per_group, rows).reshape(x.shape[0], weight.shape[1], *space)
    return y if bias is None else y + channelwise(mixed(bias, pi), y)


def channelwise(values: Float[Tensor, "b c"], y: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *ones"]:
    """Values of channels [B, C_o] in a shape that meets y."""
    return values.reshape(*values.shape, *[1] * (y.dim() - 2)).to(y.dtype)


FORMS: dict[str, Form] = {"grouped": grouped, "mix_outputs": mix_outputs, "bmm": bmm}
"""The exact forms by name."""

LARGE_KERNELS, LARGE_BATCH = 16, 16
"""Mixing outputs pays on a CPU from 16 numbers of a kernel for each output of all kernels, and from 16 samples: measured
on one core with 13 shapes at B = 1, 4 and 32, forward and backward. Everywhere else it was 1.0 to 17 times slower."""

CHOICES = (*FORMS, "auto", "measured")
"""What a layer's `form` may be: a form, the rule, or the fastest by measurement."""


def choose(
    x: Float[Tensor, "b c_i *space"],
    weight: Float[Tensor, "k c_o c_g *kernel"],
    geometry: Geometry,
    form: str = "auto",
) -> str:
    """The form to compute with.

    Args:
        x: input.
        weight: static kernels.
        geometry: of the convolution.
        form: "auto" decides by a rule on the shape, the same on every machine and in every run; "measured" times all
            forms once for each shape, device and mode, and keeps the fastest, whose rounding may then differ from run
            to run; a form's name forces it.
    """
    if form == "mix_outputs" or x.shape[0] == 0:  # there are no zero groups
        return "mix_outputs"
    if form in FORMS:
        return form
    if form == "measured" and not torch.compiler.is_compiling():
        training = torch.is_grad_enabled() and (weight.requires_grad or x.requires_grad)
        return _fastest(tuple(x.shape), tuple(weight.shape), geometry, str(x.device), x.dtype, training)
    return _by_rule(x, weight, geometry)


def takes_bmm(weight: Float[Tensor, "k c_o c_g *kernel"], geometry: Geometry) -> bool:
    """Whether a kernel is of one position and the input not padded."""
    return prod(weight.shape[3:]) == 1 and not any(geometry.padding)


def _by_rule(x: Tensor, weight: Tensor, geometry: Geometry) -> str:
    """Compares the kernels that mixing writes, B |W|, with the outputs of all kernels, K B C_o positions."""
    if takes_bmm(weight, geometry):
        return "bmm"
    sizes = [size // geometry.stride[axis] for axis, size in enumerate(x.shape[2:])]  # a list, for torch.compile
    positions = prod(sizes)
    large_kernels = weight[0].numel() > LARGE_KERNELS * len(weight) * weight.shape[1] * positions
    return "mix_outputs" if x.shape[0] >= LARGE_BATCH and large_kernels else "grouped"


@functools.lru_cache(maxsize=1024)
def _fastest(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    geometry: Geometry,
    device: str,
    dtype: torch.dtype,
    training: bool,
) -> str:
    """Times every form on zeros of these shapes, twice after a warm-up."""
    x = torch.zeros(x_shape, device=device, dtype=dtype, requires_grad=training)
    weight = torch.zeros(weight_shape, device=device, dtype=dtype, requires_grad=training)
    pi = torch.full((x_shape[0], weight_shape[0]), 1 / weight_shape[0], device=device, dtype=dtype)
    times = {}
    for name in ("grouped", "mix_outputs", *(("bmm",) if takes_bmm(weight, geometry) else ())):
        _timed(FORMS[name], x, weight, pi, geometry)
        times[name] = min(_timed(FORMS[name], x, weight, pi, geometry) for _ in range(2))
    return min(times, key=times.__getitem__)


def _timed(form: Form, x: Tensor, weight: Tensor, pi: Tensor, geometry: Geometry) -> float:
    """Seconds of one call, with its backward pass if the weight wants a gradient."""
    _synchronise(x)
    start = time.perf_counter()
    with torch.set_grad_enabled(weight.requires_grad):
        y = form(x, weight, None, pi, geometry)
        if weight.requires_grad:
            torch.autograd.grad(y.sum(), (x, weight))
    _synchronise(x)
    return time.perf_counter() - start


def _synchronise(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
