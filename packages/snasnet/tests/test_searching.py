"""Searches: the same ranking whoever scores, nothing scored twice, one failure costs one cell."""

import functools
import json
import os
import signal

import numpy as np
import pytest
import torch
from torch.nn import functional

from core_utils.data import digits
from core_utils.jobs import JobError, JobResult
from core_utils.runs import Run
from snasnet import searching
from snasnet.cells import Cell
from snasnet.costs import Constraints, most_sops, parameters
from snasnet.networks import SNASNet
from snasnet.scoring import score_cell
from snasnet.searching import search
from snasnet.spaces import SearchSpace
from snasnet.specs import DatasetSpec

SPEC = DatasetSpec(1, 8, 10)
OPTIONS = {"width": 3, "hidden": 8, "T": 2}
SPACE = SearchSpace("backward")


@pytest.fixture(scope="module")
def batch():
    return torch.from_numpy(digits().x_train[:12, None] / 16).float()


@functools.cache
def score_once(cell, spec, seed, options):
    """What a job gives is decided by these; tests share it."""
    return searching.score_job(searching.Job(cell, spec, *BATCH, "sahd", "code", 1, seed, options))


BATCH = []
"""File and device of the batch."""


@pytest.fixture
def scored(monkeypatch, tmp_path_factory, batch):
    """Jobs run in this process, one after the other, and are counted; the real pool has a test of its own."""
    seen, original = [], searching.score_job
    if not BATCH:
        BATCH[:] = tmp_path_factory.mktemp("batch") / "batch.npy", "cpu"
        np.save(BATCH[0], batch.numpy())

    def inline(function, jobs, *, done=(), **_):
        for key, job in jobs.items():
            if key in done:
                continue
            seen.append(key)
            try:
                known = function is original
                value = score_once(job.cell, job.spec, job.seed, job.options) if known else function(job)
                yield JobResult(key, value, None, 0.1)
            except RuntimeError as error:
                yield JobResult(key, None, JobError("RuntimeError", str(error)), 0.1)

    monkeypatch.setattr(searching, "map_jobs", inline)
    return seen


def find(batch, **words):
    space = words.pop("space", SPACE)
    return search(space, SPEC, batch, **{"n": 14, "options": OPTIONS, "progress": False} | words)


def ranking(result):
    return [(row["id"], row["score"], row["draws"], row["status"]) for row in result.table]


def test_processes_rank_as_one_process_does(batch, tmp_path):
    with Run.open(tmp_path / "two", {}) as run:
        two = find(batch, n=6, workers=2, run=run)
    expected = {cell.id: score_cell(cell, SPEC, batch, **OPTIONS).score for cell in two.top(12)}
    assert {row["id"]: row["score"] for row in two.table if row["status"] == "ok"} == expected
    assert list(expected.values()) == sorted(expected.values(), reverse=True)
    assert two.best.id == two.table[0]["id"]
    best = json.loads((tmp_path / "two/best.json").read_text())
    assert (best["best"]["id"], best["draws"]) == (two.best.id, 6)


def test_a_cell_that_is_drawn_twice_is_scored_once(batch, scored):
    result = find(batch, n=30, space=SearchSpace("forward", ops=(0, 1, 2)))
    assert len(scored) == len(set(scored)) == len(result.table) < 30
    assert sum(row["draws"] for row in result.table) == result.draws == 30
    row = result.table[0]
    cell = Cell(row["matrix"])
    model = SNASNet(cell, SPEC, **OPTIONS)
    assert row["params"] == sum(parameter.numel() for parameter in model.parameters())
    assert (row["convs"], row["backward"]) == (cell.n_convs, cell.n_backward)
    assert set(row["rates"]) == {name for name, module in model.named_modules() if type(module).__name__ == "Neurons"}


