"""Small nets that the tests of the engine share."""

import torch
from torch import nn


class BasicBlock(nn.Module):
    """conv-relu-conv, added to its input, relu."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.shortcut(x)
        return self.relu(y)


class Net(nn.Module):
    """Stem, two blocks, mean, linear."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = BasicBlock(8, 8)
        self.layer2 = BasicBlock(8, 16, 2)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = self.layer2(self.layer1(self.relu(self.bn1(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))


def net(seed=0):
    """The net with random weights and batch statistics of random images, in eval mode."""
    torch.manual_seed(seed)
    made = Net()
    made.train()
    with torch.no_grad():
        for _ in range(20):
            made(images(64))
    return made.eval()


def images(count, seed=None):
    """[count, 1, 16, 16]; from the global random state without a seed."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 16, 16, generator=generator)
