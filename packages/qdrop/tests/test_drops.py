"""Which elements are quantised."""

import pytest
import torch

from qdrop.drops import Drops
from qdrop.errors import ReconstructionError
from qdrop.ranks import Ranks


def drops(keep=0.5, seed=0, stream=None):
    return Drops(keep, torch.Generator().manual_seed(seed), stream)


def test_all_elements_are_quantised_without_a_draw_when_none_drops():
    ours = drops(1.0)
    before = ours.generator.get_state()
    assert ours(torch.zeros(3, 4)) is None
    assert torch.equal(ours.generator.get_state(), before)


def test_each_mask_is_new_and_half_of_it_true():
    ours = drops()
    first, second = ours(torch.zeros(40, 1000)), ours(torch.zeros(40, 1000))
    assert not torch.equal(first, second)
    assert abs(first.float().mean() - 0.5) < 0.01  # 4 standard deviations of 40,000 coins


def test_given_masks_come_in_order_and_have_to_fit():
    ours = drops(stream=iter([torch.tensor([True, False]), torch.ones(3, dtype=torch.bool)]))
    assert ours(torch.zeros(2)).tolist() == [True, False]
    with pytest.raises(ReconstructionError, match=r"gave \(3,\) where a mask of \(2,\)"):
        ours(torch.zeros(2))
    with pytest.raises(ReconstructionError, match="ended"):
        ours(torch.zeros(2))


def test_ranks_draw_the_rows_that_one_process_would():
    index = torch.tensor([5, 0, 9, 3, 7, 2])
    alone = drops(seed=3)
    alone.take(None, 6)
    whole = alone(torch.zeros(12, 8))  # two windows a sample
    parts = []
    for rank in range(2):
        mine, rows = Ranks(rank, (4, 6)).local(index)
        ours = drops(seed=3)
        ours.take(rows, 6)
        assert ours.share == len(mine) / 6
        parts.append((rows, ours(torch.zeros(2 * len(mine), 8))))
    for rows, mask in parts:
        assert torch.equal(mask, whole.unflatten(0, (6, 2))[rows].flatten(0, 1))
    assert sorted(torch.cat([rows for rows, _ in parts]).tolist()) == list(range(6))
