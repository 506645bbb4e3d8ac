"""Cells: what is one, what pruning leaves of it, and its forms as text."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snasnet import Cell, SearchSpace
from snasnet.cells import pruned_matrices

MATRICES = st.lists(st.integers(0, 4), min_size=12, max_size=12).map(lambda ops: off_diagonal(ops))


def off_diagonal(ops):
    matrix = np.zeros((4, 4), np.int64)
    matrix[~np.eye(4, dtype=bool)] = ops
    return matrix


def test_text_matrix_and_json_are_one_cell():
    text = "0302 0030 3003 0000"
    cell = Cell(text)
    assert str(cell) == text
    assert cell.matrix.tolist() == [[0, 3, 0, 2], [0, 0, 3, 0], [3, 0, 0, 3], [0, 0, 0, 0]]
    assert Cell.parse(text) == Cell(cell.matrix) == Cell.from_json(json.loads(json.dumps(cell.to_json()))) == cell
    assert len({cell, Cell(cell.matrix)}) == 1


def test_the_released_cifar100_cell_has_five_edges_one_of_them_feedback():
    cell = Cell("0302 0030 3003 0000")
    assert [(edge.source, edge.target, edge.operation) for edge in cell.edges] == [
        (2, 0, 3),
        (0, 1, 3),
        (1, 2, 3),
        (0, 3, 2),
        (2, 3, 3),
    ]
    assert (cell.n_backward, cell.n_convs, cell.n_backward_idle) == (1, 5, 0)
    assert cell.without_feedback() == Cell("0302 0030 0003 0000")
    assert Cell("0302 0000 1000 0400").n_backward_idle == 2


def test_nodes_off_every_path_are_cleared():
    dead_end = Cell("0201 0020 0000 0000")  # 0 -> 1 -> 2, and 2 reaches nothing
    assert dead_end.pruned() == Cell("0001 0000 0000 0000")
    unreached = Cell("0001 0003 0000 0000")  # the input does not reach 1
    assert unreached.pruned() == Cell("0001 0000 0000 0000")
    assert dead_end.id == unreached.id == "0001-0000-0000-0000"
    only_by_feedback = Cell("0031 0003 0200 0000")  # 0 -> 2, back to 1, 1 -> 3
    assert only_by_feedback.pruned() == only_by_feedback


@given(MATRICES)
def test_what_remains_is_what_some_walk_of_at_most_four_edges_needs(matrix):
    walks = [np.linalg.matrix_power((matrix > 0).astype(int), length) for length in range(1, 5)]
    reached = sum(walks) > 0
    kept = [(node == 3 or reached[node, 3]) and (node == 0 or reached[0, node]) for node in range(4)]
    assert pruned_matrices(matrix[None])[0].tolist() == (matrix * np.outer(kept, kept)).tolist()


def test_pruning_changes_nothing_twice():
    drawn = SearchSpace("backward").draw(np.random.default_rng(0), 40_000)
    accepted = drawn[drawn[:, 0, 3] != 0]
    once = pruned_matrices(accepted)
    assert (pruned_matrices(once) == once).all()


@pytest.mark.parametrize(
    ("matrix", "complaint"),
    [
        ("0302 0030 3003", "has 4 rows"),
        ("0302 0030 3003 00", "row 3 of a cell has 4 digits, got '00'"),
        ("0302 0030 30x3 0000", "row 2 of a cell has 4 digits, got '30x3'"),
        ("0302 0050 3003 0000", "row 1, column 2: operation 5 is unknown"),
        ("0302 0130 3003 0000", "row 1, column 1: the diagonal of a cell is 0, got 1"),
        ("0302 1030 3003 0000", "row 0, column 1: nodes 0 and 1 are joined in both directions"),
        (np.zeros((3, 4), int), r"shape \[4, 4\], got \[3, 4\]"),
        (np.zeros((4, 4)), "holds integers, got float64"),
        ([[0], [0, 1]], "rows of a cell must have one length"),
    ],
)
def test_what_is_no_cell_is_refused_by_row_and_rule(matrix, complaint):
    with pytest.raises(ValueError, match=complaint):
        Cell(matrix)


def test_both_directions_are_accepted_when_asked_for_and_never_valid():
    cell = Cell("0102 1000 0000 0000", allow_bidirectional=True)
    assert cell.n_backward == 1
    assert not cell.is_valid()
    assert Cell("0102 0000 0000 0000").is_valid()
    assert not Cell("0100 0001 0000 0000").is_valid()  # no direct edge


def test_the_picture_in_dot_names_every_operation_and_dashes_feedback():
    dot = Cell("0302 0030 3003 0000").to_dot()
    assert dot.count("->") == 5
    assert '2 -> 0 [label="conv 3x3", style=dashed, constraint=false];' in dot
    assert '0 -> 3 [label="conv 1x1"];' in dot
