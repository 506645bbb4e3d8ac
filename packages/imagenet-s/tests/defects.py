"""Single defects to plant: what to change, the stage that must be named, and the finding that must name it."""

import numpy as np
import torch
from torch import nn

from imagenet_s import Nv12
from imagenet_s.decoding import decoders, register_decoder
from imagenet_s.resizing import register_resizer, resizers


def half_pixel_off(image, size):
    """Bilinear by Pillow of the picture moved by half an output pixel, as if centres were corners."""
    height, width = image.shape[:2]
    down, across = height / size[0] / 2, width / size[1] / 2
    y = np.clip(np.rint(np.arange(height) - down), 0, height - 1).astype(int)
    x = np.clip(np.rint(np.arange(width) - across), 0, width - 1).astype(int)
    return resizers()["pillow-bilinear"].resize(np.ascontiguousarray(image[y][:, x]), size)


def limited_range(data):
    """Pixels that were never expanded from 16..235."""
    return np.rint(16 + decoders()["pillow"].decode(data) * (219 / 255)).astype(np.uint8)


def register():
    """Adds the two that no registry has."""
    register_resizer("test-half-pixel", half_pixel_off)
    register_decoder("test-limited", limited_range)


DEFECTS = {
    "bgr": ({"channels": "bgr"}, "normalise", "channel swap"),
    "mean and std": ({"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}, "normalise", "mean/std"),
    "scale 255": ({"scale": 1.0}, "normalise", "scale 255"),
    "scale twice": ({"scale": 1 / 255**2}, "normalise", "scale 255"),
    "half pixel": ({"resizer": "test-half-pixel"}, "resize", "half-pixel shift"),
    "no antialias": ({"resizer": "opencv-linear"}, "resize", "no antialias"),
    "keep ratio": ({"geometry": "shorter-side"}, "resize", "aspect ratio"),
    "limited range": ({"decoder": "test-limited"}, "decode", "limited range"),
    "nv12": ({"colour": Nv12()}, "colour", "chroma"),
    "float16": ({"dtype": "float16"}, "precision", "float16 precision"),
    "decoder": ({"decoder": "turbo-boxup"}, "decode", "chroma"),
}


class TinyNet(nn.Module):
    """A small convolutional network with fixed random weights."""

    def __init__(self, classes=10):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second, self.head = nn.Conv2d(3, 12, 5, 2), nn.Conv2d(12, 24, 3, 2), nn.Linear(24, classes)
        for each in self.parameters():
            each.data = torch.randn(each.shape, generator=generator) * (2 / max(1, each[0].numel())) ** 0.5
        self.eval()

    def forward(self, x):
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(x.flatten(2).std(2)) * 3
