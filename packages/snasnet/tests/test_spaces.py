"""The search space against the counts of the specification and against its own rules."""

import itertools

import numpy as np
import pytest
from scipy import stats

from snasnet import Cell, SearchSpace
from snasnet.cells import pruned_matrices


def test_there_are_as_many_cells_as_the_paper_s_rules_allow():
    assert SearchSpace("forward").size() == 7_556  # figures: spec section 2.4
    assert SearchSpace("backward").size() == 104_708
    assert len(np.unique(SearchSpace("backward").matrices() > 0, axis=0)) == 59


def test_listed_cells_are_different_accepted_and_pruned():
    space = SearchSpace("forward")
    cells = list(itertools.islice(space.enumerate(), 0, None, 10))
    assert [cell.rows for cell in cells] == [tuple(map(tuple, matrix)) for matrix in space.matrices()[::10].tolist()]
    assert len(np.unique(space.matrices(), axis=0)) == space.size()
    assert all(cell.is_valid() and cell.n_backward == 0 and cell == cell.pruned() for cell in cells)


@pytest.mark.parametrize(("kind", "distinct", "rate"), [("forward", 2_550, 0.8), ("backward", 2_010, 0.4)])
def test_five_thousand_draws_hold_half_as_many_cells(kind, distinct, rate):
    rng = np.random.default_rng(1)
    space = SearchSpace(kind)
    raw = space.draw(rng, 5000)
    accepted = (raw[:, 0, 3] != 0).mean()
    assert accepted == pytest.approx(rate, abs=3 * np.sqrt(rate * (1 - rate) / 5000))
    raw = space.draw(rng, 20_000)
    drawn = pruned_matrices(raw[raw[:, 0, 3] != 0])[:5000]
    assert len(drawn) == 5000
    assert len(np.unique(drawn, axis=0)) == pytest.approx(distinct, rel=0.05)
    if kind == "backward":
        # The specification measured 46 % with feedback and 24 % without a convolution.
        assert np.tril(drawn).any((1, 2)).mean() == pytest.approx(0.46, abs=0.03)
        assert (~np.isin(drawn, (2, 3)).any((1, 2))).mean() == pytest.approx(0.24, abs=0.03)


@pytest.mark.parametrize("kind", ["forward", "backward"])
def test_a_sample_is_the_first_accepted_draw_pruned(kind):
    space, rng, same = SearchSpace(kind), np.random.default_rng(5), np.random.default_rng(5)
    for _ in range(100):
        cell = space.sample(rng)
        raw = space.draw(same)
        while not raw[0, 0, 3]:
            raw = space.draw(same)
        assert cell == Cell(pruned_matrices(raw)[0])
        assert cell.is_valid()


def test_edges_are_drawn_uniformly_and_directions_by_a_fair_coin():
    rng = np.random.default_rng(2)
    raw = SearchSpace("backward").draw(rng, 4000)
    assert not (np.triu(raw.max(0), 1) == 0)[np.triu_indices(4, 1)].any()
    assert not ((raw > 0) & (raw.transpose(0, 2, 1) > 0)).any()
    expected = np.array([0.2] + [0.1] * 8) * len(raw)  # none, four forward, four backward
    for i, j in zip(*np.triu_indices(4, 1), strict=True):
        code = np.where(raw[:, i, j] > 0, raw[:, i, j], 0) + np.where(raw[:, j, i] > 0, raw[:, j, i] + 4, 0)
        assert stats.chisquare(np.bincount(code, minlength=9), expected).pvalue > 1e-4


def test_the_same_seed_draws_the_same_cells():
    draws = [[SearchSpace().sample(np.random.default_rng([7, i])) for i in range(20)] for _ in range(2)]
    assert draws[0] == draws[1]


def test_neighbours_differ_in_one_pair_before_pruning_and_are_mutual():
    space = SearchSpace("forward")
    cell = Cell("0302 0030 0003 0000")
    neighbours = space.neighbours(cell)
    assert cell not in neighbours
    assert len(set(neighbours)) == len(neighbours)
    full = [other for other in neighbours if (other.matrix != cell.matrix).sum() == 1]
    # 5 edges x 4 other operations, minus a removal of the direct edge, plus 1 -> 3 and 0 -> 2; a removed 0 -> 1, 1 -> 2
    # or 2 -> 3 prunes more than itself.
    assert len(full) == 3 * 3 + 3 + 4 + 4
    assert all(cell in space.neighbours(other) for other in full)
    assert Cell("0002 0000 0000 0000") in neighbours


def test_mutation_stays_in_the_space_and_moves():
    space, rng = SearchSpace("backward", max_backward=1), np.random.default_rng(0)
    cell = space.sample(rng)
    for _ in range(50):
        changed = space.mutate(cell, rng)
        assert changed != cell
        assert changed in space
        assert changed.n_backward <= 1
        cell = changed


def test_parts_of_the_space_keep_their_rules():
    assert SearchSpace("backward", max_backward=0).size() == 7_556
    skips = list(SearchSpace("forward", ops=(0, 1)).enumerate())
    assert {entry for cell in skips for row in cell.rows for entry in row} == {0, 1}
    loose = SearchSpace("forward", require_direct=False)
    assert loose.size() > 7_556
    assert Cell("0100 0001 0000 0000") in loose
    assert Cell("0100 0001 0000 0000") not in SearchSpace("forward")
    assert Cell("0302 0030 3003 0000") not in SearchSpace("forward")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ({"kind": "sideways"}, "kind must be one of forward, backward"),
        ({"ops": (0, 7)}, "ops must be some of 0 to 4"),
        ({"ops": ()}, "ops must be some of 0 to 4"),
        ({"max_backward": -1}, "max_backward must not be negative"),
    ],
)
def test_a_space_that_cannot_be_is_refused(words, complaint):
    with pytest.raises(ValueError, match=complaint):
        SearchSpace(**words)


def test_an_empty_space_is_named():
    with pytest.raises(ValueError, match="none of 1000 draws"):
        SearchSpace("forward", ops=(0,)).sample(np.random.default_rng(0))
    with pytest.raises(ValueError, match="no cell of"):
        SearchSpace("forward", ops=(1,), require_direct=True).mutate(
            Cell("0111 0011 0001 0000"), np.random.default_rng(0)
        )
