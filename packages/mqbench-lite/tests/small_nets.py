"""A network of two convolutions and a linear layer that holds quantisers, as preparing a model would make it."""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from core_utils.training import Arrays, Loader
from mqbench_lite.algorithms import get
from mqbench_lite.specs import QuantSpec


class Conv(nn.Conv2d):
    """A convolution whose weight is quantised."""

    def __init__(self, *sizes, quantizer, **settings):
        super().__init__(*sizes, **settings)
        self.weight_quantizer = quantizer
        quantizer.attach(self.weight.shape, 0)

    def forward(self, x):
        return self._conv_forward(x, self.weight_quantizer(self.weight), self.bias)


class Linear(nn.Linear):
    """A linear layer whose weight is quantised."""

    def __init__(self, *sizes, quantizer):
        super().__init__(*sizes)
        self.weight_quantizer = quantizer
        quantizer.attach(self.weight.shape, 0)

    def forward(self, x):
        return F.linear(x, self.weight_quantizer(self.weight), self.bias)


class Net(nn.Module):
    """[n, 1, 8, 8] to ten logits."""

    def __init__(self, algorithm, weight, act):
        super().__init__()
        weights = [algorithm.make_quantizer(weight, "weight") for _ in range(3)]
        self.stem = Conv(1, 8, 3, padding=1, stride=2, bias=False, quantizer=weights[0])
        self.norm = nn.BatchNorm2d(8)
        self.body = Conv(8, 16, 3, padding=1, stride=2, quantizer=weights[1])
        self.second_norm = nn.BatchNorm2d(16)
        self.head = Linear(16, 10, quantizer=weights[2])
        self.first, self.second, self.third = (algorithm.make_quantizer(act, "act") for _ in range(3))

    def forward(self, x):
        x = self.norm(self.stem(self.first(x))).relu()
        x = self.second_norm(self.body(self.second(x))).relu()
        return self.head(self.third(x.mean((2, 3))))


def net(algorithm="lsq", bits=4, seed=0, per_channel=True, **options):
    torch.manual_seed(seed)
    algorithm = get(algorithm, **options) if isinstance(algorithm, str) else algorithm
    weight = QuantSpec(bits=bits, per_channel=per_channel)
    return Net(algorithm, weight, QuantSpec(bits=bits, signed="auto"))


def shapes(count=256, seed=0):
    """Noisy images of ten fixed patterns, and their numbers."""
    patterns = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(1234))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=generator)
    return patterns[labels] + 0.2 * torch.randn(count, 1, 8, 8, generator=generator), labels


def loader(count=256, batch_size=32, seed=0, **settings):
    return Loader(Arrays(*shapes(count, seed)), batch_size, seed=seed, **settings)
