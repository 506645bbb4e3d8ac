from types import SimpleNamespace
from typing import NamedTuple

import pytest
from test_jobs import JOBS, check, outcomes, work

from core_utils import jobs
from core_utils.errors import UserError
from core_utils.jobs import JobResult, map_jobs

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def cluster():
    """A Dask scheduler and two workers in processes of their own, on loopback; one death fails a job, not four."""
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None, silence_logs=50
        ) as cluster,
    ):
        yield cluster.scheduler_address


def test_a_cluster_gives_the_same(cluster):
    check(outcomes(cluster=cluster))


def test_a_result_counts_whatever_became_of_its_worker(monkeypatch):
    """A worker may die between our receiving its result and our look at the future, which by then is pending again."""

    class Future(NamedTuple):
        key: str
        status: str = "pending"

    values = {
        "sent": JobResult("sent", 1.0, None, 0.1),
        "raised": (ValueError, ValueError("bad"), None),
        "forgotten": distributed.CancelledError("by the scheduler"),
    }
    client = SimpleNamespace(submit=lambda *arguments, **_: Future(arguments[2]))
    ends = [(Future(key), value) for key, value in values.items()]
    monkeypatch.setattr(distributed, "as_completed", lambda *_, **__: iter(ends))
    results = list(jobs._one_cluster_round(client, work, dict.fromkeys(values)))
    assert [result.key for result in results] == list(values)
    assert results[0].value == 1.0
    assert [result.error and result.error.kind for result in results] == [None, "ValueError", "CancelledError"]


def test_a_cluster_that_is_not_there_is_named():
    with pytest.raises(UserError, match="no Dask scheduler answers"):
        list(map_jobs(work, JOBS, cluster="tcp://127.0.0.1:9", progress=False))
