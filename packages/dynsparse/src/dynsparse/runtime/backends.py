"""Ways to run a packed layer: each is made for one layer and input size, and maps (x, pi) to y.

- native: the compiled offset-CSR kernel;
- mkl: torch's CSR matrices, which MKL multiplies; "torch" where torch has no MKL;
- scipy: SciPy's;
- dense: the best of the exact dense forms.

The CSR back-ends see a kernel of several positions as a matrix that multiplies unfolded inputs.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from math import inf, prod
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from dynsparse.aggregation import FORMS, takes_bmm
from dynsparse.geometry import Geometry
from dynsparse.runtime import native
from dynsparse.runtime.native import Run
from dynsparse.runtime.pattern import SparseKernels
from dynsparse.runtime.plans import InstructionSet, make_plan, out_extents
from dynsparse.runtime.routing import FusedRouter


class Unavailable(Exception):  # noqa: N818 -- an outcome, not a mistake
    """A back-end cannot run here, or not this layer; the message says why."""


class Candidate(NamedTuple):
    """A way to run a layer."""

    name: str
    run: Run


def native_run(
    kernels: SparseKernels,
    geometry: Geometry,
    size: Sequence[int],
    isa: InstructionSet | None = None,
    router: FusedRouter | None = None,
) -> Run:
    """By the compiled kernel, with the best instruction set by default; with a router, attention is not looked at.

    Raises:
        Unavailable: there is no compiled kernel, or the input is too large for it.
    """
    sets = native.instruction_sets()
    if not sets:
        raise Unavailable("the compiled kernel is not installed")
    plan = make_plan(kernels, geometry, size, isa or sets[-1], router)
    if plan is None:
        raise Unavailable("the input is too large for 32-bit offsets")
    return native.prepared(kernels, plan, None if router is None else router.weights)


def torch_run(kernels: SparseKernels, geometry: Geometry, size: Sequence[int]) -> Run:
    """By torch's CSR matrices.

    Raises:
        Unavailable: the convolution has three axes.
    """
    starts, shape = kernels.row_starts.int(), (kernels.shape[0], kernels.in_channels * prod(kernels.shape[2:]))
    _warn_of_beta_once()

    def multiply(values: Tensor, matrix: Tensor) -> Tensor:
        return torch.sparse_csr_tensor(starts, kernels.columns, values, shape, check_invariants=False) @ matrix

    return _by_matrices(kernels, geometry, size, multiply)


def scipy_run(kernels: SparseKernels, geometry: Geometry, size: Sequence[int]) -> Run:
    """By SciPy's CSR matrices.

    Raises:
        Unavailable: SciPy is not installed, or the convolution has three axes.
    """
    try:
        from scipy.sparse import csr_array
    except ImportError as error:
        raise Unavailable("SciPy is not installed") from error
    starts, columns = kernels.row_starts.int().numpy(), kernels.columns.numpy()
    shape = (kernels.shape[0], kernels.in_channels * prod(kernels.shape[2:]))

    def multiply(values: Tensor, matrix: Tensor) -> Tensor:
        return torch.from_numpy(csr_array((values.numpy(), columns, starts), shape) @ matrix.numpy())

    return _by_matrices(kernels, geometry, size, multiply)


def dense_runs(kernels: SparseKernels, geometry: Geometry) -> list[Candidate]:
    """By each exact dense form that takes the layer; they share one dense copy of the kernels."""
    dense = kernels.dense()
    bias = kernels.bias[1:] if kernels.bias[1:].any() else None
    shift = kernels.bias[0].reshape(-1, *[1] * (len(kernels.shape) - 2)) if kernels.bias[0].any() else None

    def run(form: str, x: Tensor, pi: Tensor) -> Tensor:
        y = FORMS[form](x, dense, bias, pi, geometry)
        return limited(y if shift is None else y.add_(shift), kernels)

    forms = ["grouped"]
    if takes_bmm(dense, geometry):
        forms.append("bmm")
    if kernels.num_kernels > 1:
        forms.append("mix_outputs")
    return [Candidate(f"dense {form}", functools.partial(run, form)) for form in forms]


def limited(y: Float[Tensor, "b c_o *out"], kernels: SparseKernels) -> Float[Tensor, "b c_o *out"]:
    """Y within the layer's limits, in place."""
    if kernels.low == -inf and kernels.high == inf:
        return y
    return y.clamp_(kernels.low, kernels.high)


def _by_matrices(
    kernels: SparseKernels, geometry: Geometry, size: Sequence[int], multiply: Callable[[Tensor, Tensor], Tensor]
) -> Run:
    """Sample by sample: mixes its values, unfolds its input, multiplies."""
    if len(size) > 2:
        raise Unavailable("CSR matrices take convolutions of one or two axes")
    kernel = kernels.shape[2:]
    out = out_extents(size, kernel, geometry)

    def run(x: Tensor, pi: Tensor) -> Tensor:
        y = x.new_empty(len(x), kernels.shape[0], prod(out))
        bias = kernels.mixed_bias(pi)
        for b in range(len(x)):
            product = multiply(kernels.mixed(pi[b]), _unfolded(x[b : b + 1], kernel, geometry))
            torch.add(product, bias[b, :, None], out=y[b])
        return limited(y, kernels).reshape(len(x), kernels.shape[0], *out)

    return run


def _unfolded(x: Float[Tensor, "1 c_i *space"], kernel: Sequence[int], geometry: Geometry) -> Float[Tensor, "rows out"]:
    """The input of every output in a column; a view where each output reads one position."""
    if prod(kernel) == 1 and not any(geometry.padding):
        strides = (slice(None), slice(None), *(slice(None, None, stride) for stride in geometry.stride))
        return x[strides].reshape(x.shape[1], -1)
    if x.dim() == 3:
        x, kernel = x[:, :, None], (1, *kernel)
        stride, padding, dilation = ((first, *rest) for first, rest in zip((1, 0, 1), geometry[:3], strict=True))
    else:
        stride, padding, dilation = geometry[:3]
    return functional.unfold(x, tuple(kernel), dilation, padding, stride)[0]


@functools.cache
def _warn_of_beta_once() -> None:
    """Lets torch say once that its CSR tensors are in beta, unheard: the layers' results are tested."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state", UserWarning)
        torch.sparse_csr_tensor(
            torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64), torch.tensor([]), (1, 1), check_invariants=False
        )
