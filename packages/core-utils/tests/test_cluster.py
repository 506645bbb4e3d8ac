import pytest
from test_jobs import JOBS, check, outcomes, work

from core_utils.errors import UserError
from core_utils.jobs import map_jobs

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def cluster():
    """A Dask scheduler and two workers in processes of their own, on loopback."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None, silence_logs=50
    ) as cluster:
        yield cluster.scheduler_address


def test_a_cluster_gives_the_same(cluster):
    check(outcomes(cluster=cluster))


def test_a_cluster_that_is_not_there_is_named():
    with pytest.raises(UserError, match="no Dask scheduler answers"):
        list(map_jobs(work, JOBS, cluster="tcp://127.0.0.1:9", progress=False))
