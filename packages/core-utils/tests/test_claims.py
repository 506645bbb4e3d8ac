import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from core_utils import claims
from core_utils.claims import Claim, Trial, discover, evaluate, judge
from core_utils.errors import UserError
from core_utils.runs import Run

pytestmark = pytest.mark.bare


def counted(trial: Trial):
    """Notes its execution in a file named by the environment, so that the parent can count."""
    with Path(os.environ["COUNT_FILE"]).open("a") as file:
        file.write(f"{trial.seed} {trial.full}\n")
    return {
        "gain": 1.0 + 0.1 * trial.seed,
        "loss": -1.0 - 0.1 * trial.seed,
        "sign": (-1.0) ** trial.seed,
        "zero": 0.0,
        "nan": np.nan,
    }


def crashes(trial: Trial):
    raise RuntimeError("no such luck")


def dies(trial: Trial):
    os._exit(1)


def wants_data(trial: Trial):
    raise UserError(f"data folder {trial.data} does not exist")


def claim(effect="gain", measure=counted, **more):
    return Claim(effect, "It gains.", "paper, table 1", "1-5 points", "points", measure, effect=effect, **more)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("COUNT_FILE", str(tmp_path / "count"))
    with Run.open(tmp_path / "run", {}) as run:
        yield run


def executions(run):
    file = run.path.parent / "count"
    return sorted(file.read_text().splitlines()) if file.exists() else []


@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=30), st.floats(-10, 10))
def test_the_interval_is_scipys(effects, margin):
    stats = pytest.importorskip("scipy.stats")
    assume(np.ptp(effects) > 1e-6)
    verdict = judge(effects, margin)
    low, high = stats.t.interval(0.95, len(effects) - 1, np.mean(effects), stats.sem(effects))
    assert verdict.low == pytest.approx(low, rel=1e-12, abs=1e-12)
    assert verdict.high == pytest.approx(high, rel=1e-12, abs=1e-12)
    assert verdict.n == len(effects)
    assert verdict.kind == (
        "reproduced" if verdict.low > margin else "refuted" if verdict.high < margin else "inconclusive"
    )


@pytest.mark.parametrize(
    ("value", "margin", "kind"), [(1.0, 0.0, "reproduced"), (-1.0, 0.0, "refuted"), (0.5, 0.5, "inconclusive")]
)
def test_effects_without_spread_are_their_own_interval(value, margin, kind):
    verdict = judge([value] * 4, margin)
    assert (verdict.kind, verdict.mean, verdict.low, verdict.high) == (kind, value, value, value)


def test_a_margin_of_minus_one_means_not_worse_by_more_than_one():
    assert judge([-0.5, -0.4, -0.6], -1.0).kind == "reproduced"
    assert judge([-1.5, -1.4, -1.6], -1.0).kind == "refuted"


@pytest.mark.parametrize(
    ("deviations", "kind"),
    [([0.0], "reproduced"), ([0.0, 1e-300], "refuted"), ([0.0, -0.0], "reproduced"), ([-1.0, 1.0], "refuted")],
)
def test_an_exact_claim_wants_every_deviation_to_be_zero(deviations, kind):
    assert judge(deviations, exact=True).kind == kind


@pytest.mark.parametrize("effects", [[], [1.0, 2.0], [1.0, np.nan, 2.0], [np.inf] * 3, np.ones((1, 3))])
def test_what_cannot_be_judged_is_an_error(effects):
    with pytest.raises(UserError):
        judge(effects)


def test_claims_of_one_measure_share_its_executions(run):
    results = evaluate([claim("gain"), claim("loss"), claim("sign")], workers=2, run=run, progress=False)
    assert [result.outcome for result in results] == ["reproduced", "refuted", "inconclusive"]
    assert executions(run) == [f"{seed} False" for seed in range(5)]
    assert results[0].effects == pytest.approx({seed: 1 + 0.1 * seed for seed in range(5)})
    assert results[1].figures[0]["gain"] == 1.0


def test_finished_trials_are_not_repeated_and_other_settings_are(run):
    evaluate([claim()], seeds=3, run=run, progress=False)
    evaluate([claim()], seeds=4, run=run, progress=False)
    assert executions(run) == ["0 False", "1 False", "2 False", "3 False"]
    evaluate([claim()], seeds=3, full=True, run=run, progress=False)
    assert [line for line in executions(run) if line.endswith("True")] == ["0 True", "1 True", "2 True"]


