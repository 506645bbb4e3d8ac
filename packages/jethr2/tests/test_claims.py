"""The claims are complete, and what they measure follows from the trials that both sides flew."""

import math

import pytest

from core_utils.claims import Trial, evaluate, load
from core_utils.runs import Run
from jethr2 import claims, monte_carlo
from jethr2.studies import BASELINE, tune_baseline


@pytest.fixture(scope="module")
def flown(tmp_path_factory):
    """Figures of eight trials, and where they lie."""
    folder = tmp_path_factory.mktemp("claims")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "N", 8)
        yield claims.take_offs(Trial(0, folder)), folder


def test_every_claim_judges_a_figure_of_its_trial(flown):
    figures, _ = flown
    known = load("jethr2.claims:CLAIMS")
    assert len({claim.id for claim in known}) == len(known) == 6
    for claim in known:
        assert claim.effect in figures, claim.id
        assert claim.measure is claims.take_offs
        assert (claim.seeds, claim.full_only) == (5, False)
        assert "2108.11557" in claim.source
    margins = {claim.id: claim.margin for claim in known if claim.margin}
    assert margins == {"spin": pytest.approx(math.log(5)), "reliable": 0.9}
    assert all(math.isfinite(value) for value in figures.values())


def test_figures_are_those_of_one_study_of_the_same_seed(flown):
    figures, _ = flown
    result = monte_carlo(8, ("full", "differential"), cases={BASELINE: claims.tuned_baseline()}, seed=0)
    rows = {row.case: row for row in result.table()}
    full, other = rows["full"], rows["differential"]
    assert figures["spin"] == pytest.approx(math.log(other.yaw_median / full.yaw_median))
    assert figures["success"] == pytest.approx((full.success - other.success) / 8)
    assert figures["dive"] == pytest.approx((full.upright - other.upright) / 8)
    assert figures["dive_tuned"] == pytest.approx((full.upright - rows[BASELINE].upright) / 8)
    assert figures["lift"] == pytest.approx(full.height_median - other.height_median)
    assert figures["reliable"] == full.success_low
    test = result.mcnemar("full", "differential")
    assert figures["full_over_differential_p"] == test.p_value
    assert figures["full_over_differential_only_first"] == test.only_first


def test_the_robot_without_errors_takes_off_straight(flown):
    figures, _ = flown
    assert figures["nominal_peak_tilt"] < 3
    assert figures["nominal_peak_yaw"] < 1
    assert figures["nominal_max_height"] > 1


def test_the_picture_has_a_mark_for_every_trial_and_case(flown):
    text = (flown[1] / "figures" / "outcomes.svg").read_text()
    plot, _, legend = text.partition('<g id="legend_1">')
    marks = plot.split('<g id="PathCollection_')[1:]
    assert [part.partition('<g id="matplotlib.axis')[0].count("<use") for part in marks] == [8] * 5
    assert legend.count('<g id="PathCollection_') == 5


def test_finished_trials_are_not_flown_again(flown, monkeypatch):
    figures, folder = flown
    monkeypatch.setattr("jethr2.studies.fly_chunk", None)
    monkeypatch.setattr(claims, "N", 8)
    assert claims.take_offs(Trial(0, folder)) == figures


@pytest.mark.slow
def test_the_tuned_baseline_is_what_the_grid_chooses():
    assert tune_baseline() == claims.tuned_baseline()


@pytest.mark.slow
def test_the_claims_hold(tmp_path):
    with Run.open(tmp_path / "run", {}) as run:
        results = evaluate(claims.CLAIMS, workers=2, run=run, progress=False)
    assert {result.claim.id: result.outcome for result in results} == dict.fromkeys(
        ("spin", "spin-success", "dive", "dive-tuned", "lift", "reliable"), "reproduced"
    )
    for figures in results[0].figures.values():
        # Criteria (a) to (e) of section 7, seed by seed.
        assert figures["full_success_low"] >= 0.90
        assert figures["full_over_differential_p"] < 1e-6
        assert figures["full_over_none_p"] < 1e-6
        assert figures["spin"] > math.log(5)
        assert figures["lift"] > 0
