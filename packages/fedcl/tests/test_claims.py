"""The claims are measured from what the public names give."""

import math

import numpy as np
import pytest
import torch

from core_utils.claims import Trial
from fedcl import claims
from fedcl.claims import CLAIMS, Laboratory, orders_and_optimizers
from fedcl.miniature import garments, miniature_backbone, miniature_scenario


def test_claims_have_ids_of_their_own_and_long_ones_stay_out_of_the_demo():
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS) == 10
    assert sum(not claim.full_only for claim in CLAIMS) == 4
    assert {claim.seeds for claim in CLAIMS} == {5}


def test_figures_follow_from_the_federations(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "ROUNDS", 1)
    monkeypatch.setattr(claims, "STEPS", 1)
    figures = orders_and_optimizers(Trial(seed=0, workdir=tmp_path))
    assert {claim.effect for claim in CLAIMS if not claim.full_only} <= set(figures)
    assert figures["log_drift_ratio"] == pytest.approx(math.log(figures["drift_independent"] / figures["drift_same"]))
    for scope in ("all", "task"):
        rates = [figures[f"{scope}_fedavg_{lr}"] for lr in (1, 2, 3)]
        assert figures[f"{scope}_gain_over_tuned"] == pytest.approx(figures[f"{scope}_fedyogi"] - max(rates))
        assert all(0 <= rate <= 100 for rate in rates)


def test_a_laboratory_gives_the_same_figures_again_and_others_for_another_seed(tmp_path):
    one, again, other = (
        Laboratory(Trial(seed=s, workdir=tmp_path)).run("task", "fedavg", 1.0, rounds=1, steps=2) for s in (0, 0, 1)
    )
    assert one == pytest.approx(again, nan_ok=True, rel=0, abs=0)
    assert one["accuracy"] != other["accuracy"]


def test_the_miniature_holds_160_images_a_client_and_task():
    scenario = miniature_scenario(0)
    assert (scenario.counts() == 80).all()
    assert scenario.num_clients == 10
    assert [len(scenario.test(task)) for task in range(5)] == [400] * 5
    assert scenario.input_shape == (1, 14, 14)
    test = garments().x_test
    assert test.shape == (2000, 1, 14, 14)


def test_the_backbone_knows_digits_and_depends_on_the_seed():
    import torch

    from fedcl.miniature import digit_images

    one, other = miniature_backbone(0, steps=60), miniature_backbone(1, steps=60)
    assert not torch.equal(one.stem[1].weight, other.stem[1].weight)
    x, y = digit_images()
    features = one.stem(x)
    for block in one.blocks:
        features = block(features)
    # Class means of what it was trained for separate: most digits lie nearest to their own.
    centres = torch.stack([features[y == label].mean(0) for label in range(10)])
    assert float((torch.cdist(features, centres).argmin(1) == y).float().mean()) > 0.8
    assert not any(parameter.requires_grad for parameter in one.parameters())
    assert np.isfinite(features.numpy()).all()


def test_the_backbone_is_the_same_on_any_number_of_threads():
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(miniature_backbone(0, steps=20).state_dict())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
