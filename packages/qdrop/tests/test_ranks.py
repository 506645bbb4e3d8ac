"""Ranks that hold parts of the samples quantise as one process that holds all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nets import images, net
from rank import quantised

from qdrop import load
from qdrop.ranks import Ranks, all_ranks_agree, max_over_ranks, sum_over_ranks


def test_a_process_alone_is_all_ranks():
    ranks = Ranks.gather(7)
    assert (ranks.rank, ranks.size, ranks.samples, ranks.offset) == (0, 1, 7, 0)
    index = torch.tensor([3, 3, 0])
    mine, rows = ranks.local(index)
    assert torch.equal(mine, index)
    assert rows is None
    assert sum_over_ranks(torch.tensor(2.0)) == max_over_ranks(torch.tensor(2.0)) == 2
    assert all_ranks_agree(True)
    assert not all_ranks_agree(False)


def test_each_sample_is_some_ranks():
    index = torch.tensor([0, 4, 9, 5, 3])
    parts = [Ranks(rank, (4, 2, 4)).local(index) for rank in range(3)]
    assert [mine.tolist() for mine, _ in parts] == [[0, 3], [0, 1], [3]]
    assert [rows.tolist() for _, rows in parts] == [[0, 4], [1, 3], [2]]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """The files that two processes wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), *filter(None, sys.path)])}
    script = str(here / "rank.py")
    words = [[sys.executable, script, str(rank), "2", str(folder)] for rank in range(2)]
    processes = [subprocess.Popen(w, env=environment, stderr=subprocess.PIPE, text=True, cwd=folder) for w in words]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    return [folder / f"rank{rank}.safetensors" for rank in range(2)]


def test_two_ranks_end_with_one_model(two_ranks):
    first, second = (load(path, net()) for path in two_ranks)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_two_ranks_equal_one_process(two_ranks):
    """Gradients are summed in another order, which Adam and the units behind amplify; the first unit hardly differs."""
    together, alone = load(two_ranks[0], net()), quantised(0, 1)
    for path, weight in alone.integer_state().items():
        same = together.integer_state()[path]
        torch.testing.assert_close(same.scale, weight.scale, rtol=0, atol=0)
        assert (same.codes == weight.codes).float().mean() > 0.99, path
    first, *later = alone.activations
    torch.testing.assert_close(together.activations[first].scale, alone.activations[first].scale, rtol=1e-6, atol=0)
    for name in later:
        torch.testing.assert_close(together.activations[name].scale, alone.activations[name].scale, rtol=0.1, atol=0)
    for ours, theirs in zip(alone.report, together.report, strict=True):
        assert theirs.loss_end == pytest.approx(ours.loss_end, rel=1e-2)
    assert together.report[0].loss_end == pytest.approx(alone.report[0].loss_end, rel=1e-5)
    x = images(32, seed=5)
    with torch.no_grad():
        assert (together(x) - alone(x)).abs().mean() < 0.02 * alone(x).std()
