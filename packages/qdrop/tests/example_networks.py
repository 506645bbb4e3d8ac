"""Small networks that several tests plan."""

import torch
from torch import nn
from torch.nn import functional


def randomised(model):
    """The model with batch norms as training leaves them: each channel with its own statistics, scale and shift."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            if module.weight is not None:
                nn.init.uniform_(module.weight, 0.5, 2.0, generator=generator)
                nn.init.normal_(module.bias, generator=generator)
    return model


class BasicBlock(nn.Module):
    def __init__(self, channels_in, channels, stride, relu):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = relu
        self.shortcut = nn.Identity()
        if stride > 1 or channels_in != channels:
            projection = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels))

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResidualNet(nn.Module):
    """The Fashion-MNIST network of the miniature, its activations modules or functions."""

    def __init__(self, functional_relu=False):
        super().__init__()
        relu = functional.relu if functional_relu else nn.ReLU()
        self.conv, self.bn, self.relu = nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), relu
        shapes = ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        self.blocks = nn.Sequential(*(BasicBlock(i, o, stride, relu) for i, o, stride in shapes))
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        return self.fc(self.blocks(self.relu(self.bn(self.conv(x)))).mean((2, 3)))


IMAGES = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(1))


class Lambda(nn.Module):
    """A module with the given submodules whose forward is a function of itself and the inputs."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.run = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *args, **kwargs):
        return self.run(self, *args, **kwargs)
