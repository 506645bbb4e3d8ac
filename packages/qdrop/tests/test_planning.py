import torch, torchvision
from qdrop import plan


def test_x():
    print(plan(torchvision.models.resnet18(), torch.randn(1, 3, 64, 64)))
