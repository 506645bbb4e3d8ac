"""What the masks of a model keep, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerSparsity:
    """One layer's masks.

    Attributes:
        name: of the layer.
        weights: K |W|.
        nonzero: weights kept.
        union: fraction of positions that some kernel keeps.
    """

    name: str
    weights: int
    nonzero: int
    union: float

    @property
    def density(self) -> float:
        """Fraction kept."""
        return self.nonzero / self.weights


@dataclass(frozen=True)
class SparsityReport:
    """All layers with learned masks.

    Attributes:
        target: sparsity asked for.
        layers: in the model's order.
    """

    target: float
    layers: tuple[LayerSparsity, ...]

    @property
    def density(self) -> float:
        """Fraction of all their weights that is kept."""
        return sum(layer.nonzero for layer in self.layers) / sum(layer.weights for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros, 1 - density."""
        return 1 - self.density

    def to_markdown(self) -> str:
        """A table of sparsity, density and union density."""
        rows = [
            f"| {layer.name} | {layer.weights} | {layer.nonzero} | {1 - layer.density:.4f} | {layer.density:.4f} | {layer.union:.4f} |"
            for layer in self.layers
        ]
        head = "| layer | weights | nonzero | sparsity | density | union density |\n|---|---|---|---|---|---|\n"
        return head + "\n".join(rows)
