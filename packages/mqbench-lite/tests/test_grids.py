import json

import pytest
from small import config

from core_utils.jobs import _attempt
from core_utils.runs import Run
from mqbench_lite import cells, grids
from mqbench_lite.errors import MQBenchError
from mqbench_lite.grids import GridConfig, grid, run_grid

POINTS = {"algorithms": ("minmax", "mse"), "profiles": ("academic", "onnxruntime"), "bits": ("4/4",)}


@pytest.fixture
def here(monkeypatch):
    """Points are measured in this process; what processes of their own do is tested in core-utils."""

    def map_jobs(function, jobs, *, done, **_):
        yield from (_attempt(function, key, each, None) for key, each in jobs.items() if key not in done)

    monkeypatch.setattr(grids, "map_jobs", map_jobs)


def test_a_grid_has_a_point_for_every_combination(tmp_path):
    found = grid(config(tmp_path, **POINTS | {"bits": ("4/4", "8/8"), "seeds": 2}), tmp_path)
    assert len(found) == 2 * 2 * 2 * 2
    assert "mse-onnxruntime-w8a8-seed1" in found


def test_a_grid_goes_on_and_one_failure_costs_one_point(here, tmp_path, monkeypatch):
    settings, fixed = config(tmp_path, **POINTS, verify=False), tmp_path / "fixed"

    def measure(cell):
        failing = cell.key == "mse-academic-w4a4-seed0"
        assert failing or not fixed.exists(), "a finished point is not measured again"
        if failing and not fixed.exists():
            raise MQBenchError("no range")
        facts = {"network": "residual", "bits": cell.bits, "algorithm": cell.algorithm, "profile": cell.profile}
        return {**facts, "seed": cell.seed, "accuracy": 80.0, "float_accuracy": 90.0, "seconds": 1.0, "engines": {}}

    monkeypatch.setattr(cells, "measure", measure)
    with Run.open(tmp_path / "run", settings) as run:
        rows, failures = run_grid(run, settings, progress=False)
    assert len(rows) == 3
    assert {key: str(error) for key, error in failures.items()} == {"mse-academic-w4a4-seed0": "MQBenchError: no range"}
    assert "no range" in (tmp_path / "run" / "leaderboard.html").read_text()
    fixed.touch()
    with Run.open(tmp_path / "run", settings, resume=True) as run:
        rows, failures = run_grid(run, settings, progress=False)
    assert (len(rows), failures) == (4, {})
    lines = (tmp_path / "run" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["algorithm"] for line in lines] == ["minmax", "minmax", "mse", "mse"]
    for name in ("leaderboard.md", "leaderboard.csv", "leaderboard.json"):
        assert "onnxruntime" in (tmp_path / "run" / name).read_text()


@pytest.mark.slow
def test_the_page_says_which_devices_were_not_run(tmp_path):
    settings = config(tmp_path, algorithms=("minmax",), profiles=("tensorrt", "onnxruntime"), bits=("8/8",))
    with Run.open(tmp_path / "run", settings) as run:
        rows, _ = run_grid(run, settings, progress=False)
    page = (tmp_path / "run" / "leaderboard.html").read_text()
    assert page.count("exported, not run") == 1
    assert "0 of 20000" in page
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"bits": ("4",)}, "bits '4'"),
        ({"bits": ("1/4",)}, "give 2 to 8 of weights and activations"),
        ({"bits": ()}, "bits must name at least one"),
        ({"profiles": ("tensort",)}, "did you mean 'tensorrt'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options, words):
    with pytest.raises(MQBenchError, match=words):
        GridConfig(**options)


def test_an_unknown_algorithm_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(MQBenchError, match="there is no algorithm 'lsqq'"):
        grid(config(tmp_path, algorithms=("lsqq",)), tmp_path)
