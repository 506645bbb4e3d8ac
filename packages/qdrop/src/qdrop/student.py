"""The quantised model: a float model whose layers hold weights on a grid and whose tensors are quantised at their sites."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from qdrop.fake_quant import fake_quantize, qdrop_fake_quantize
from qdrop.ranges import search_range
from qdrop.ranks import max_over_ranks, sum_over_ranks
from qdrop.sites import PROBABILITIES, Site, function_name
from qdrop.softmax_attention import scaled_dot_product_attention

if TYPE_CHECKING:
    from qdrop.config import QDropConfig
    from qdrop.drops import Drops
    from qdrop.planning import Plan
    from qdrop.reconstruction import UnitResult

SMALLEST_SCALE = float(torch.finfo(torch.float32).eps)
"""A step size that is being learned is kept above this, as LSQ's reference code keeps it."""


def grid(bits: int, symmetric: bool) -> tuple[int, int]:
    """Smallest and largest code: [-2^(b-1), 2^(b-1) - 1] when symmetric, else [0, 2^b - 1]."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)


class ActivationQuantizer(nn.Module):
    """Quantises one tensor of the forward pass, once it has a range and is enabled.

    Attributes:
        scale: step size, float32, shape (); a leaf that may require its gradient.
        zero_point: int32, shape ().
        enabled: whether tensors are quantised; they pass unchanged otherwise.
        drops: draws which elements are quantised while a unit is reconstructed; None: all are.
        seen: where to put the tensors that pass, while ranges are looked for.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, bits: int, symmetric: bool) -> None:
        super().__init__()
        self.bits, self.symmetric = bits, symmetric
        self.qmin, self.qmax = grid(bits, symmetric)
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.int32))
        self.enabled = False
        self.drops: Drops | None = None
        self.seen: list[Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The tensor on its grid, with the same shape."""
        if self.seen is not None:
            self.seen.append(x.detach().clone())
        if not self.enabled:
            return x
        if not self.scale.requires_grad:
            return fake_quantize(x, self.scale, self.zero_point, self.qmin, self.qmax)
        with torch.no_grad():
            self.scale.abs_().clamp_(min=SMALLEST_SCALE)
        mask = None if self.drops is None else self.drops(x)
        return qdrop_fake_quantize(
            x, self.scale, self.zero_point, self.qmin, self.qmax, 1.0, mask=mask, **self._gain(x)
        )

    def find_range(self, chunks: list[Tensor]) -> None:
        """Takes the range that suits all these tensors, and those of the other ranks, best.

        Raises:
            CalibrationError: a value is not finite.
        """
        self.set_range(
            *search_range(chunks, self.bits, self.symmetric, reduce_max=max_over_ranks, reduce_sum=sum_over_ranks)
        )

    def set_range(self, scale: Float[Tensor, ""], zero_point: Int32[Tensor, ""]) -> None:
        """Takes a step size and a zero point."""
        self.scale = scale.detach().clone().to(self.scale.device)
        self.zero_point = zero_point.detach().clone().to(self.scale.device)

    def extra_repr(self) -> str:
        """Bits and grid."""
        return f"bits={self.bits}, qmin={self.qmin}, qmax={self.qmax}, enabled={self.enabled}"

    def _gain(self, x: Tensor) -> dict[str, float]:
        """LSQ's 1 / sqrt(numel * qmax) counts the whole batch, also where ranks hold shares of it."""
        if self.drops is None or self.drops.share == 1.0:
            return {}
        return {"grad_scale": (x.numel() / self.drops.share * self.qmax) ** -0.5}


class QuantizedWeight(nn.Module):
    """A layer's weight as integer codes with a step size and a zero point per output channel.

    Attributes:
        codes: uint8 (asymmetric) or int8, the weight's shape.
        scale: float32, shape (C,).
        zero_point: int32, shape (C,).
        axis: the weight's axis of output channels.
        per_channel: whether channels have ranges of their own; their step sizes are equal otherwise.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(
        self, shape: tuple[int, ...], bits: int, symmetric: bool, axis: int, *, per_channel: bool = True
    ) -> None:
        super().__init__()
        self.bits, self.symmetric, self.axis, self.per_channel = bits, symmetric, axis, per_channel
        self.qmin, self.qmax = grid(bits, symmetric)
        self.register_buffer("codes", torch.zeros(shape, dtype=torch.int8 if symmetric else torch.uint8))
        self.register_buffer("scale", torch.ones(shape[axis]))
        self.register_buffer("zero_point", torch.zeros(shape[axis], dtype=torch.int32))

    def dequantize(self) -> Float[Tensor, " ..."]:
        """The weight, `(codes - zero_point) * scale`, float32."""
        wide = [-1 if axis == self.axis else 1 for axis in range(self.codes.dim())]
        return (self.codes.to(torch.int32) - self.zero_point.view(wide)).float() * self.scale.view(wide)

    def extra_repr(self) -> str:
        """Bits and grid."""
        return f"bits={self.bits}, qmin={self.qmin}, qmax={self.qmax}, axis={self.axis}"


@dataclass(frozen=True)
class IntegerWeight:
    """One layer's weight in integers: `(codes - zero_point) * scale`, the last two along `axis`."""

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    bits: int
    axis: int


class QuantizedModel(nn.Module):
    """A model with the signature of the float one, quantised as its plan says.

    Its state holds integer codes, step sizes and zero points, and what is not quantised; the float weights that layers
    compute with are derived from the codes.

    Args:
        model: a prepared float model (`folding.prepare`); it is taken over, not copied.
        plan: what to quantise.
        config: the settings it came from.

    Attributes:
        weights: the quantised weights by the path of their layer.
        activations: the activation quantisers by the name of their site.
        report: one `UnitResult` per unit, in order.
        example: inputs of one small batch, by which the model was planned.
    """

    def __init__(self, model: nn.Module, plan: Plan, config: QDropConfig) -> None:
        super().__init__()
        self.model, self.plan, self.config = model.eval().requires_grad_(False), plan, config
        self.report: list[UnitResult] = []
        self.example: Any = None
        self.counts: Counter[str] = Counter()
        self.weights: dict[str, QuantizedWeight] = {}
        self.activations: dict[str, ActivationQuantizer] = {}
        for weight in plan.weights:
            layer = model.get_submodule(weight.path)
            quantized = QuantizedWeight(weight.shape, weight.bits, weight.symmetric, weight.axis)
            self.weights[weight.path] = quantized.to(layer.weight.device)
            value = layer.weight.detach()
            del layer.weight
            layer.register_buffer("weight", value, persistent=False)
        for tensor in plan.tensors:
            device = next((value.device for value in model.parameters()), torch.device("cpu"))
            self.activations[tensor.site.name] = ActivationQuantizer(tensor.bits, tensor.symmetric).to(device)
        self._weights, self._activations = (
            nn.ModuleDict({_key(name): module for name, module in named.items()})
            for named in (self.weights, self.activations)
        )
        _attach(self)
        self.register_load_state_dict_post_hook(_refresh)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the float model's forward."""
        self.counts.clear()
        return self.model(*args, **kwargs)

    def integer_state(self) -> dict[str, IntegerWeight]:
        """Codes, step size, zero point, bits and channel axis of every quantised layer, by its path."""
        return {
            path: IntegerWeight(
                w.codes.detach().clone(), w.scale.detach().clone(), w.zero_point.detach().clone(), w.bits, w.axis
            )
            for path, w in self.weights.items()
        }

    def set_codes(self, path: str, codes: Tensor) -> None:
        """Gives a layer its codes, and the float weight that follows from them."""
        weight = self.weights[path]
        weight.codes = codes.to(weight.codes.dtype)
        self.model.get_submodule(path).weight = weight.dequantize()

    def set_enabled(self, names: Iterator[str] | list[str] | None, enabled: bool) -> None:
        """Switches activation quantisers by the names of their sites; None means all."""
        for name in self.activations if names is None else names:
            self.activations[name].enabled = enabled


def _key(name: str) -> str:
    """Names of submodules cannot hold dots."""
    return name.replace(".", "/")


def _refresh(student: QuantizedModel, _: object) -> None:
    """Derives the layers' weights anew after their codes were loaded."""
    for path, weight in student.weights.items():
        student.model.get_submodule(path).weight = weight.dequantize()


def _attach(student: QuantizedModel) -> None:
    """Hangs every quantiser on the module where its tensor is made."""
    outputs: dict[str, dict[int, list[tuple[int, ActivationQuantizer]]]] = {}
    functions: dict[str, dict[int, list[tuple[Site, ActivationQuantizer]]]] = {}
    for tensor in student.plan.tensors:
        site, quantizer = tensor.site, student.activations[tensor.site.name]
        if site.kind == "module":
            outputs.setdefault(site.path, {}).setdefault(site.call, []).append((site.index, quantizer))
        else:
            functions.setdefault(site.path, {}).setdefault(site.call, []).append((site, quantizer))
    for path in {**functions, **outputs}:
        module = student.model.get_submodule(path)
        if path in functions:
            module.forward = _Watched(module.forward, path, student.counts, functions[path])  # type: ignore[method-assign]
        module.register_forward_hook(_Output(path, student.counts, outputs.get(path, {})))


class _Output:
    """Quantises what a module returns, and counts its calls. An object, so that it is copied with its module."""

    def __init__(
        self, path: str, counts: Counter[str], quantizers: Mapping[int, list[tuple[int, ActivationQuantizer]]]
    ) -> None:
        self.path, self.counts, self.quantizers = path, counts, quantizers

    def __call__(self, _: nn.Module, __: Any, output: Any) -> Any:
        call = self.counts[self.path]
        self.counts[self.path] += 1
        for index, quantizer in self.quantizers.get(call, ()):
            output = replaced(output, index, quantizer)
        return output


class _Watched:
    """A module's forward, during which results and operands of functions are quantised.

    No hook of the module: while torch exports, hooks do not run after an exception.
    """

    def __init__(
        self,
        forward: Callable[..., Any],
        path: str,
        counts: Counter[str],
        quantizers: Mapping[int, list[tuple[Site, ActivationQuantizer]]],
    ) -> None:
        functools.update_wrapper(self, forward)
        self.forward, self.path, self.counts, self.quantizers = forward, path, counts, quantizers

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _Functions(self.quantizers.get(self.counts[self.path], ())):
            return self.forward(*args, **kwargs)


_PAUSED: ContextVar[bool] = ContextVar("paused", default=False)


@contextmanager
def uncounted() -> Iterator[None]:
    """While inside, functions are not the model's own: they are neither counted nor quantised."""
    token = _PAUSED.set(True)
    try:
        yield
    finally:
        _PAUSED.reset(token)


class _Functions(TorchFunctionMode):
    """Counts functions by name as `tracing` does, and quantises at the planned ones."""

    def __init__(self, quantizers: Any) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()
        self.sites: dict[tuple[str, int], list[tuple[Site, ActivationQuantizer]]] = {}
        for site, quantizer in quantizers:
            self.sites.setdefault((site.function or "", site.ordinal), []).append((site, quantizer))
        self.names = {name for name, _ in self.sites}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function_name(function)
        if name not in self.names or _PAUSED.get():
            return function(*args, **kwargs)
        key = name, self.seen[name]
        self.seen[name] += 1
        probabilities = None
        for site, quantizer in self.sites.get(key, ()):
            if site.kind == "operand" and site.index == PROBABILITIES:
                probabilities = quantizer
            elif site.kind == "operand":
                args, kwargs = replaced((args, kwargs), site.index, quantizer)
        if probabilities is not None:
            with uncounted():
                output = scaled_dot_product_attention(*args, **kwargs, transform=probabilities)
        else:
            output = function(*args, **kwargs)
        for site, quantizer in self.sites.get(key, ()):
            if site.kind == "function":
                output = replaced(output, site.index, quantizer)
        return output


def replaced(tree: Any, index: int, quantizer: Any) -> Any:
    """A pytree whose `index`-th tensor has gone through the quantiser."""
    with uncounted():
        if isinstance(tree, Tensor):
            return quantizer(tree)
        leaves, structure = pytree.tree_flatten(tree)
        tensors = [position for position, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        leaves[tensors[index]] = quantizer(leaves[tensors[index]])
        return pytree.tree_unflatten(leaves, structure)
