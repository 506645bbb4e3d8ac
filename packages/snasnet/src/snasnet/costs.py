"""What a cell costs before anything runs: parameters and synaptic operations, by counting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from core_utils.errors import UserError
from snasnet.cells import CONVOLUTIONS, Cell
from snasnet.specs import DatasetSpec


@dataclass(frozen=True)
class Constraints:
    """What a searched cell must keep; None is no limit.

    Attributes:
        max_params: parameters of the whole network.
        max_sops: synaptic operations of an inference if every neuron fires at every step: an upper bound of what
            `profile` counts, known before anything runs.
        min_convs: convolutions in the cell.

    Raises:
        UserError: a negative limit.
    """

    max_params: int | None = None
    max_sops: float | int | None = None
    min_convs: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_params", "max_sops", "min_convs"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise UserError(f"{name} must not be negative, got {value}")

    def violation(self, cell: Cell, spec: DatasetSpec, **options: Any) -> tuple[float, str] | None:
        """How far a cell breaks the worst limit, above 0, and what it breaks; None if it keeps all.

        Args:
            cell: pruned.
            spec: of the data.
            options: of `SNASNet`.
        """
        broken = []
        if self.max_params is not None and (count := parameters(cell, spec, **options)) > self.max_params:
            broken.append((count / max(1, self.max_params) - 1, f"{cell} has {count} parameters"))
        if self.max_sops is not None and (count := most_sops(cell, spec, **options)) > self.max_sops:
            broken.append((count / max(1, self.max_sops) - 1, f"{cell} has up to {count} synaptic operations"))
        if self.min_convs is not None and cell.n_convs < self.min_convs:
            broken.append((float(self.min_convs - cell.n_convs), f"{cell} has {cell.n_convs} convolutions"))
        return max(broken, default=None)


def parameters(cell: Cell, spec: DatasetSpec, **options: Any) -> int:
    """How many numbers the network of a cell learns.

    Args:
        cell: pruned.
        spec: of the data.
        options: of `SNASNet`.
    """
    sizes = _Sizes(spec, **options)
    width, outputs = sizes.width, sizes.outputs
    count = spec.in_channels * width * 9 + 2 * width  # stem
    count += 2 * width + 2 * width * width * 9 + 4 * width + 4 * width  # reduction and the normalisation after cell 2
    for channels in (width, 2 * width):
        count += sum(side * side * channels**2 + 2 * channels for side in _kernels(cell))
    if sizes.head == "gap":
        return count + 2 * width * outputs + outputs
    return count + sizes.features * sizes.hidden + sizes.hidden * outputs + outputs


def most_sops(cell: Cell, spec: DatasetSpec, **options: Any) -> int:
    """Synaptic operations of an inference if every neuron fires at every step; the stem multiplies and is left out."""
    sizes = _Sizes(spec, **options)
    width, (height, breadth) = sizes.width, sizes.image
    count = 2 * width * width * _reach(3, height) * _reach(3, breadth)
    for channels, rows, columns in ((width, height, breadth), (2 * width, height // 2, breadth // 2)):
        count += sum(channels**2 * _reach(side, rows) * _reach(side, columns) for side in _kernels(cell))
    if sizes.head == "gap":
        count += 2 * width * (height // 2) * (breadth // 2) * sizes.outputs
    else:
        pooled = sizes.features * sizes.p2**2
        count += pooled * sizes.hidden + sizes.hidden * sizes.outputs
    return sizes.T * count


class _Sizes:
    """The options of `SNASNet` with its defaults."""

    def __init__(
        self,
        spec: DatasetSpec,
        *,
        width: int | None = None,
        T: int = 5,
        p2: int = 2,
        hidden: int = 1024,
        group: int | None = None,
        head: str = "paper",
        stem_stride: int = 1,
        **_: Any,
    ) -> None:
        self.width = 128 if width is None else width
        self.T, self.p2, self.hidden, self.head = T, p2, hidden, head
        self.outputs = spec.num_classes * (group or (10 if spec.num_classes <= 10 else 5))
        self.image = (spec.shape[0] // stem_stride, spec.shape[1] // stem_stride)
        self.features = 2 * self.width * (self.image[0] // 2 // p2) * (self.image[1] // 2 // p2)


def _kernels(cell: Cell) -> list[int]:
    return [CONVOLUTIONS[edge.operation] for edge in cell.edges if edge.operation in CONVOLUTIONS]


def _reach(side: int, pixels: int) -> int:
    """Synapses along one axis of a convolution that keeps the size: at the borders a pixel reaches fewer."""
    return side * pixels - 2 * sum(range(1, side // 2 + 1))
