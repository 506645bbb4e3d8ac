"""Inputs and outputs of units, kept by sample."""

from pathlib import Path

import pytest
import torch

from qdrop.cache import Samples, Store
from qdrop.errors import CalibrationError

CPU = torch.device("cpu")


def memory(placement="cpu", budget=None, folder=None):
    return Store(placement, budget, CPU, folder)


def test_samples_of_all_batches_are_found_by_number():
    batches = [torch.randn(3, 2, 4), torch.randn(2, 2, 4)]
    kept = Samples([3, 2], memory())
    for batch in batches:
        kept.add(batch)
    whole = torch.cat(batches)
    torch.testing.assert_close(kept.take(torch.tensor([4, 0, 0])), whole[[4, 0, 0]], rtol=0, atol=0)
    assert torch.equal(kept[3], whole[3])
    assert len(kept) == 5
    for again, batch in zip(kept.in_batches(), batches, strict=True):
        assert torch.equal(again, batch)


def test_constants_pass_by_reference_and_only_samples_are_drawn():
    kept = Samples([3, 2], memory())
    position = torch.arange(7)
    for size in (3, 2):
        kept.add(((torch.full((size, 7), float(size)), position), {"causal": True, "mask": None}))
    (x, p), keywords = kept.take(torch.tensor([0, 4]))
    assert x[:, 0].tolist() == [3.0, 2.0]
    assert p.tolist() == list(range(7))
    assert keywords == {"causal": True, "mask": None}
    assert [kept.by_sample(leaf) for leaf in range(2)] == [True, False]


def test_windows_of_a_sample_stay_together():
    kept = Samples([2, 1], memory())
    first, second = torch.randn(8, 5), torch.randn(4, 5)
    kept.add(first)
    kept.add(second)
    assert torch.equal(kept.take(torch.tensor([2, 1])), torch.cat([second, first[4:]]))


def test_samples_may_lie_on_the_second_axis():
    kept = Samples([3], memory())
    sequence = torch.randn(7, 3, 2)  # [T, B, C]
    kept.add(sequence)
    assert torch.equal(kept.take(torch.tensor([2, 0])), sequence[:, [2, 0]])


def test_samples_of_different_shapes_are_kept_as_batches():
    kept = Samples([2, 2], memory())
    batches = [torch.randn(2, 3, 8), torch.randn(2, 3, 6)]
    for batch in batches:
        kept.add(batch)
    assert kept.ragged
    assert torch.equal(kept.take(torch.tensor([2])), batches[1])
    assert [each.shape[2] for each in kept.in_batches()] == [8, 6]


def test_what_is_taken_back_can_be_written_to():
    kept = Samples([2], memory())
    kept.add(torch.ones(2, 3))
    next(kept.in_batches()).zero_()
    kept.take(torch.tensor([0, 1])).zero_()
    assert torch.equal(kept.batch(0), torch.ones(2, 3))


def test_a_tensor_over_the_budget_goes_to_disk_and_leaves_no_file(tmp_path):
    kept = Samples([4], memory("auto", budget=100, folder=tmp_path))
    batch = torch.randn(4, 100)
    kept.add(batch)
    assert torch.equal(kept.take(torch.arange(4)), batch)
    assert list(tmp_path.iterdir()) == []
    assert "qdrop-cache-" in Path("/proc/self/maps").read_text()


def test_a_shared_tensor_is_not_copied():
    whole = torch.randn(4, 3)
    kept = Samples([2, 2], memory())
    for part in whole.split(2):
        kept.add(((part,), {}), share=whole)
    assert kept.leaves[0].data_ptr() == whole.data_ptr()
    assert torch.equal(kept.take(torch.tensor([3]))[0][0], whole[3:])


def test_a_batch_of_another_structure_is_named():
    kept = Samples([1, 1], memory())
    kept.add((torch.zeros(1, 2), None))
    with pytest.raises(CalibrationError, match="batch 1"):
        kept.add((torch.zeros(1, 2), torch.zeros(1, 2)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_only_the_main_tensor_has_to_be_finite(value):
    kept = Samples([1], memory())
    kept.add((torch.zeros(1, 2), torch.full((1, 2), value)))
    assert kept.finite()
    bad = Samples([1], memory())
    bad.add((torch.full((1, 2), value), torch.zeros(1, 2)))
    assert not bad.finite()
