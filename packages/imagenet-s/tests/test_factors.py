import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 -- the name that everybody gives it

from imagenet_s import ModelError
from imagenet_s.factors import (
    NotApplicable,
    ceil_mode,
    half,
    int8,
    quantised_activation,
    quantised_weight,
    upsampling,
)
from imagenet_s.models import serving


class Stem(nn.Module):
    """The head of a ResNet, with a batch norm whose statistics are not trivial."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8)
        self.pool, self.head = nn.MaxPool2d(3, 2, 1), nn.Linear(8, 5)
        self.norm.running_mean.uniform_(-0.1, 0.1)
        self.eval()

    def forward(self, x):
        return self.head(self.pool(torch.relu(self.norm(self.conv(x)))).mean((2, 3)))


class Upsampler(nn.Module):
    """One nn.Upsample and one F.interpolate."""

    def __init__(self):
        super().__init__()
        self.up = nn.Upsample(scale_factor=2, mode="nearest")

    def forward(self, x):
        y = F.interpolate(self.up(x), (9, 9), mode="bilinear", align_corners=False)
        return y[:, :, 3, 3]


BATCH = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def logits(model, batch=BATCH):
    with torch.no_grad():
        return model(batch)


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_the_stem_of_112_gives_57_with_ceil_and_56_again_after():
    net, sizes = Stem(), []
    net.pool.register_forward_hook(lambda *args: sizes.append(args[2].shape[-1]))
    image = torch.rand(1, 3, 224, 224)
    before = logits(net, image)
    with ceil_mode(net):
        assert not torch.equal(logits(net, image), before)
    assert torch.equal(logits(net, image), before)
    assert sizes == [56, 57, 56]


def test_without_pools_ceil_mode_is_not_applicable():
    with (
        pytest.raises(NotApplicable, match="not applicable: Sequential has no pooling layer"),
        ceil_mode(nn.Sequential()),
    ):
        pass
    net = Stem()
    with ceil_mode(net), pytest.raises(NotApplicable), ceil_mode(net):
        pass


@pytest.mark.parametrize(("dtype", "error"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_half_precision_changes_logits_a_little_and_nothing_for_good(dtype, error):
    net = Stem()
    before, state = logits(net), bits(net)
    with half(net, dtype) as halved:
        inside = logits(halved)
        assert net.conv.weight.dtype == getattr(torch, dtype)
    assert inside.dtype == torch.float32
    assert 0 < (inside - before).abs().max() < error
    assert torch.equal(logits(net), before)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_the_factors_models_can_be_served():
    net = Stem()
    with half(net) as halved, serving(halved) as predict:
        assert predict(BATCH).shape == (4, 5)


def test_upsampling_is_swapped_inside_and_not_outside():
    net, x = Upsampler(), torch.rand(2, 3, 4, 4)
    before, own = logits(net, x), F.interpolate
    doubled = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
    expected = F.interpolate(doubled, (9, 9), mode="bilinear", align_corners=True)[:, :, 3, 3]
    with upsampling(net, "bilinear", align_corners=True) as swapped:
        torch.testing.assert_close(logits(swapped, x), expected)
    with upsampling(net, "nearest") as swapped:
        nearest = F.interpolate(F.interpolate(x, scale_factor=2.0), (9, 9))[:, :, 3, 3]
        assert torch.equal(logits(swapped, x), nearest)
    assert F.interpolate is own
    assert torch.equal(logits(net, x), before)


def test_a_model_that_upsamples_nothing_is_told_so():
    with upsampling(Stem(), "bilinear") as swapped, pytest.raises(NotApplicable, match="upsamples nothing"):
        logits(swapped)
    with upsampling(Stem(), "bilinear") as swapped, serving(swapped) as predict, pytest.raises(NotApplicable):
        predict(BATCH)


def test_weights_are_rounded_to_their_channels_own_grid():
    weight = torch.tensor([[1.27, 0.004, -0.006], [-254.0, 1.1, 0.9]])
    expected = torch.tensor([[1.27, 0.0, -0.01], [-254.0, 2.0, 0.0]])
    torch.testing.assert_close(quantised_weight(weight), expected)


def test_activations_keep_zero_and_clip_what_calibration_never_saw():
    values = torch.tensor([-5.0, -1.0, 0.0, 0.4, 0.6, 254.0, 999.0])
    found = quantised_activation(values, -1.0, 254.0)
    torch.testing.assert_close(found, torch.tensor([-1.0, -1.0, 0.0, 0.0, 1.0, 254.0, 254.0]))
    assert quantised_activation(torch.zeros(3), 2.0, 5.0).tolist() == [0, 0, 0]


def test_int8_changes_logits_a_little_and_nothing_for_good():
    net = Stem()
    before, state = logits(net), bits(net)
    with int8(net, [BATCH]) as quantised:
        inside = logits(quantised)
    assert 0 < (inside - before).abs().max() < 0.05 * before.abs().max()
    assert torch.equal(logits(net), before)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_int8_looks_at_128_images_and_needs_some():
    net, seen = Stem(), []
    net.conv.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    with int8(net, (torch.rand(50, 3, 16, 16) for _ in range(9))):
        pass
    assert seen == [50, 50, 28]
    with pytest.raises(ModelError, match="needs calibration images"), int8(net, []):
        pass
    with pytest.raises(NotApplicable), int8(nn.Sequential(), [BATCH]):
        pass