@pytest.mark.parametrize("strategy", searching.STRATEGIES)
def test_a_search_that_was_cut_ranks_as_one_that_was_not(batch, scored, tmp_path, strategy):
    words = {"strategy": strategy, "n": 14, "seed": 3, "space": SearchSpace("forward", ops=(0, 1, 2))}
    whole = find(batch, **words)
    with Run.open(tmp_path / "run", {}) as run:
        find(batch, run=run, **words)
    log = tmp_path / "run/log.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:6]) + lines[6][:20])  # a torn line, as a killed process leaves it
    before = len(scored)
    with Run.open(tmp_path / "run", {}, resume=True) as run:
        resumed = find(batch, run=run, **words)
    assert ranking(resumed) == ranking(whole)
    assert len(scored) - before == len(whole.table) - 6


def test_a_signal_ends_the_search_with_the_best_so_far(batch, scored, tmp_path, monkeypatch):
    whole = find(batch, n=10)
    original = searching.score_job

    def interrupted(job):
        if len(scored) == len(whole.table) + 3:
            signal.raise_signal(signal.SIGINT)
        return original(job)

    monkeypatch.setattr(searching, "score_job", interrupted)
    with Run.open(tmp_path / "run", {}) as run, pytest.raises(KeyboardInterrupt):
        find(batch, n=10, run=run)
    assert len((tmp_path / "run/log.jsonl").read_text().splitlines()) == 3
    assert json.loads((tmp_path / "run/best.json").read_text())["cells"] == 3
    monkeypatch.setattr(searching, "score_job", original)
    with Run.open(tmp_path / "run", {}, resume=True) as run:
        assert ranking(find(batch, n=10, run=run)) == ranking(whole)


def test_the_log_reaches_the_disk_every_few_seconds(batch, scored, tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.path.realpath(f"/proc/self/fd/{descriptor}")))
    monkeypatch.setattr(searching, "SYNC_SECONDS", 0.0)
    with Run.open(tmp_path / "run", {}) as run:
        rows = find(batch, n=5, run=run).table
    assert synced.count(str(tmp_path / "run/log.jsonl")) == len(rows)


def test_candidates_in_work_are_finished_after_a_signal(batch, scored, tmp_path, monkeypatch):
    original = searching.score_job

    def interrupted(job):
        if len(scored) == 3:
            signal.raise_signal(signal.SIGINT)
        return original(job)

    monkeypatch.setattr(searching, "score_job", interrupted)
    with Run.open(tmp_path / "run", {}) as run, pytest.raises(KeyboardInterrupt):
        find(batch, n=14, run=run, workers=2)
    assert len((tmp_path / "run/log.jsonl").read_text().splitlines()) == 4


def test_the_front_holds_what_no_other_cell_beats():
    def row(name, score, params, sops, status="ok"):
        return {"id": name, "score": score, "params": params, "sops": sops, "status": status}

    table = (
        row("best", -1.0, 9, 9),
        row("lean", -2.0, 5, 9),
        row("as good, but larger", -2.0, 6, 9),
        row("leanest", -9.0, 5, 1),
        row("degenerate", None, 1, 1, "degenerate"),
    )
    assert searching.SearchResult(table).front == ["best", "lean", "leanest"]
    assert searching.SearchResult(table[-1:]).front == []


def test_one_cell_that_fails_is_recorded_and_ranked_last(batch, scored, tmp_path, monkeypatch):
    original = searching.score_job

    def fails_without_convolutions(job):
        if Cell(job.cell).n_convs == 0:
            raise RuntimeError("no convolution")
        return original(job)

    monkeypatch.setattr(searching, "score_job", fails_without_convolutions)
    with Run.open(tmp_path / "run", {}) as run:
        result = find(batch, run=run)
    failed = [row for row in result.table if row["status"] == "failed"]
    assert failed == list(result.table[-len(failed) :])
    assert {row["error"] for row in failed} == {"RuntimeError: no convolution"}
    assert result.count("failed") == json.loads((tmp_path / "run/best.json").read_text())["failed"] == len(failed) > 0
    monkeypatch.setattr(searching, "score_job", original)
    with Run.open(tmp_path / "run", {}, resume=True) as run:  # failures are tried again
        assert find(batch, run=run).count("failed") == 0


def test_degenerate_cells_are_counted_and_never_win(batch, scored):
    result = find(batch, options=OPTIONS | {"threshold": 1e6})
    assert result.count("degenerate") == len(result.table)
    assert result.top(5) == []
    with pytest.raises(ValueError, match="no cell has a score"):
        result.best  # noqa: B018


