"""What observers find, against their formulas over all batches."""

import os
import socket
import subprocess
import sys

import pytest
import torch
from torch import distributed

from mqbench_lite.errors import MQBenchError
from mqbench_lite.observers import OBSERVERS, BadValuesError, make_observer
from mqbench_lite.specs import QuantSpec

SPEC = QuantSpec(bits=8, symmetric=False, signed=False)


def batches(count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, 3, 4, 4, generator=generator) * (count - at) for at in range(count)]


def observed(name, tensors, spec=SPEC, axis=None):
    observer = make_observer(name, spec, axis)
    for tensor in tensors:
        observer.update(tensor)
    return observer


def test_min_max_keeps_all_batches_and_not_the_last_alone():
    seen = batches()
    low, high = observed("minmax", seen).ends()
    assert low.item() == min(x.min() for x in seen)
    assert high.item() == max(x.max() for x in seen)
    assert high.item() > seen[-1].max()


def test_extremes_per_channel_are_along_the_axis():
    weight = batches(1)[0]
    for axis in range(4):
        low, high = observed("minmax", [weight], axis=axis).ends()
        others = [at for at in range(4) if at != axis]
        assert torch.equal(low, weight.amin(others))
        assert torch.equal(high, weight.amax(others))


def test_an_average_of_extremes_weighs_the_past_by_nine_tenths():
    seen = batches()
    low, high = observed("ema_minmax", seen).ends()
    expected = [x.max().item() for x in seen]
    assert high.item() == pytest.approx(0.81 * expected[0] + 0.09 * expected[1] + 0.1 * expected[2])
    assert low.item() == pytest.approx(0.81 * seen[0].min() + 0.09 * seen[1].min() + 0.1 * seen[2].min())


def test_a_quantile_leaves_out_the_outlier_and_keeps_the_side_without_one():
    x = torch.cat([torch.linspace(-1, 1, 200_001), torch.tensor([100.0])])
    low, high = observed("ema_quantile", [x]).ends()
    assert low.item() == -1.0
    assert high.item() == pytest.approx(1.0, abs=100 / 2048)  # a bin's width


def test_an_average_per_sample_takes_each_samples_extremes():
    x = torch.tensor([[1.0, 5.0, -2.0], [3.0, 1.0, 0.0]])
    low, high = observed("batch_mean_max", [x]).ends()
    assert (low.item(), high.item()) == (-1.0, 4.0)


def test_deviations_are_unbiased_and_never_clip_in_the_released_form():
    weight = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
    weight[0, 0] = 50.0
    low, high = observed("clip_std_paper", [weight], axis=0).ends()
    torch.testing.assert_close(high, weight.mean(1) + 2.6 * weight.std(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(low, weight.mean(1) - 2.6 * weight.std(1), rtol=1e-5, atol=1e-6)
    wide_low, wide_high = observed("clip_std", [weight], axis=0).ends()
    assert torch.equal(wide_high, torch.maximum(weight.amax(1), high))
    assert torch.equal(wide_low, torch.minimum(weight.amin(1), low))
    _, three = observed("std", [weight], axis=0).ends()
    torch.testing.assert_close(three, weight.mean(1) + 3 * weight.std(1), rtol=1e-5, atol=1e-6)


def test_the_mean_magnitude_gives_lsqs_first_step_size_over_all_batches():
    seen = batches()
    scale, zero_point = observed("mean", seen, QuantSpec(bits=4)).grid(-8, 7)
    expected = 2 * torch.cat(seen).abs().mean() / 7**0.5
    assert scale.item() == pytest.approx(expected.item(), rel=1e-6)
    assert zero_point.item() == 0


def test_the_mean_magnitude_per_channel_counts_the_channels_elements():
    weight = batches(1)[0]
    scale, _ = observed("mean", [weight], QuantSpec(bits=4, per_channel=True), axis=0).grid(-8, 7)
    torch.testing.assert_close(scale, 2 * weight.flatten(1).abs().mean(1) / 7**0.5)


@pytest.mark.parametrize("name", ["mse", "mse_2.4", "ema_mse"])
def test_a_range_of_least_error_is_no_worse_than_the_full_range(name):
    spec, x = QuantSpec(bits=4), torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    errors = {}
    for observer in (name, "minmax"):
        scale, _ = observed(observer, [x], spec).grid(-8, 7)
        errors[observer] = ((x / scale).round().clamp(-8, 7) * scale - x).square().mean().item()
    assert errors[name] < 0.8 * errors["minmax"]


def test_an_average_of_least_errors_is_the_average_of_the_batches_ranges():
    seen = batches()
    single = [observed("mse", [x.flatten()[:300]], QuantSpec(bits=4)).grid(-8, 7)[0].item() for x in seen]
    scale, _ = observed("ema_mse", [x.flatten()[:300] for x in seen], QuantSpec(bits=4)).grid(-8, 7)
    assert scale.item() == pytest.approx(0.81 * single[0] + 0.09 * single[1] + 0.1 * single[2], rel=1e-5)


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_are_refused(name, bad):
    with pytest.raises(BadValuesError, match="NaN or infinite"):
        observed(name, [torch.tensor([1.0, bad])])


@pytest.mark.parametrize("name", OBSERVERS)
def test_nothing_seen_is_an_error_and_so_is_an_empty_tensor(name):
    with pytest.raises(BadValuesError, match="no tensor passed"):
        make_observer(name, SPEC).grid(0, 255)
    with pytest.raises(BadValuesError, match="empty"):
        observed(name, [torch.empty(0)])


def test_an_unknown_name_lists_those_that_there_are():
    with pytest.raises(MQBenchError, match="use one of minmax, ema_minmax"):
        make_observer("maxmin", SPEC)


JOINING = """
import sys, torch
from torch import distributed
from mqbench_lite.observers import OBSERVERS, make_observer
from mqbench_lite.specs import QuantSpec
distributed.init_process_group("gloo", rank=int(sys.argv[1]), world_size=2, init_method=sys.argv[2])
x = torch.randn(2, 6000, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [9.0]])
share = x[int(sys.argv[1])]
for name in OBSERVERS:
    spec = QuantSpec(bits=4)
    ours, whole = make_observer(name, spec), make_observer(name, spec)
    ours.update(share)
    ours.join()
    scale, zero = ours.grid(-8, 7)
    if name.startswith("ema") or name == "batch_mean_max":
        parts = []
        for row in x:
            part = make_observer(name, spec)
            part.update(row)
            parts.append(part.average)
        whole.update(x)
        whole.average = sum(parts) / 2
    else:
        whole.update(x)
    expected, _ = whole.grid(-8, 7)
    assert torch.allclose(scale, expected, rtol=1e-6), (name, scale, expected)
distributed.destroy_process_group()
print("joined")
"""


def test_a_group_of_one_finds_what_a_lone_process_finds():
    seen = batches()
    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    try:
        for name in OBSERVERS:
            alone, grouped = observed(name, seen), observed(name, seen)
            grouped.join()
            for one, other in zip(alone.grid(0, 255), grouped.grid(0, 255), strict=True):
                assert torch.equal(one, other), name
    finally:
        distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_join_what_they_saw():
    """Extremes, sums and histograms as if one had seen all; averages by their mean."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-c", JOINING]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [*command, str(rank), address], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        for rank in range(2)
    ]
    try:
        results = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [out.decode().strip() for out, _ in results] == ["joined", "joined"], results
