"""Small networks for tests, with batch normalisation that does something."""

import torch
from torch import nn

from mqbench_lite.networks import get


def awake(model, seed=0):
    """Statistics, factors and summands that are not those of a fresh network."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.copy_(0.2 * torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
            if module.affine:
                module.weight.data.copy_(0.5 + torch.rand(module.num_features, generator=generator))
                module.bias.data.copy_(0.2 * torch.randn(module.num_features, generator=generator))
    return model.eval()


def residual(seed=0):
    torch.manual_seed(seed)
    return awake(get("residual"), seed)


def depthwise(seed=0):
    torch.manual_seed(seed)
    return awake(get("depthwise"), seed)


def images(n=16, *shape, seed=1):
    return torch.randn(n, *(shape or (1, 28, 28)), generator=torch.Generator().manual_seed(seed))


class Function(nn.Module):
    """A network whose forward is a function of its parts."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


class OfTwo(Function):
    """Likewise, of two tensors."""

    def forward(self, x, y):
        return self.function(self, x, y)


def conv(c=4, d=4, k=3, **options):
    return nn.Conv2d(c, d, k, padding=k // 2, **options)
