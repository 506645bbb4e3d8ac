import dataclasses

import pytest

from core_utils.claims import Trial, evaluate, load
from core_utils.runs import Run
from mqbench_lite import claims, miniature
from mqbench_lite.claims import CLAIMS, deployment


@pytest.fixture
def trial(tmp_path, monkeypatch):
    monkeypatch.setattr(miniature, "EPOCHS", 1)
    return Trial(seed=0, workdir=tmp_path / "trials" / "0", data=None, device="cpu", full=False)


def test_the_claims_are_those_of_the_entry_point_and_each_names_its_source():
    assert load("mqbench_lite.claims:CLAIMS") == CLAIMS
    assert [claim.id for claim in CLAIMS] == [
        "academic-equal",
        "hardware-gap",
        "lsq-gap",
        "lsq-gap-mse",
        "integers-exact",
    ]
    assert all("2111.03759" in claim.source for claim in CLAIMS[:-1])
    assert {claim.exact for claim in CLAIMS} == {False, True}


def test_the_integer_model_is_onnx_runtime_to_the_bit_and_the_verdict_says_so(trial):
    figures = deployment(trial)
    assert (figures["differing"], figures["logits"], figures["layers_on_integers"]) == (0.0, 20000.0, 100.0)
    assert (trial.workdir / "residual-w8a8.onnx").is_file()


def test_every_figure_that_a_claim_judges_is_measured(trial, monkeypatch):
    monkeypatch.setattr(claims, "STEPS", 2)
    monkeypatch.setattr(claims, "HARDWARE", ("tvm", "snpe"))
    monkeypatch.setattr(claims, "TRAINED_ON", ("tvm",))
    monkeypatch.setattr(claims, "CALIBRATION", 64)
    figures = claims.benchmark(trial)
    judged = {claim.effect for claim in CLAIMS if claim.measure is claims.benchmark}
    assert judged <= set(figures)
    hardware = min(figures["minmax_w4a4_tvm"], figures["minmax_w4a4_snpe"])
    assert figures["ranges_gap"] == figures["minmax_w4a4_academic"] - hardware
    assert figures["lsq_gap_mean"] == figures["lsq_mean_w3a3_academic"] - figures["lsq_mean_w3a3_tvm"]
    three = [figures[f"{name}_w3a3_academic"] for name in ("lsq", "ste", "pact")]
    assert figures["closeness"] == min(three) - max(three) <= 0
    again = claims.benchmark(dataclasses.replace(trial))  # every point is read from its folder
    assert again == figures


@pytest.mark.slow
def test_all_claims_get_a_verdict(tmp_path):
    with Run.open(tmp_path / "run", {"claims": "all"}) as run:
        results = evaluate(CLAIMS, seeds=3, workers=2, cluster=None, data=None, device="cpu", full=False, run=run)
    verdicts = {result.claim.id: result.outcome for result in results}
    assert verdicts["integers-exact"] == "reproduced"
    assert "crashed" not in verdicts.values()
