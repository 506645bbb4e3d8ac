"""The claims are complete, and what they measure follows from what it says."""

import pytest
import torch

from core_utils.claims import Trial, load
from core_utils.errors import UserError
from qdrop import claims, miniature


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A trial of one iteration a unit on an untrained net and few images."""
    torch.manual_seed(0)
    net = miniature.ResidualNet().eval()
    images, labels = miniature.evaluation_images()
    monkeypatch.setattr(miniature, "float_net", lambda folder, data=None: net)
    monkeypatch.setattr(miniature, "evaluation_images", lambda data=None: (images[:40], labels[:40]))
    monkeypatch.setattr(claims, "ITERS", 1)
    monkeypatch.setattr(claims, "SAMPLES", 32)
    return Trial(0, tmp_path / "trial", None, "cpu", False)


@pytest.mark.filterwarnings("ignore:.*batch norm that has seen no data")
def test_every_claim_judges_a_figure_of_its_trial(tiny):
    figures = claims.miniature(tiny)
    for claim in load("qdrop.claims:CLAIMS"):
        if not claim.full_only:
            assert claim.effect in figures, claim.id
    assert figures["drop"] == figures["qdrop"] - figures["case_2"]
    assert figures["drop_foreign"] == figures["qdrop_foreign"] - figures["case_2_foreign"]
    assert figures["activations"] == figures["case_2"] - figures["case_1"]
    assert figures["reconstruction"] == figures["case_1"] - figures["nearest"]
    assert figures["flatter"] == figures["case_2_rise"] - figures["qdrop_rise"]
    assert (tiny.workdir / "figures" / "flatness.svg").read_bytes().startswith(b"<?xml")
    again = claims.miniature(tiny)
    assert again == figures  # finished units are in the folder


def test_claims_are_told_apart_and_say_where_they_come_from():
    known = load("qdrop.claims:CLAIMS")
    assert len({claim.id for claim in known}) == len(known) == 7
    assert all("2203.05740" in claim.source for claim in known)
    assert [claim.id for claim in known if claim.full_only] == ["imagenet-resnet18"]


@pytest.mark.parametrize("data", [None, "empty"])
def test_the_imagenet_claim_says_what_it_needs(tmp_path, data):
    trial = Trial(0, tmp_path / "trial", None if data is None else tmp_path, "cpu", True)
    with pytest.raises(UserError, match="resnet18"):
        claims.imagenet(trial)
