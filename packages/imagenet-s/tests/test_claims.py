"""The claims are told apart and say where they come from; what they judge is what they measure."""

import numpy as np
import pytest
import torch
from torch import nn

from core_utils.claims import Trial, load
from imagenet_s import claims, miniature


def test_claims_are_told_apart():
    known = load("imagenet_s.claims:CLAIMS")
    assert len({claim.id for claim in known}) == len(known) == 6
    assert all("arXiv" in claim.source for claim in known)


def test_figures_of_the_garments_follow_from_the_classes(monkeypatch, tmp_path):
    """Nets that name the class by the first pixel: on one view the fixed one is wrong on ten, the mixed one on four."""
    labels = np.arange(10).repeat(4)
    views = np.zeros((33, 40, 28, 28, 3), np.uint8)
    views[:, :, 0, 0, 0] = labels
    broken = miniature.VIEWS.index(("pillow", "opencv-nearest"))
    spoiled = views.copy()
    spoiled[broken, :10, 0, 0, 0] += 1

    class Net(nn.Module):
        def forward(self, x):
            return nn.functional.one_hot((x[:, 0, 0, 0] * 64 + 127.5).round().long(), 12).float()

    less = views.copy()
    less[broken, :4, 0, 0, 0] += 1
    handed = {"fixed": spoiled, "mixed": less}
    monkeypatch.setattr(miniature, "views", lambda part, folder, data: (views, labels))
    monkeypatch.setattr(miniature, "trained", lambda seed, pixels, truth: Net())
    calls = iter(handed.values())
    monkeypatch.setattr(claims, "_classes", lambda net, _: plain(net, next(calls)))
    figures = claims.garments(Trial(0, tmp_path / "trial", None, "cpu", False))
    assert figures["fixed_reference"] == figures["mixed_reference"] == 100
    assert figures["fixed_range"] == figures["worst_drop"] == figures["opencv_nearest_drop"] == pytest.approx(25)
    assert figures["fewer_fooled"] == pytest.approx(15)
    assert figures["mixed_fooled"] == pytest.approx(10)
    assert figures["spread_halved"] == pytest.approx(np.log(0.5 * 25 / 10))


def plain(net, views):
    with torch.no_grad():
        return np.stack([net(miniature.normalised(view)).argmax(1).numpy() for view in views])
