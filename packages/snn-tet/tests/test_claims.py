"""The claims are judged from what the public names measure."""

import dataclasses
import functools

import pytest

import snn_tet.miniature as sampling
import snn_tet.training
from core_utils.claims import Trial
from snn_tet import claims
from snn_tet.claims import CLAIMS, CpuClock, miniature


@pytest.fixture
def short(monkeypatch):
    """Two epochs on two recordings a class, so that the experiment's arithmetic can be seen in seconds."""
    config = snn_tet.training.TrainConfig
    monkeypatch.setattr(snn_tet.training, "TrainConfig", functools.partial(config, epochs=2))
    monkeypatch.setattr(claims, "INHERITED", ((2, 1, 2e-3), (5, 1, 5e-4)))
    monkeypatch.setattr(sampling, "stratified", functools.partial(few, sampling.stratified))


def few(stratified, labels, per_class, rng):
    return stratified(labels, 2, rng)


def test_effects_are_differences_of_the_arms_on_the_same_data(short, tmp_path):
    trial = Trial(seed=0, workdir=tmp_path)
    figures = miniature(trial)
    prefixes = {arm: [figures[f"{arm}_accuracy_{step}_steps"] for step in range(1, 6)] for arm in ("sdt", "tet")}
    assert figures["gain_at_one_step"] == pytest.approx(prefixes["tet"][0] - prefixes["sdt"][0])
    assert figures["gain_at_trained_steps"] == pytest.approx(prefixes["tet"][4] - prefixes["sdt"][4])
    spreads = [max(prefixes[arm]) - min(prefixes[arm]) for arm in ("sdt", "tet")]
    assert figures["spread_removed"] == pytest.approx(spreads[0] - spreads[1])
    assert figures["gain_of_single_steps"] == pytest.approx(figures["tet_single_step"] - figures["sdt_single_step"])
    assert (tmp_path / "figures/accuracy-over-time-steps.svg").read_text().count("<svg") == 1
    assert figures["gain_of_inheritance"] == pytest.approx(figures["inherited_accuracy_5_steps"] - prefixes["tet"][4])
    assert figures["loss_rise_removed"] == pytest.approx(figures["sdt_loss_rise"] - figures["tet_loss_rise"])
    share = figures["inherited_training_seconds"] / figures["tet_training_seconds"]
    assert figures["time_share_below_60_percent"] == pytest.approx(60 - 100 * share)
    logs = {arm: (tmp_path / arm / "log.jsonl").read_text().splitlines() for arm in ("sdt", "tet", "inherited")}
    assert {arm: len(log) for arm, log in logs.items()} == {"sdt": 2, "tet": 2, "inherited": 2}
    again = miniature(dataclasses.replace(trial))  # the stored states are taken up, not trained again
    assert {name: value for name, value in again.items() if "time" not in name and "seconds" not in name} == {
        name: value for name, value in figures.items() if "time" not in name and "seconds" not in name
    }
    assert again["tet_training_seconds"] == pytest.approx(figures["tet_training_seconds"], rel=0.5)


def test_all_claims_rest_on_one_experiment():
    assert {claim.measure for claim in CLAIMS} == {miniature}
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS) == 7
    assert {claim.seeds for claim in CLAIMS} == {5}
    assert [claim.id for claim in CLAIMS if claim.margin == -1.0] == ["trained-steps", "inheritance-accuracy"]
    assert {claim.margin for claim in CLAIMS} == {0.0, -1.0}


def test_the_clock_goes_on_from_what_was_spent():
    clock = CpuClock()
    clock.load_state_dict({"seconds": 100.0})
    while clock.seconds < 100.02:
        pass
    assert 100.02 <= clock.state_dict()["seconds"] < 101
