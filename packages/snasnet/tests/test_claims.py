"""The claims are measured from what the public names give."""

import numpy as np
import pytest
import torch

from core_utils.claims import Trial
from snasnet import claims
from snasnet.claims import CLAIMS, feedback, firing
from snasnet.miniature import miniature_images


def test_claims_have_ids_of_their_own_and_long_ones_stay_out_of_the_demo():
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS)
    short = {claim.id for claim in CLAIMS if not claim.full_only}
    assert short == {"less-a-rate-meter-forward", "less-a-rate-meter-backward", "idle-feedback-hurts"}


def test_the_hand_made_network_has_about_as_many_parameters():
    for count in (3_000, 20_000):
        model = claims._hand_made(count)
        assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(count, rel=0.25)
        assert model(torch.rand(4, 1, 8, 8)).shape == (4, 10)


def test_correlations_with_the_firing_rate_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "SCORED", 4)
    monkeypatch.setattr(claims, "SCORING", {"width": 4, "hidden": 16, "T": 2})
    figures = firing(Trial(seed=0, workdir=tmp_path))
    for kind in ("forward", "backward"):
        assert figures[f"{kind}_less"] == figures[f"{kind}_hd_against_rate"] - figures[f"{kind}_sahd_against_rate"]
        assert -1 <= figures[f"{kind}_sahd_against_rate"] <= 1
        assert (tmp_path / f"figures/score-against-rate-{kind}.svg").read_text().count("<svg") == 1
    assert {effect for claim in CLAIMS[:2] for effect in [claim.effect]} <= set(figures)


@pytest.mark.slow
def test_trained_cells_with_and_without_idle_feedback_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "TRAINED", 2)
    figures = feedback(Trial(seed=0, workdir=tmp_path))
    assert figures["lost"] == pytest.approx(figures["accuracy_without"] - figures["accuracy_idle"])
    assert 0 <= figures["accuracy_idle"] <= 100
    assert 0 < figures["mann_whitney_p"] <= 1
    assert {"tau_sahd", "tau_hd", "tau_params", "tau_convs"} <= set(figures)


def test_images_are_small_normal_and_of_the_seed():
    first, again, other = (miniature_images(seed, size=8, train_per_class=5, test_per_class=2) for seed in (0, 0, 1))
    assert first.x_train.shape == (50, 1, 8, 8)
    assert (first.x_train == again.x_train).all()
    assert not (first.x_train == other.x_train).all()
    assert abs(first.x_train.mean()) < 1e-5
    assert first.x_train.std() == pytest.approx(1, abs=1e-5)
    large = miniature_images(0, train_per_class=5, test_per_class=2)
    halved = large.x_train.reshape(50, 1, 8, 2, 8, 2).mean((3, 5))
    assert np.corrcoef(halved.ravel(), first.x_train.ravel())[0, 1] == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="size must be 8 or 16"):
        miniature_images(0, size=12)
