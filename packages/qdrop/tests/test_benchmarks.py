"""The benchmarks compare the same work: the reference's loop, given our draws, loses what ours loses and rounds as ours does."""

import importlib.util
from pathlib import Path

import pytest
import torch

import qdrop

SIZE = 4, 6, 10  # channels, pixels of a side, iterations


@pytest.fixture(scope="module")
def benchmarks():
    spec = importlib.util.spec_from_file_location(
        "benchmarks", Path(__file__).parents[1] / "benchmarks" / "__init__.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_loop_follows_ours_when_it_draws_the_same(benchmarks, monkeypatch):
    """With the `clamp` of torch 2.13, that of the reference's figures: its gradient is 1 at both ends, in 2.14 it is 0."""
    indices, masks = [], []
    randint, rand_like = torch.randint, torch.rand_like

    def draw_indices(*args, **kwargs):
        indices.append(randint(*args, **kwargs))
        return indices[-1]

    def draw_uniform(x):
        drawn = rand_like(x)
        masks.append(drawn < 0.5)
        return drawn

    clamp, losses = torch.clamp, []

    def inclusive_clamp(x, low, high):
        return torch.where((x >= low) & (x <= high), x, clamp(x.detach(), low, high))

    backward = torch.Tensor.backward
    call = benchmarks.reference(*SIZE)
    torch.manual_seed(1)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randint", draw_indices)
        patch.setattr(torch, "rand_like", draw_uniform)
        patch.setattr(torch, "clamp", inclusive_clamp)
        patch.setattr(
            torch.Tensor, "backward", lambda loss, **options: losses.append(loss.item()) or backward(loss, **options)
        )
        call()
    assert len(losses) == len(indices) == SIZE[2]
    assert len(masks) == 3 * SIZE[2]

    unit, teacher, cache, config = benchmarks._unit(*SIZE)
    streams = {"index_stream": iter(indices), "mask_stream": iter(masks)}
    result = qdrop.reconstruct_unit(unit, teacher, cache, config, torch.Generator(), **streams)
    assert result.losses == pytest.approx(losses, rel=5e-6)


def test_every_side_runs_at_a_small_size(benchmarks):
    for side in (benchmarks.ours, benchmarks.bare_convolutions, benchmarks.our_adaround):
        side(4, 6, 2)()


def test_identifiers_are_unique(benchmarks):
    assert len({each.id for each in benchmarks.BENCHMARKS}) == len(benchmarks.BENCHMARKS) == 5
