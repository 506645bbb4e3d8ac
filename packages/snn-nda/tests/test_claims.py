"""The claims are judged from what the public names measure."""

import functools

import numpy as np
import pytest

import core_utils.spiking.events.miniature as sampling
from core_utils.claims import Trial
from snn_nda import claims
from snn_nda.claims import CLAIMS, long_miniature, miniature, other_augmentations, simsiam


@pytest.fixture
def short(monkeypatch):
    """A few epochs on two recordings a class, so that the experiment's arithmetic can be seen in seconds."""
    for name, value in (("EPOCHS", 3), ("LONG_EPOCHS", 4), ("PRETRAIN_EPOCHS", 1), ("PRETRAIN_BATCH", 10)):
        monkeypatch.setattr(claims, name, value)
    monkeypatch.setattr(sampling, "stratified", functools.partial(few, sampling.stratified))


def few(stratified, labels, per_class, rng):
    return stratified(labels, 2, rng)


def test_effects_are_differences_of_the_arms(short, tmp_path):
    figures = miniature(Trial(seed=0, workdir=tmp_path))
    for arm in ("none", "nda"):
        gap = figures[f"{arm}_train_accuracy"] - figures[f"{arm}_test_accuracy"]
        assert figures[f"{arm}_gap"] == pytest.approx(gap)
    assert figures["test_gain"] == pytest.approx(figures["nda_test_accuracy"] - figures["none_test_accuracy"])
    assert figures["gap_removed"] == pytest.approx(figures["none_gap"] - figures["nda_gap"])
    assert figures["instability_removed"] == pytest.approx(figures["none_instability"] - figures["nda_instability"])
    losses = {arm: figures[f"{arm}_test_loss"] - figures[f"{arm}_train_loss"] for arm in ("none", "nda")}
    assert figures["loss_gap_removed"] == pytest.approx(losses["none"] - losses["nda"])
    assert figures["none_test_loss"] != figures["nda_test_loss"]
    assert (tmp_path / "figures/gap.svg").read_text().count("<svg") == 1
    # The stored states are taken up, not trained again.
    logs = {arm: (tmp_path / arm / "log.jsonl").read_text() for arm in ("none", "nda")}
    assert miniature(Trial(seed=0, workdir=tmp_path)) == figures
    assert {arm: (tmp_path / arm / "log.jsonl").read_text() for arm in ("none", "nda")} == logs


def test_arms_start_from_the_same_weights_and_recordings(short, tmp_path, monkeypatch):
    """Where the augmentation does nothing, there is no difference left."""
    monkeypatch.setattr(claims, "_augmentation", lambda arm: None)
    figures = long_miniature(Trial(seed=1, workdir=tmp_path))
    assert figures["test_gain"] == figures["gap_removed"] == figures["loss_gap_removed"] == 0.0
    assert len((tmp_path / "nda/log.jsonl").read_text().splitlines()) == 4


def test_steadiness_is_measured_over_the_last_ten_epochs(short, tmp_path, monkeypatch):
    import json

    monkeypatch.setattr(claims, "EPOCHS", 12)
    figures = miniature(Trial(seed=0, workdir=tmp_path))
    records = [json.loads(line) for line in (tmp_path / "nda/log.jsonl").read_text().splitlines()]
    accuracies = [record["test_accuracy"] for record in records if "test_accuracy" in record]
    assert len(accuracies) == 10
    assert figures["nda_instability"] == pytest.approx(100 * np.std(accuracies, ddof=1))


@pytest.mark.slow
def test_other_arms_are_compared_with_none_and_with_nda(short, tmp_path):
    figures = other_augmentations(Trial(seed=0, workdir=tmp_path))
    none = figures["none_test_accuracy"]
    assert figures["noflip_test_gain"] == pytest.approx(figures["noflip_test_accuracy"] - none)
    assert figures["photometric_loss"] == pytest.approx(none - figures["photometric_test_accuracy"])
    assert figures["gain_of_the_mirror"] == pytest.approx(
        figures["nda_test_accuracy"] - figures["noflip_test_accuracy"]
    )
    losses = {figures[f"{arm}_train_loss"] for arm in ("none", "nda", "noflip", "photometric")}
    assert len(losses) == 4
    assert figures["loss_rise_removed"] == pytest.approx(figures["none_loss_rise"] - figures["nda_loss_rise"])


@pytest.mark.slow
def test_pretraining_is_compared_by_probe_and_by_fine_tuning(short, tmp_path):
    figures = simsiam(Trial(seed=0, workdir=tmp_path))
    probes = [figures[f"{name}_probe_test_accuracy"] for name in ("pretrained", "new")]
    assert figures["gain_of_probe"] == pytest.approx(probes[0] - probes[1])
    tuned = figures["fine_tuned_test_accuracy"], figures["scratch_test_accuracy"]
    assert figures["gain_of_fine_tuning"] == pytest.approx(tuned[0] - tuned[1])
    assert figures["healthy_spread"] == pytest.approx(512**-0.5)
    assert 0 < figures["spread"] <= figures["healthy_spread"] * 1.001


def test_the_miniatures_policy_is_the_specs():
    nda = claims._augmentation("nda").nda
    assert (nda.policy.flip, nda.policy.num_ops, nda.policy.ops) == (0.5, 1, ("roll", "rotate", "shear"))
    assert (nda.policy.pixels("roll", 24), nda.policy.limit("rotate"), nda.policy.limit("shear")) == (2, 15, 15)
    assert claims._augmentation("noflip").nda.policy.flip == 0.0
    assert claims._augmentation("none") is None


def test_the_demos_claims_rest_on_one_experiment_of_five_seeds():
    demo = [claim for claim in CLAIMS if not claim.full_only]
    assert [claim.id for claim in demo] == ["test-gain", "smaller-gap", "steadier"]
    assert {(claim.measure, claim.seeds, claim.margin) for claim in demo} == {(miniature, 5, 0.0)}
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS) == 9
    full = {claim.measure: claim.seeds for claim in CLAIMS if claim.full_only}
    assert full == {long_miniature: 5, other_augmentations: 3, simsiam: 3}
