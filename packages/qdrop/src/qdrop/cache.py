"""Where the inputs and outputs of the unit at hand are kept: by sample, on the device, in memory, or on disk."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils import _pytree as pytree

from qdrop.config import Placement
from qdrop.errors import CalibrationError


class Kind(NamedTuple):
    """Where a leaf counts samples: on which axis (None: nowhere), and how many rows belong to one."""

    axis: int | None
    group: int = 1


class Store:
    """Hands out memory for cached tensors: the fastest place that has room, or the one that was asked for.

    Args:
        placement: `device`, `cpu`, `disk`, or `auto`, which tries them in this order.
        budget: bytes that `auto` may take in each place; None: half of what is free there when a tensor is made.
        folder: where files go that hold tensors on disk; they vanish with the process.
    """

    def __init__(self, placement: Placement, budget: int | None, device: torch.device, folder: Path | None) -> None:
        self.placement, self.budget, self.device, self.folder = placement, budget, device, folder

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor."""
        place = self.placement if self.placement != "auto" else self._roomy(math.prod(shape) * dtype.itemsize)
        if place == "device":
            return torch.empty(shape, dtype=dtype, device=self.device)
        return torch.empty(shape, dtype=dtype) if place == "cpu" else self._on_disk(shape, dtype)

    def _roomy(self, size: int) -> Placement:
        places = [("cpu", _free_memory)]
        if self.device.type == "cuda":
            places.insert(0, ("device", lambda: torch.cuda.mem_get_info(self.device)[0]))
        for place, free in places:
            if size <= (free() // 2 if self.budget is None else self.budget):
                return place  # type: ignore[return-value]  # names of places
        return "disk"

    def _on_disk(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory of a file that has no name any more, so that nothing is left behind."""
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix="qdrop-cache-") as file:
            file.truncate(max(1, math.prod(shape)) * dtype.itemsize)
            return torch.from_file(file.name, shared=True, size=math.prod(shape), dtype=dtype).view(shape)


class Samples:
    """One value of the forward pass, a tensor or a tree of tensors and constants, for all calibration samples.

    Leaves whose first axis counts samples are kept by sample; so are those whose first axis is a multiple of them (the
    windows of an image) and those with samples on the second axis ([T, B, C]). Other leaves are constants. Where samples
    differ in shape, whole batches are kept instead, and what is drawn is a batch.

    Args:
        sizes: samples of each batch.
        store: where to keep them.
    """

    def __init__(self, sizes: list[int], store: Store) -> None:
        self.sizes, self.store = sizes, store
        self.kinds: list[Kind] = []  # of the leaves
        self.leaves: list[Any] = []
        self.tensors: list[bool] = []
        self.structure: Any = None
        self.batches: list[Any] = []
        self.filled = 0

    @classmethod
    def of(cls, value: Any) -> Any:
        """Tensors [N, ...] as samples; samples as they are."""
        if not isinstance(value, Tensor):
            return value
        samples = cls([len(value)], Store("cpu", None, value.device, None))
        samples.add(value, share=value)
        return samples

    def __len__(self) -> int:
        return sum(self.sizes)

    def __getitem__(self, index: int) -> Any:
        """One sample; a tensor without the batch axis where the value is one tensor."""
        taken = self.take(torch.tensor([range(len(self))[index]]))
        alone = _alone(taken)
        return taken if alone is None or self.ragged else alone[0]

    @property
    def ragged(self) -> bool:
        """Whether whole batches are kept because samples differ in shape."""
        return bool(self.batches)

    def by_sample(self, leaf: int) -> bool:
        """Whether the `leaf`-th leaf of the value is kept by sample, and is no constant."""
        return self.ragged or self.kinds[leaf].axis is not None

    def add(self, value: Any, share: Tensor | None = None) -> None:
        """Copies the next batch.

        Args:
            value: what the forward pass gave.
            share: a tensor [N, ...] that already holds all batches of the value's only tensor.
        """
        number, size = self._next(), self.sizes[self._next()]
        leaves, structure = pytree.tree_flatten(value)
        if number == 0:
            self.structure = structure
            self.tensors = [isinstance(leaf, Tensor) for leaf in leaves]
            self.kinds = [_kind(leaf, size) for leaf in leaves]
            self.leaves = [
                share if share is not None and kind.axis == 0 else self._room(leaf, kind)
                for leaf, kind in zip(leaves, self.kinds, strict=True)
            ]
        elif structure != self.structure or [isinstance(leaf, Tensor) for leaf in leaves] != self.tensors:
            raise CalibrationError(f"calibration batch {number} makes the model pass values of another structure")
        if not self.ragged and not self._fits(leaves, size):
            self._go_ragged(number)
        if self.ragged:
            self.batches.append(pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value))
        elif share is None:
            for kept, leaf, kind in zip(self.leaves, leaves, self.kinds, strict=True):
                if kind.axis is not None:
                    kept[self.filled : self.filled + size] = _by_sample(leaf, kind)
        self.filled += size

    def take(self, index: Int64[Tensor, " batch"]) -> Any:
        """The value for these samples; for the batch that holds the first of them where samples are ragged."""
        if self.ragged:
            return self.batches[self.batch_of(int(index[0]))]
        leaves = [
            _joined(kept.index_select(0, index.to(kept.device)).to(self.store.device), kind)
            if kind.axis is not None
            else kept
            for kept, kind in zip(self.leaves, self.kinds, strict=True)
        ]
        return pytree.tree_unflatten(leaves, self.structure)

    def in_batches(self) -> Iterator[Any]:
        """The value of every calibration batch, as it was added; copies."""
        start = 0
        for number, size in enumerate(self.sizes):
            if self.ragged:
                copy = self.batches[number]
                yield pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, copy)
            else:
                leaves = [
                    _joined(kept[start : start + size].to(self.store.device, copy=True), kind)
                    if kind.axis is not None
                    else kept
                    for kept, kind in zip(self.leaves, self.kinds, strict=True)
                ]
                yield pytree.tree_unflatten(leaves, self.structure)
            start += size

    def batch_of(self, sample: int) -> int:
        """The number of the batch that holds a sample."""
        for number, size in enumerate(self.sizes):
            if sample < size:
                return number
            sample -= size
        raise IndexError(sample)

    def batch(self, number: int) -> Any:
        """The value of one calibration batch, as it was added; a copy."""
        start = sum(self.sizes[:number])
        if self.ragged:
            return self.take(torch.tensor([start]))
        return self.take(torch.arange(start, start + self.sizes[number]))

    def finite(self) -> bool:
        """Whether the first floating-point tensor holds neither NaN nor infinity; others may be masks that are added."""
        trees = self.batches if self.ragged else [self.leaves]
        for tree in trees:
            first = next((leaf for leaf in pytree.tree_leaves(tree) if _is_float(leaf)), None)
            if first is not None and not torch.isfinite(first).all():
                return False
        return True

    def equals(self, other: Samples) -> bool:
        """Whether both hold the same values."""
        if self.ragged or other.ragged:
            return False
        pairs = zip(self.leaves, other.leaves, strict=True)
        return all(a is b or (isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)) for a, b in pairs)

    def _next(self) -> int:
        total = 0
        for number, size in enumerate(self.sizes):
            if total == self.filled:
                return number
            total += size
        raise IndexError("all batches were added")

    def _room(self, leaf: Any, kind: Kind) -> Any:
        if kind.axis is None:
            return leaf.clone() if isinstance(leaf, Tensor) else leaf
        return self.store.empty((len(self), *_by_sample(leaf, kind).shape[1:]), leaf.dtype)

    def _fits(self, leaves: list[Any], size: int) -> bool:
        for kept, leaf, kind in zip(self.leaves, leaves, self.kinds, strict=True):
            if kind.axis is not None:
                if leaf.shape[kind.axis] != size * kind.group or _by_sample(leaf, kind).shape[1:] != kept.shape[1:]:
                    return False
            elif isinstance(leaf, Tensor) and leaf.shape != kept.shape:
                return False
        return True

    def _go_ragged(self, number: int) -> None:
        whole, self.sizes = self.sizes, self.sizes[:number]
        batches = list(self.in_batches())
        self.sizes, self.batches, self.leaves = whole, batches, []


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _kind(leaf: Any, size: int) -> Kind:
    if not isinstance(leaf, Tensor) or leaf.dim() == 0:
        return Kind(None)
    if leaf.shape[0] == size:
        return Kind(0)
    if leaf.dim() > 1 and leaf.shape[1] == size:
        return Kind(1)
    if size > 1 and leaf.shape[0] and leaf.shape[0] % size == 0:
        return Kind(0, leaf.shape[0] // size)
    return Kind(None)


def _by_sample(leaf: Tensor, kind: Kind) -> Tensor:
    """[N, ...] of a leaf with samples elsewhere or several rows a sample."""
    return leaf.unflatten(0, (-1, kind.group)) if kind.group > 1 else leaf.movedim(kind.axis, 0)


def _joined(leaf: Tensor, kind: Kind) -> Tensor:
    """The reverse of `_by_sample`."""
    return leaf.flatten(0, 1) if kind.group > 1 else leaf.movedim(0, kind.axis)


def _alone(value: Any) -> Tensor | None:
    leaves = [leaf for leaf in pytree.tree_leaves(value) if leaf is not None]
    return leaves[0] if len(leaves) == 1 and isinstance(leaves[0], Tensor) else None


def _free_memory() -> int:
    """Bytes that can be had without swapping; where the system does not say, no limit is known."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 2**63
