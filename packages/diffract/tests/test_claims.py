"""The claims are judged from what the public names measure."""

import math

import pytest

from core_utils.claims import Trial
from diffract import claims, miniature, tolerances
from diffract.claims import CLAIMS, imaging, lengths


@pytest.fixture
def short(monkeypatch):
    """Trainings of a few steps on a small grid."""
    whole, few = miniature.miniature_design, {"train__epochs": 2, "train__steps_per_epoch": 3}
    monkeypatch.setattr(
        miniature, "miniature_design", lambda seed, *, full=False, **more: whole(seed, **{**few, **more})
    )
    monkeypatch.setattr(miniature, "TESTED", 4)
    monkeypatch.setattr(miniature, "TRAINED", 200)
    monkeypatch.setattr(miniature, "NEW", 3)


@pytest.mark.slow
def test_every_claim_of_the_demo_is_measured(short, tmp_path):
    figures = {imaging: imaging(Trial(0, tmp_path)), lengths: lengths(Trial(0, tmp_path))}
    for claim in CLAIMS:
        if not claim.full_only:
            assert math.isfinite(figures[claim.measure][claim.effect])
    assert figures[imaging]["over_baselines"] == pytest.approx(
        figures[imaging]["plain_new"]
        - max(figures[imaging][f"{name}_new"] for name in ("free_space", "hyperbolic_lens", "paraxial_lens"))
    )
    assert (tmp_path / "figures/montage.svg").exists()


def test_claims_have_ids_and_sources_and_the_seeds_of_the_demo():
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS)
    assert all(claim.seeds == 3 and "arXiv" in claim.source for claim in CLAIMS)
    assert [claim.id for claim in CLAIMS if claim.full_only] == ["published-geometry"]
    assert all(claim.package == "diffract" for claim in CLAIMS)


def test_seeds_draw_their_own_digits_and_diffusers():
    (train, test), (other, others) = (miniature.miniature_objects(seed) for seed in (0, 1))
    assert train.shape == (1200, 8, 8)
    assert test.shape == (20, 64, 64)
    assert not (test == others).all()
    assert not (train == other).all()
    first, second = (miniature.new_diffusers(miniature.miniature_design(seed)) for seed in (0, 1))
    assert abs(float((first * second).mean())) < 0.1


def test_full_trials_train_longer():
    assert miniature.miniature_design(0, full=True).train.epochs == 40
    assert miniature.miniature_design(0).train.epochs == 10
    assert claims.LENGTHS == (1.0, 1.5, 2.5)
    assert "lateral" in tolerances.KINDS