def test_a_changed_source_repeats_its_trials(run, monkeypatch):
    evaluate([claim()], seeds=3, run=run, progress=False)
    monkeypatch.setattr(claims, "source_digest", lambda package: "changed")
    evaluate([claim()], seeds=3, run=run, progress=False)
    assert len(executions(run)) == 6


def test_the_source_digest_follows_the_files(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "measured_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    digests = set()
    for text in ("a = 1", "a = 2"):
        (package / "method.py").write_text(text)
        claims.source_digest.cache_clear()
        digests.add(claims.source_digest("measured_package"))
    claims.source_digest.cache_clear()
    assert len(digests) == 2


def test_a_crash_leaves_the_other_claims_alone(run):
    results = evaluate(
        [claim("effect", crashes), claim(), claim("effect", dies)], seeds=3, workers=2, run=run, progress=False
    )
    assert [result.outcome for result in results] == ["crashed", "reproduced", "crashed"]
    assert str(results[0].error) == "RuntimeError: no such luck"
    assert results[2].error.kind == "died"


@pytest.mark.parametrize(("effect", "complaint"), [("nan", "finite"), ("absent", "gives no figure 'absent'")])
def test_a_figure_that_cannot_be_judged_is_a_crash_of_its_claim(run, effect, complaint):
    results = evaluate([claim(effect), claim()], seeds=3, run=run, progress=False)
    assert [result.outcome for result in results] == ["crashed", "reproduced"]
    assert complaint in results[0].error.message


def test_bad_input_of_a_trial_is_told_from_a_crash_and_hides_no_other_claim(run):
    bad, good = evaluate([claim("effect", wants_data), claim()], seeds=3, data=Path("nowhere"), run=run, progress=False)
    assert bad.error.user
    assert bad.error.message == "data folder nowhere does not exist"
    assert good.outcome == "reproduced"


def test_too_few_seeds_are_refused_before_anything_runs(run):
    for seeds in (0, 1, 2):
        with pytest.raises(UserError, match=f"--seeds {seeds} is too few for claim 'gain'"):
            evaluate([claim()], seeds=seeds, run=run, progress=False)
    (exact,) = evaluate([claim("zero", exact=True)], seeds=1, run=run, progress=False)
    assert exact.outcome == "reproduced"
    assert executions(run) == ["0 False"]


def test_a_long_claim_waits_for_full(run):
    long = claim(full_only=True)
    (result,) = evaluate([long], seeds=3, run=run, progress=False)
    assert result.outcome == "not run in the demo"
    assert executions(run) == []
    (result,) = evaluate([long], seeds=3, full=True, run=run, progress=False)
    assert result.outcome == "reproduced"


def test_the_number_of_workers_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("COUNT_FILE", str(tmp_path / "count"))
    verdicts = []
    for workers in (1, 2):
        with Run.open(tmp_path / str(workers), {}) as run:
            verdicts.append(evaluate([claim()], seeds=3, workers=workers, run=run, progress=False)[0].verdict)
    assert verdicts[0] == verdicts[1]


def test_a_broken_package_is_named_and_hides_no_other(tmp_path, monkeypatch):
    for name, module, body in (
        ("broken", "broken_claims", "import nowhere_at_all"),
        ("odd", "odd_claims", "CLAIMS = (1,)"),
        ("sound", "sound_claims", "CLAIMS = ()"),
    ):
        (tmp_path / f"{module}.py").write_text(body)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[core_utils.claims]\n{name} = {module}:CLAIMS\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    found = {package.name: package for package in discover()}
    assert found["sound"].error is None
    assert found["odd"].error == "TypeError: 1 is no Claim"
    assert found["broken"].error == "ModuleNotFoundError: No module named 'nowhere_at_all'"


def test_trials_are_stored_as_strict_json(run):
    evaluate([claim()], seeds=3, run=run, progress=False)
    files = sorted((run.path / "trials/test_claims.counted").glob("*.json"))
    assert len(files) == 3
    stored = json.loads(files[0].read_text(), parse_constant=pytest.fail)
    assert stored["figures"]["nan"] is None
    assert stored["figures"]["gain"] == 1.0
