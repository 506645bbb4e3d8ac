"""What is timed answers the same question on both sides."""

import pytest
import torch
from fedcl.benchmarks import BENCHMARKS, data, local_10, perceptron, plain_10, stacked_10

from fedcl import benchmarks


def accuracy(vector):
    model = perceptron(10)
    torch.nn.utils.vector_to_parameters(vector, model.parameters())
    x, y = (torch.from_numpy(part) for part in data(10))
    return float((model(x).argmax(1) == y).float().mean())


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    monkeypatch.setattr(benchmarks, "ROUNDS", {10: 3, 100: 1})


def test_all_sides_learn_the_same_classes():
    local, stacked, loop = (side()() for side in (local_10, stacked_10, plain_10))
    assert min(map(accuracy, (local, stacked, loop))) > 0.5  # by chance it would be 0.1
    torch.testing.assert_close(local, stacked, rtol=0, atol=1e-4)


def test_flower_s_own_side_learns_them_too():
    pytest.importorskip("flwr")
    from fedcl.benchmarks import flower_100, flower_s_own_100

    arrays = flower_s_own_100()()
    theirs = torch.cat([torch.from_numpy(array).flatten().float() for array in arrays.values()])
    assert min(accuracy(theirs), accuracy(flower_100()())) > 0.3


def test_ids_are_different():
    assert len({benchmark.id for benchmark in BENCHMARKS}) == len(BENCHMARKS) == 7
