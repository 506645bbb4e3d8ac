"""A finalised layer ready to run, and which back-end it runs on for each input shape."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from dynsparse.errors import InputError
from dynsparse.geometry import padding_beforehand
from dynsparse.layers import SDConvNd
from dynsparse.runtime.backends import Candidate, Unavailable, dense_runs, native_run, scipy_run, torch_run
from dynsparse.runtime.pattern import SparseKernels
from dynsparse.runtime.plans import out_extents
from dynsparse.runtime.routing import fused

Call = Callable[[Tensor], Tensor]
"""[B, C_i, *space] to [B, C_o, *out]."""

SPARSE = {"native": native_run, "mkl": torch_run, "torch": torch_run, "scipy": scipy_run}
"""Sparse back-ends in the order of preference; "mkl" is torch's where it has MKL."""

ROUNDS = 5
"""Timed calls of each candidate, in turns, after one that warms up."""

BUDGET = 0.2
"""Seconds after which a round is the last one."""


@dataclass(frozen=True)
class Choice:
    """What a layer runs on for an input shape, and why.

    Attributes:
        shape: of the input.
        backend: "native", "mkl", "torch", "scipy", or "dense" with its form.
        seconds: of a call by each candidate, router included; empty where there was nothing to choose.
        reason: one sentence.
    """

    shape: tuple[int, ...]
    backend: str
    seconds: dict[str, float]
    reason: str


class SparseConv(nn.Module):
    """Stands where a frozen `SDConvNd` stood, for inference on a CPU in float32.

    Attributes:
        router: as it was.
        kernels: values on the union pattern.
        choices: back-ends by input shape, filled as shapes come.
    """

    def __init__(self, layer: SDConvNd, kernels: SparseKernels, backend: str, min_gain: float) -> None:
        super().__init__()
        self.router, self.kernels = layer.router, kernels
        self.dimensions, self.geometry = layer.dimensions, layer.geometry
        self.padding_mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        walk = (layer.padding, layer.padding_mode, layer.kernel_size, layer.stride, layer.dilation)
        self.sides = padding_beforehand(*walk)[1]
        self.backend, self.min_gain = backend, min_gain
        self.choices: dict[tuple[int, ...], Choice] = {}
        self._shape: tuple[int, ...] | None = None
        self._call: Call | None = None

    def forward(self, x: Float[Tensor, "*input"]) -> Float[Tensor, "*output"]:
        """[B, C_i, *space] to [B, C_o, *out]; one sample may come without its batch axis.

        Raises:
            InputError: another number of axes or channels.
            TypeError: another dtype than float32.
            RuntimeError: an input that is not on the CPU.
        """
        if torch.is_grad_enabled() and x.requires_grad:
            return _NoBackward.apply(x, self)
        if x.dim() == self.dimensions + 1:
            return self.forward(x[None])[0]
        self._check(x)
        if x.shape[0] == 0:  # there are no zero groups, nor anything to time
            padded = functional.pad(x, self.sides) if self.sides else x
            size = out_extents(padded.shape[2:], self.kernels.shape[2:], self.geometry)
            return x.new_empty(0, self.kernels.shape[0], *size)
        if self._call is None or self._shape != x.shape:
            self._call, self._shape = self._call_for(x), tuple(x.shape)
        return self._call(x)

    def attended(self, x: Float[Tensor, "b c_i *space"]) -> tuple[Float[Tensor, "b c_i *padded"], Float[Tensor, "b k"]]:
        """What a back-end takes: the input, padded where the convolution does not pad, and attention."""
        pi = x.new_ones(len(x), 1) if self.router is None else self.router(x)
        return (functional.pad(x, self.sides, mode=self.padding_mode) if self.sides else x), pi

    def extra_repr(self) -> str:
        """Sizes, density and back-end."""
        shape = "x".join(map(str, self.kernels.shape))
        return f"{self.kernels.num_kernels} kernels {shape}, union {self.kernels.union:.3f}, backend={self.backend}"

    def _call_for(self, x: Tensor) -> Call:
        """The call for inputs of this shape."""
        shape, padded = tuple(x.shape), self.attended(x)[0]
        known = self.choices.get(shape)
        if known is not None:
            chosen = next(each for each in self._candidates(padded, known.backend) if each.name == known.backend)
            return self._whole(chosen, shape)
        candidates, failures = self._available(padded)
        calls = {each.name: self._whole(each, shape) for each in candidates}
        if len(calls) == 1:
            (chosen_name,), seconds, reason = calls, {}, "as asked"
        else:
            seconds = timed(calls, x)
            chosen_name, reason = best(seconds, self.min_gain)
        self.choices[shape] = Choice(shape, chosen_name, seconds, "; ".join([*failures, reason]))
        return calls[chosen_name]

    def _whole(self, candidate: Candidate, shape: Sequence[int]) -> Call:
        """Router and candidate. The compiled kernel does also the router, if it sees what the router sees."""
        router = fused(self.router)
        if candidate.name == "native" and router is not None and not self.sides:
            run = native_run(self.kernels, self.geometry, shape[2:], router=router)
            unused = torch.empty(0)
            return lambda x: run(x, unused)
        return lambda x: candidate.run(*self.attended(x))

    def _available(self, x: Tensor) -> tuple[list[Candidate], list[str]]:
        """Candidates in order of preference, and why others are none."""
        if self.backend == "dense":
            return dense_runs(self.kernels, self.geometry), []
        failures = []
        for name in sparse_names(self.backend):
            try:
                candidates = self._candidates(x, name)
            except Unavailable as error:
                failures.append(f"{name}: {error}")
            else:
                dense = dense_runs(self.kernels, self.geometry) if self.backend == "auto" else []
                return candidates + dense, failures
        return dense_runs(self.kernels, self.geometry), failures

    def _candidates(self, x: Tensor, name: str) -> list[Candidate]:
        if name.startswith("dense"):
            return dense_runs(self.kernels, self.geometry)
        return [Candidate(name, SPARSE[name](self.kernels, self.geometry, x.shape[2:]))]

    def _check(self, x: Tensor) -> None:
        if x.dim() != self.dimensions + 2 or x.shape[1] != self.kernels.in_channels:
            raise InputError(
                f"expected {self.kernels.in_channels} channels on axis 1 of {self.dimensions + 2}; got shape {list(x.shape)}"
            )
        if x.dtype != torch.float32:
            raise TypeError(f"a compiled layer takes torch.float32; got {x.dtype}")
        if x.device.type != "cpu":
            raise RuntimeError(f"a compiled layer runs on the CPU; the input is on {x.device}")

    def _apply(self, fn: Any, recurse: bool = True) -> SparseConv:  # noqa: ARG002 -- torch's signature
        """Stays float32 on the CPU, whatever the model is moved to."""
        return self


