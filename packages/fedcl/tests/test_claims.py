"""The claims are judged from what the public names measure."""

from core_utils.claims import Trial
from fedcl.claims import CLAIMS, halving


def test_halving_the_step_is_measured_as_first_order(tmp_path):
    figures = halving(Trial(seed=0, workdir=tmp_path))
    assert figures["error_fine"] < figures["error_coarse"]
    assert abs(figures["effect"]) < 0.1


def test_the_same_seed_gives_the_same_figures(tmp_path):
    assert halving(Trial(seed=1, workdir=tmp_path)) == halving(Trial(seed=1, workdir=tmp_path))


def test_claims_have_ids_of_their_own():
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS)