def test_settings_of_another_search_are_refused_by_the_run(batch, scored, tmp_path):
    with Run.open(tmp_path / "run", {"seed": 0}) as run:
        find(batch, run=run, n=5)
    with pytest.raises(ValueError, match="run"):
        Run.open(tmp_path / "run", {"seed": 1}, resume=True)
    with Run.open(tmp_path / "run", {"seed": 0}, resume=True) as run, pytest.raises(ValueError, match="holds scores"):
        find(batch, run=run, n=5, resume=False)


def test_an_exhaustive_search_takes_every_cell_once(batch, scored):
    space = SearchSpace("forward", ops=(0, 2))
    result = search(space, SPEC, batch, "exhaustive", n=1000, options=OPTIONS, progress=False)
    assert {row["id"] for row in result.table} == {cell.id for cell in space.enumerate()}
    assert {row["draws"] for row in result.table} == {1}


@pytest.mark.slow
def test_evolution_finds_better_cells_than_as_many_draws_do(batch, scored):
    mean = {}
    for strategy in ("random", "evolution"):
        tops = []
        for seed in range(3):
            table = find(batch, strategy=strategy, n=60, seed=seed).table
            tops.append(np.mean([row["score"] for row in table[:10]]))
        mean[strategy] = np.mean(tops)
    assert mean["evolution"] > mean["random"]


def test_cells_that_break_a_constraint_are_never_scored(batch, scored, monkeypatch):
    limit = parameters(Cell("0002 0000 0000 0000"), SPEC, **OPTIONS)
    found = find(batch, constraints=Constraints(max_params=limit, min_convs=1), n=8)
    assert all(row["params"] <= limit and row["convs"] >= 1 for row in found.table)
    monkeypatch.setattr(searching, "MOST_REJECTED", 50)
    with pytest.raises(ValueError, match=r"none of 50 draws keeps the constraints .the closest: .* has \d+ parameters"):
        find(batch, constraints=Constraints(max_params=10))


@pytest.mark.parametrize(
    "options",
    [
        {"width": 4, "hidden": 16, "T": 3, "p2": 2},
        {"width": 4, "T": 2, "head": "gap", "group": 3},
        {"width": 2, "hidden": 8, "T": 1, "stem_stride": 2, "p2": 1},
    ],
)
@pytest.mark.parametrize("text", ["0302 0030 3003 0000", "0302 0020 0003 0000", "0001 0000 0000 0000"])
def test_costs_are_counted_without_a_network_as_on_one(text, options):
    cell, spec = Cell(text), DatasetSpec(2, (8, 16), 3)
    model = SNASNet(cell, spec, compat=True, **options)  # which computes all feedback
    assert parameters(cell, spec, **options) == sum(parameter.numel() for parameter in model.parameters())
    synapses = 0

    def count(layer, inputs, _):
        """All inputs 1 and all weights 1: the sum is the number of synapses."""
        nonlocal synapses
        x, weight = torch.ones_like(inputs[0]), torch.ones_like(layer.weight)
        conv = isinstance(layer, torch.nn.Conv2d)
        reached = functional.conv2d(x, weight, padding=layer.padding) if conv else functional.linear(x, weight)
        pooled = {model.hidden: options.get("p2", 2) ** 2, model.readout: 1}
        if "head" in options:
            pooled[model.readout] = 4 * 8
        synapses += int(reached.sum()) * pooled.get(layer, 1)

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and module is not model.stem:
            module.register_forward_hook(count)
    model(torch.rand(1, 2, 8, 16))
    assert most_sops(cell, spec, **options) == synapses


@pytest.mark.slow
def test_dask_ranks_as_processes_do(batch):
    import distributed

    here = find(batch, n=10)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
    ) as cluster:
        assert ranking(find(batch, n=10, cluster=cluster.scheduler_address)) == ranking(here)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [({"strategy": "greedy"}, "strategy must be one of random"), ({"n": 0}, "n must be at least 1")],
)
def test_searches_that_cannot_be_are_refused(batch, words, complaint):
    with pytest.raises(ValueError, match=complaint):
        find(batch, **words)
