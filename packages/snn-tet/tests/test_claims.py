"""The claims are judged from what the public names measure."""

import dataclasses
import functools
import json

import numpy as np
import pytest

import core_utils.spiking.events.miniature as sampling
import snn_tet.training
from core_utils.claims import Trial
from core_utils.errors import UserError
from snn_tet import claims, job
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
    assert figures["time_saved"] == pytest.approx(60 - 100 * share)
    logs = {arm: (tmp_path / arm / "log.jsonl").read_text().splitlines() for arm in ("sdt", "tet", "inherited")}
    assert {arm: len(log) for arm, log in logs.items()} == {"sdt": 2, "tet": 2, "inherited": 2}
    again = miniature(dataclasses.replace(trial))  # the stored states are taken up, not trained again
    assert {name: value for name, value in again.items() if "time" not in name and "seconds" not in name} == {
        name: value for name, value in figures.items() if "time" not in name and "seconds" not in name
    }
    assert again["tet_training_seconds"] == pytest.approx(figures["tet_training_seconds"], rel=0.5)


def test_the_demos_claims_rest_on_one_experiment():
    demo = [claim for claim in CLAIMS if not claim.full_only]
    assert {claim.measure for claim in demo} == {miniature}
    assert {claim.seeds for claim in demo} == {5}
    assert [claim.id for claim in demo if claim.margin == -1.0] == ["trained-steps", "inheritance-accuracy"]
    assert {claim.margin for claim in demo} == {0.0, -1.0}
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS) == 9
    assert [claim.id for claim in CLAIMS if claim.full_only] == ["cifar100", "dvs-cifar10"]


def test_the_papers_configuration_is_run_with_both_losses(tmp_path, monkeypatch):
    """CIFAR-100's layout with few images, a small network and one epoch in place of the preset's."""
    labels, rng = np.arange(100, dtype=np.uint8), np.random.default_rng(0)
    for name, copies in (("train.bin", 2), ("test.bin", 1)):
        fine = np.tile(labels, copies)
        pixels = rng.integers(0, 256, (len(fine), 3072), dtype=np.uint8)
        (tmp_path / name).write_bytes(np.column_stack([fine // 5, fine, pixels]).tobytes())
    preset = tmp_path / "quick.toml"
    lines = (
        job.preset_file("cifar100").read_text().replace("resnet19", "tiny_vgg").replace("epochs = 300", "epochs = 1")
    )
    preset.write_text(lines.replace("workers = 4", "workers = 0"))
    monkeypatch.setattr(job, "preset_file", lambda name: preset)
    figures = claims.cifar100(Trial(seed=0, workdir=tmp_path / "work", data=tmp_path, full=True))
    assert figures["gain"] == pytest.approx(figures["tet_accuracy_6_steps"] - figures["sdt_accuracy_6_steps"])
    assert sorted(figures) == sorted(
        ["gain", *(f"{arm}_accuracy_{n}_steps" for arm in ("sdt", "tet") for n in range(1, 7))]
    )
    configs = [json.loads((tmp_path / "work" / arm / "config.json").read_text())["config"] for arm in ("sdt", "tet")]
    assert [config.pop("loss") for config in configs] == ["sdt", "tet"]
    assert configs[0] == configs[1]


def test_a_paper_run_without_its_data_is_bad_input(tmp_path):
    with pytest.raises(UserError, match="dataset cifar10-dvs needs its folder"):
        claims.dvs_cifar10(Trial(seed=0, workdir=tmp_path, full=True))


def test_the_clock_goes_on_from_what_was_spent():
    clock = CpuClock()
    clock.load_state_dict({"seconds": 100.0})
    while clock.seconds < 100.02:
        pass
    assert 100.02 <= clock.state_dict()["seconds"] < 101