class _NoBackward(torch.autograd.Function):
    """Lets an input that wants a gradient pass, and refuses the gradient."""

    @staticmethod
    def forward(_: Any, x: Tensor, layer: SparseConv) -> Tensor:
        return layer(x.detach())

    @staticmethod
    def backward(_: Any, *__: Tensor) -> Tensor:
        raise RuntimeError("a compiled model has no backward pass; train the model that it was made of")


def sparse_names(backend: str) -> Sequence[str]:
    """Sparse back-ends to try, in order, for what a user asked for."""
    mkl = "mkl" if torch.backends.mkl.is_available() else "torch"
    return ("native", mkl, "scipy") if backend == "auto" else (backend,)


def timed(calls: Mapping[str, Call], x: Tensor) -> dict[str, float]:
    """Least seconds of each call, taking turns."""
    seconds = dict.fromkeys(calls, float("inf"))
    started = time.perf_counter()
    for turn in range(-1, ROUNDS):
        for name, call in calls.items():
            begin = time.perf_counter()
            call(x)
            if turn >= 0:
                seconds[name] = min(seconds[name], time.perf_counter() - begin)
        if turn >= 0 and time.perf_counter() - started > BUDGET:
            break
    return seconds


def best(seconds: Mapping[str, float], min_gain: float) -> tuple[str, str]:
    """The fastest dense form, unless the fastest sparse back-end gains enough over it; and why."""
    fastest = sorted(seconds, key=seconds.__getitem__)
    sparse = next((name for name in fastest if not name.startswith("dense")), None)
    dense = next((name for name in fastest if name.startswith("dense")), None)
    if sparse is None or dense is None:
        return fastest[0], "the fastest"
    gain = seconds[dense] / seconds[sparse]
    text = f"{sparse} is {gain:.2f}x as fast as {dense}, which takes {seconds[dense] * 1e3:.3g} ms"
    return (sparse, text) if gain >= min_gain else (dense, f"{text}: below min_gain={min_gain:g}")
