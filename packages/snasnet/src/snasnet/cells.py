"""The cell of the search space: four nodes joined forward in a time step, or backward from one step to the next.

`A[i, j]` is the operation on the edge from node i to node j. Node 0 is the cell's input, node 3 its output. An edge with
i < j acts within a time step; one with i > j is feedback that arrives one step later.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int

from core_utils.errors import UserError

NODES = 4
INPUT, OUTPUT = 0, NODES - 1
ZERO, SKIP, CONV1, CONV3, POOL = range(5)
OPERATIONS = ("zeroize", "skip", "conv 1x1", "conv 3x3", "average pool 3x3")
"""What the numbers of a matrix stand for."""
CONVOLUTIONS = {CONV1: 1, CONV3: 3}
"""Sides of the kernels, pixels."""


class CellError(UserError):
    """A matrix that is no cell; the message names the row and column and the rule."""


@dataclass(frozen=True)
class Edge:
    """One operation between two nodes."""

    source: int
    target: int
    operation: int

    @property
    def backward(self) -> bool:
        """Whether it is feedback."""
        return self.source > self.target

    @property
    def name(self) -> str:
        """Of the edge within its cell, such as `0to3`."""
        return f"{self.source}to{self.target}"


@dataclass(frozen=True, init=False)
class Cell:
    """One point of the search space, as it was given; equal if all entries are.

    Args:
        matrix: integers, shape [4, 4] with zero diagonal, or the text form `0302 0030 3003 0000`.
        allow_bidirectional: accept a pair of nodes that is joined in both directions, which the paper never draws.

    Attributes:
        rows: the matrix.

    Raises:
        CellError: another shape, an unknown operation, an entry on the diagonal, a pair joined in both directions.

    Reference: arXiv 2201.10355, search space.
    """

    rows: tuple[tuple[int, ...], ...]

    def __init__(
        self, matrix: str | Sequence[Sequence[int]] | np.ndarray, *, allow_bidirectional: bool = False
    ) -> None:
        rows = _rows(matrix) if isinstance(matrix, str) else _integers(matrix)
        _check(rows, allow_bidirectional)
        object.__setattr__(self, "rows", rows)

    @classmethod
    def parse(cls, text: str, *, allow_bidirectional: bool = False) -> Cell:
        """The cell of a text form: four rows of four digits."""
        return cls(text, allow_bidirectional=allow_bidirectional)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cell:
        """The cell that `to_json` described."""
        if not isinstance(data, Mapping) or "matrix" not in data:
            raise CellError("a cell as JSON has the key `matrix`", "four rows of four integers")
        return cls(data["matrix"])

    def __str__(self) -> str:
        return " ".join("".join(map(str, row)) for row in self.rows)

    @property
    def matrix(self) -> Int[np.ndarray, "4 4"]:
        """A new array of the entries."""
        return np.array(self.rows, dtype=np.int64)

    @cached_property
    def id(self) -> str:
        """The same for all cells that make the same network: the digits of the pruned matrix."""
        return str(self.pruned()).replace(" ", "-")

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """All edges that do something, by target and then by source."""
        return tuple(
            Edge(source, target, self.rows[source][target])
            for target in range(NODES)
            for source in range(NODES)
            if self.rows[source][target] != ZERO
        )

    @cached_property
    def forward_edges(self) -> tuple[Edge, ...]:
        """Edges within a time step."""
        return tuple(edge for edge in self.edges if not edge.backward)

    @cached_property
    def backward_edges(self) -> tuple[Edge, ...]:
        """Edges that carry feedback."""
        return tuple(edge for edge in self.edges if edge.backward)

    @property
    def n_backward(self) -> int:
        """How many edges carry feedback."""
        return len(self.backward_edges)

    @property
    def n_backward_idle(self) -> int:
        """How many of them do so without a convolution: skips and pools."""
        return sum(edge.operation not in CONVOLUTIONS for edge in self.backward_edges)

    @property
    def n_convs(self) -> int:
        """How many edges have a convolution."""
        return sum(edge.operation in CONVOLUTIONS for edge in self.edges)

    def pruned(self) -> Cell:
        """The cell without the nodes that the input does not reach, or that do not reach the output."""
        return Cell(pruned_matrices(self.matrix[None])[0], allow_bidirectional=True)

    def is_valid(self) -> bool:
        """Whether the paper's sampling accepts it: a direct edge from input to output, no pair in both directions."""
        return self.rows[INPUT][OUTPUT] != ZERO and _twice(self.rows) is None

    def without_feedback(self) -> Cell:
        """The cell with forward edges only."""
        return Cell(np.triu(self.matrix))

    def to_dot(self) -> str:
        """The cell in Graphviz's language; feedback is dashed."""
        lines = ["digraph cell {", "  rankdir=LR;", '  0 [label="input"];', f'  {OUTPUT} [label="output"];']
        for edge in self.edges:
            style = ", style=dashed, constraint=false" if edge.backward else ""
            lines.append(f'  {edge.source} -> {edge.target} [label="{OPERATIONS[edge.operation]}"{style}];')
        return "\n".join([*lines, "}"]) + "\n"

    def to_json(self) -> dict[str, Any]:
        """The cell as JSON data."""
        return {"id": self.id, "matrix": [list(row) for row in self.rows]}


