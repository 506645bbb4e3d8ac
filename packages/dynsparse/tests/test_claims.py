"""The claims' arithmetic, on a training of a few steps."""

import pytest

from core_utils.claims import Trial
from core_utils.data import Split
from dynsparse import claims, miniature_images
from dynsparse.claims import ARMS, CLAIMS, cifar10, miniature


@pytest.fixture
def short(monkeypatch):
    """200 images, once through."""
    split = miniature_images()
    few = Split(split.x_train[:200], split.y_train[:200], split.x_test[:200], split.y_test[:200])
    monkeypatch.setattr("dynsparse.miniature.miniature_images", lambda data=None: few)
    monkeypatch.setattr(claims, "EPOCHS", 1)


def test_effects_are_differences_of_the_arms(short, tmp_path):
    figures = miniature(Trial(seed=0, workdir=tmp_path))
    accuracy = {arm: figures[f"{arm}_accuracy"] for arm in ARMS}
    assert figures["dynamic_gain"] == pytest.approx(accuracy["dynamic"] - accuracy["static"])
    assert figures["masked_gain"] == pytest.approx(accuracy["masked"] - accuracy["static"])
    assert figures["sparse_over_dense"] == pytest.approx(accuracy["sd75"] - accuracy["dynamic"])
    assert figures["sparse_over_static"] == pytest.approx(accuracy["sd90"] - accuracy["static"])
    assert figures["shared_over_independent"] == pytest.approx(accuracy["sd75_shared"] - accuracy["sd75"])
    assert figures["sd90_nonzero"] < figures["static_nonzero"] < figures["sd75_nonzero"] < figures["dynamic_nonzero"]
    assert figures["sd75_shared_union_density"] == pytest.approx(0.25, abs=2e-3)
    assert figures["sd75_union_density"] > 0.4
    assert figures["masked_madds"] < figures["static_madds"]
    assert (tmp_path / "figures/pareto.svg").read_text().count("<svg") == 1
    logs = {arm: (tmp_path / arm / "log.jsonl").read_text() for arm in ARMS}
    assert miniature(Trial(seed=0, workdir=tmp_path)) == figures  # the stored states are taken up
    assert {arm: (tmp_path / arm / "log.jsonl").read_text() for arm in ARMS} == logs


def test_the_demos_claims_rest_on_one_experiment_of_five_seeds():
    demo = [claim for claim in CLAIMS if not claim.full_only]
    assert {(claim.measure, claim.seeds) for claim in demo} == {(miniature, 5)}
    assert [claim.id for claim in demo if claim.margin] == ["sparse-keeps-dynamic"]
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS) == 5


def test_the_large_claim_asks_for_its_data(tmp_path):
    with pytest.raises(ValueError, match="claim cifar10 needs CIFAR-10"):
        cifar10(Trial(seed=0, workdir=tmp_path))
