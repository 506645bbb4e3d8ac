"""The claims are judged from what the public names measure."""

import dataclasses
import functools

import pytest

import snn_tet.training
from core_utils.claims import Trial
from snn_tet.claims import CLAIMS, time_steps


@pytest.fixture
def short(monkeypatch):
    """Two epochs on two recordings a class, so that the experiment's arithmetic can be seen in seconds."""
    config = snn_tet.training.TrainConfig
    monkeypatch.setattr(snn_tet.training, "TrainConfig", functools.partial(config, epochs=2))
    monkeypatch.setattr(snn_tet.miniature, "stratified", functools.partial(few, snn_tet.miniature.stratified))


def few(stratified, labels, per_class, rng):
    return stratified(labels, 2, rng)


def test_effects_are_differences_of_the_arms_on_the_same_data(short, tmp_path):
    trial = Trial(seed=0, workdir=tmp_path)
    figures = time_steps(trial)
    prefixes = {arm: [figures[f"{arm}_accuracy_{step}_steps"] for step in range(1, 6)] for arm in ("sdt", "tet")}
    assert figures["gain_at_one_step"] == pytest.approx(prefixes["tet"][0] - prefixes["sdt"][0])
    assert figures["gain_at_trained_steps"] == pytest.approx(prefixes["tet"][4] - prefixes["sdt"][4])
    spreads = [max(prefixes[arm]) - min(prefixes[arm]) for arm in ("sdt", "tet")]
    assert figures["spread_removed"] == pytest.approx(spreads[0] - spreads[1])
    assert figures["gain_of_single_steps"] == pytest.approx(figures["tet_single_step"] - figures["sdt_single_step"])
    assert (tmp_path / "figures/accuracy-over-time-steps.svg").read_text().count("<svg") == 1
    logs = [(tmp_path / arm / "log.jsonl").read_text().splitlines() for arm in ("sdt", "tet")]
    assert [len(log) for log in logs] == [2, 2]
    assert time_steps(dataclasses.replace(trial)) == figures  # the stored states are taken up, not trained again


def test_all_claims_rest_on_one_experiment():
    assert {claim.measure for claim in CLAIMS} == {time_steps}
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS) == 4
    assert {claim.seeds for claim in CLAIMS} == {5}
    assert [claim.margin for claim in CLAIMS] == [0.0, 0.0, 0.0, -1.0]