def pruned_matrices(matrices: Int[np.ndarray, "n 4 4"]) -> Int[np.ndarray, "n 4 4"]:
    """Clears rows and columns of nodes that lie on no path from input to output.

    Paths are those of R = A + A^2 + A^3 + A^4 of the matrix as it was given, feedback included; R is not computed anew
    between the nodes.

    Args:
        matrices: operations, 0 to 4.

    Returns:
        New matrices.

    Reference: released code of arXiv 2201.10355.
    """
    edges = (matrices != 0).astype(np.uint8)  # at most 85 walks join two nodes
    reach = power = edges
    for _ in range(NODES - 1):
        power = power @ edges
        reach = reach + power
    kept = np.ones((len(matrices), NODES), bool)
    kept[:, :OUTPUT] &= reach[:, :OUTPUT, OUTPUT] != 0
    kept[:, 1:] &= reach[:, INPUT, 1:] != 0
    return matrices * (kept[:, :, None] & kept[:, None, :])


def _rows(text: str) -> tuple[tuple[int, ...], ...]:
    words = re.split(r"[\s-]+", text.strip())
    if len(words) != NODES:
        raise CellError(f"a cell has {NODES} rows, {text!r} has {len(words)}", "for example 0302 0030 3003 0000")
    for number, word in enumerate(words):
        if len(word) != NODES or not (word.isascii() and word.isdecimal()):
            raise CellError(f"row {number} of a cell has {NODES} digits, got {word!r}", "each 0 to 4")
    return tuple(tuple(map(int, word)) for word in words)


def _integers(matrix: Sequence[Sequence[int]] | np.ndarray) -> tuple[tuple[int, ...], ...]:
    try:
        array = np.asarray(matrix)
    except ValueError:
        raise CellError("the rows of a cell must have one length, 4") from None
    if array.shape != (NODES, NODES):
        raise CellError(f"a cell is a matrix of shape [4, 4], got {list(array.shape)}")
    if array.dtype.kind not in "iu":
        raise CellError(f"a cell holds integers, got {array.dtype}")
    return tuple(tuple(row) for row in array.tolist())


def _check(rows: tuple[tuple[int, ...], ...], allow_bidirectional: bool) -> None:
    for i, j in _places():
        entry = rows[i][j]
        if not 0 <= entry < len(OPERATIONS):
            raise CellError(f"row {i}, column {j}: operation {entry} is unknown", "operations are 0 to 4")
        if i == j and entry != ZERO:
            raise CellError(f"row {i}, column {j}: the diagonal of a cell is 0, got {entry}")
    pair = _twice(rows)
    if pair is not None and not allow_bidirectional:
        raise CellError(
            f"row {pair[0]}, column {pair[1]}: nodes {pair[0]} and {pair[1]} are joined in both directions",
            "clear one of the two entries, or give allow_bidirectional=True",
        )


def _twice(rows: tuple[tuple[int, ...], ...]) -> tuple[int, int] | None:
    """The first pair that is joined in both directions."""
    return next(((i, j) for i, j in _places() if i < j and rows[i][j] and rows[j][i]), None)


def _places() -> Iterator[tuple[int, int]]:
    return ((i, j) for i in range(NODES) for j in range(NODES))
