import pytest
import torch
from torch import nn

from core_utils.errors import UserError
from core_utils.spiking.layout import over_time, time_first
from core_utils.spiking.norm import TimeBatchNorm2d


def sequence(T=4, B=3, C=5, seed=0):
    return torch.randn(T, B, C, 6, 7, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def state(norm):
    return [norm.running_mean, norm.running_var, norm.num_batches_tracked]


@pytest.mark.parametrize("training", [True, False])
def test_fused_is_batch_norm_of_the_flattened_sequence(training):
    ours, plain = TimeBatchNorm2d(5, init_scale=0.5), nn.BatchNorm2d(5)
    nn.init.constant_(plain.weight, 0.5)
    x_seq = sequence()
    ours(x_seq), plain(x_seq.flatten(0, 1))
    ours.train(training), plain.train(training)
    assert torch.equal(ours(x_seq), plain(x_seq.flatten(0, 1)).unflatten(0, (4, 3)))
    assert all(map(torch.equal, state(ours.norm), state(plain)))


@pytest.mark.parametrize("training", [True, False])
def test_per_step_is_one_call_a_step(training):
    ours, plain = TimeBatchNorm2d(5, statistics="per_step", momentum=0.2, eps=1e-3), nn.BatchNorm2d(5, 1e-3, 0.2)
    x_seq = sequence()
    ours(x_seq), [plain(x) for x in x_seq]
    assert ours.norm.num_batches_tracked == 4
    ours.train(training), plain.train(training)
    torch.testing.assert_close(ours(x_seq), torch.stack([plain(x) for x in x_seq]))
    assert all(map(torch.equal, state(ours.norm), state(plain)))


def test_per_step_normalises_every_step_by_itself():
    x_seq = sequence() * torch.arange(1.0, 5).reshape(4, 1, 1, 1, 1)
    out = TimeBatchNorm2d(5, statistics="per_step")(x_seq)
    torch.testing.assert_close(out.mean((1, 3, 4)), torch.zeros(4, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var((1, 3, 4), correction=0), torch.ones(4, 5), atol=1e-4, rtol=0)


def test_scaling_the_input_changes_nothing():
    x_seq = sequence()
    out, scaled = TimeBatchNorm2d(5)(x_seq), TimeBatchNorm2d(5)(1.5 * x_seq)
    torch.testing.assert_close(out, scaled, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("statistics", ["fused", "per_step"])
def test_sync_batch_norm_conversion_reaches_the_layer(statistics):
    ours = TimeBatchNorm2d(5, statistics=statistics, init_scale=0.5)
    ours(sequence())
    expected = ours.eval()(sequence(seed=1))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(ours)
    assert isinstance(converted.norm, nn.SyncBatchNorm)
    assert torch.equal(converted(sequence(seed=1)), expected)


@pytest.mark.usefixtures("as_users_run_it")
def test_unknown_statistics_are_refused():
    with pytest.raises(UserError, match="statistics must be one of fused, per_step, got 'tdbn'"):
        TimeBatchNorm2d(5, statistics="tdbn")


def test_over_time_is_one_call_with_the_outcome_of_many():
    calls = []
    layer = nn.Conv2d(5, 2, 3, bias=False)
    layer.register_forward_hook(lambda *_: calls.append(1))
    x_seq = sequence()
    out = over_time(layer, x_seq)
    assert calls == [1]
    torch.testing.assert_close(out, torch.stack([layer(x) for x in x_seq]))
    assert over_time(nn.Flatten(), x_seq).shape == (4, 3, 5 * 6 * 7)
    assert over_time(layer, x_seq[:, :0]).shape == (4, 0, 2, 4, 5)


def test_time_first_swaps_time_and_batch_without_a_copy():
    batch = sequence()
    assert time_first(batch).shape == (3, 4, 5, 6, 7)
    assert torch.equal(time_first(batch)[2, 1], batch[1, 2])
    assert time_first(batch).data_ptr() == batch.data_ptr()
