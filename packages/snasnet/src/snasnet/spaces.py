"""All cells there are: drawn by lot, listed, changed by one edge."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from core_utils.errors import UserError
from snasnet.cells import INPUT, NODES, OPERATIONS, OUTPUT, Cell, pruned_matrices

KINDS = ("forward", "backward")
PAIRS = tuple(itertools.combinations(range(NODES), 2))
_PLACES = len(OPERATIONS) ** np.arange(NODES * NODES - 1, -1, -1)
"""What the entries of a matrix count as digits of one number."""
MOST_REJECTED = 1000
"""Draws in a row after which a space counts as empty."""


@dataclass(frozen=True)
class SearchSpace:
    """The paper's cells, or a part of them. What it gives is always pruned.

    Attributes:
        kind: "forward", or "backward" where a pair of nodes may be joined by feedback instead.
        ops: operations that an edge may have, as numbers.
        require_direct: only cells with a direct edge from input to output, as the paper has it.
        max_backward: most edges with feedback; None sets no limit.

    Raises:
        UserError: an unknown kind or operation, or a negative limit.

    Reference: arXiv 2201.10355 and its released code.
    """

    kind: str = "backward"
    ops: tuple[int, ...] = (0, 1, 2, 3, 4)
    require_direct: bool = True
    max_backward: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        unknown = [operation for operation in self.ops if operation not in range(len(OPERATIONS))]
        if unknown or not self.ops or len(set(self.ops)) != len(self.ops):
            raise UserError(f"ops must be some of 0 to {len(OPERATIONS) - 1}, each once, got {self.ops}")
        if self.max_backward is not None and self.max_backward < 0:
            raise UserError(f"max_backward must not be negative, got {self.max_backward}")

    def sample(self, rng: np.random.Generator) -> Cell:
        """A cell by lot, in the paper's way: draw all edges, accept or draw again, prune.

        Cells that several matrices are pruned to come more often.

        Raises:
            UserError: no draw of 1000 was accepted.
        """
        for _ in range(MOST_REJECTED):
            drawn = self.draw(rng)
            pruned = pruned_matrices(drawn)
            if self._accepts(drawn, pruned)[0]:
                return _cell(pruned[0])
        raise UserError(f"none of {MOST_REJECTED} draws lies in {self}")

    def draw(self, rng: np.random.Generator, n: int = 1) -> Int[np.ndarray, "n 4 4"]:
        """Matrices before they are accepted and pruned: every edge uniform over `ops`, a fair coin for its direction."""
        ops, shape = np.array(self.ops, np.int64), (n, NODES, NODES)
        upper = np.triu(ops[rng.integers(len(ops), size=shape)], 1)
        if self.kind == "forward":
            return upper
        lower = np.tril(ops[rng.integers(len(ops), size=shape)], -1)
        forward = np.triu(rng.integers(2, size=shape), 1)
        return upper * forward + lower * np.tril(1 - forward.transpose(0, 2, 1), -1)

    def enumerate(self) -> Iterator[Cell]:
        """Every cell once, in the order of its digits."""
        return map(_cell, self.matrices())

    def matrices(self) -> Int[np.ndarray, "n 4 4"]:
        """Those of all cells, in the order of their digits; not to be changed."""
        return _all_matrices(self)

    def size(self) -> int:
        """How many different cells there are."""
        return len(self.matrices())

    def neighbours(self, cell: Cell) -> list[Cell]:
        """The cells that differ from `cell` in one pair of nodes before pruning, in the order of their digits."""
        here = cell.pruned()
        changed = []
        for i, j in PAIRS:
            for first, second in self._entries():
                matrix = here.matrix
                matrix[i, j], matrix[j, i] = first, second
                changed.append(matrix)
        found = self._kept(np.array(changed))
        return [other for other in map(_cell, found) if other != here]

    def mutate(self, cell: Cell, rng: np.random.Generator) -> Cell:
        """One of the neighbours by lot.

        Raises:
            UserError: the cell has no neighbour in this space.
        """
        neighbours = self.neighbours(cell)
        if not neighbours:
            raise UserError(f"no cell of {self} differs from {cell} in one edge")
        return neighbours[int(rng.integers(len(neighbours)))]

    def __contains__(self, cell: object) -> bool:
        """Whether the space holds a cell."""
        if not isinstance(cell, Cell) or cell != cell.pruned():
            return False
        matrix = cell.matrix[None]
        operations = set(np.unique(matrix[matrix > 0]).tolist())
        return bool(operations <= set(self.ops) and self._accepts(matrix, matrix)[0]) and not (
            self.kind == "forward" and cell.n_backward
        )

    def _entries(self) -> list[tuple[int, int]]:
        """What a pair of nodes may be joined by: (forward, backward)."""
        forward = [(operation, 0) for operation in self.ops]
        backward = [(0, operation) for operation in self.ops] if self.kind == "backward" else []
        return list(dict.fromkeys(forward + backward))

    def _accepts(self, drawn: Int[np.ndarray, "n 4 4"], pruned: Int[np.ndarray, "n 4 4"]) -> np.ndarray:
        accepted: np.ndarray = drawn[:, INPUT, OUTPUT] != 0
        if not self.require_direct:
            accepted = np.any(pruned, axis=(1, 2))
        if self.max_backward is not None:
            accepted = accepted & (np.tril(pruned).astype(bool).sum((1, 2)) <= self.max_backward)
        return accepted

    def _kept(self, matrices: Int[np.ndarray, "n 4 4"]) -> Int[np.ndarray, "m 4 4"]:
        """The accepted ones, pruned, each once, in the order of their digits."""
        pruned = pruned_matrices(matrices)
        pruned = pruned[self._accepts(matrices, pruned)]
        _, first = np.unique(pruned.reshape(-1, NODES * NODES) @ _PLACES, return_index=True)
        return pruned[first]


@functools.lru_cache(maxsize=8)
def _all_matrices(space: SearchSpace) -> Int[np.ndarray, "n 4 4"]:
    entries = np.array(space._entries(), np.int8)
    choices = np.indices((len(entries),) * len(PAIRS), np.int8).reshape(len(PAIRS), -1)
    matrices = np.zeros((choices.shape[1], NODES, NODES), np.int64)
    for (i, j), choice in zip(PAIRS, choices, strict=True):
        matrices[:, i, j], matrices[:, j, i] = entries[choice].T
    if space.require_direct:
        matrices = matrices[matrices[:, INPUT, OUTPUT] != 0]
    kept = space._kept(matrices)
    kept.flags.writeable = False
    return kept


def _cell(matrix: np.ndarray) -> Cell:
    return Cell(matrix)
