import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from core_utils.errors import UserError
from core_utils.jobs import map_jobs

pytestmark = pytest.mark.bare

JOBS = {f"job {index:02d}": index for index in range(12)}
RAISES, DIES = 4, 7


def work(index):
    """A sum that depends on the job alone; one job raises and one takes its process along."""
    if index == RAISES:
        raise ZeroDivisionError("four is not welcome")
    if index == DIES:
        time.sleep(0.5)  # Dask's nanny gives a worker up for good that dies before its start is through
        os._exit(11)
    return float(np.random.default_rng(index).normal(size=100).sum())


def threads(_):
    return os.environ["OMP_NUM_THREADS"], os.environ["OPENBLAS_NUM_THREADS"], os.getpid()


def touch(folder):
    path, name = folder
    (path / name).touch()
    return name


def die(_):
    os._exit(1)


def complain(_):
    raise UserError("data folder nowhere does not exist")


def outcomes(**where):
    results = {result.key: result for result in map_jobs(work, JOBS, progress=False, **where)}
    assert results.keys() == JOBS.keys()
    return results


def check(results):
    failed = {key: result.error for key, result in results.items() if result.error is not None}
    assert failed.keys() == {f"job {RAISES:02d}", f"job {DIES:02d}"}
    assert str(failed[f"job {RAISES:02d}"]) == "ZeroDivisionError: four is not welcome"
    assert "four is not welcome" in failed[f"job {RAISES:02d}"].traceback
    assert failed[f"job {DIES:02d}"].kind == "died"
    expected = {
        key: np.random.default_rng(index).normal(size=100).sum() for key, index in JOBS.items() if key not in failed
    }
    assert {key: result.value for key, result in results.items() if result.error is None} == expected
    assert len(expected) == 10


@pytest.mark.parametrize("workers", [1, 2])
def test_failures_are_named_and_cost_only_themselves(workers):
    check(outcomes(workers=workers))


def test_only_what_is_missing_runs(tmp_path):
    jobs = {name: (tmp_path, name) for name in ("a", "b", "c")}
    results = list(map_jobs(touch, jobs, done={"a", "c"}, progress=False))
    assert [result.value for result in results] == ["b"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["b"]


def test_threads_are_divided_among_the_workers():
    cores = os.cpu_count()
    for workers, expected in ((1, cores), (2, max(1, cores // 2))):
        values = [result.value for result in map_jobs(threads, {"a": 0, "b": 1}, workers=workers, progress=False)]
        assert {value[:2] for value in values} == {(str(expected), str(expected))}
    assert os.getpid() not in {value[2] for value in values}


def test_every_job_may_die():
    results = list(map_jobs(die, {"a": 0, "b": 1, "c": 2}, workers=2, progress=False))
    assert sorted((result.key, result.error.kind) for result in results) == [
        ("a", "died"),
        ("b", "died"),
        ("c", "died"),
    ]


def test_what_cannot_be_sent_is_an_error_of_its_job():
    (result,) = map_jobs(touch, {"a": (sys.stdin, "x")}, progress=False)
    assert result.error is not None


def test_bad_input_is_told_from_a_bug():
    (result,) = map_jobs(complain, {"a": 0}, progress=False)
    assert result.error.user
    assert result.error.message == "data folder nowhere does not exist"


def test_nothing_to_do_starts_no_process():
    assert list(map_jobs(die, {}, progress=False)) == []


@pytest.mark.parametrize("workers", [0, -2])
def test_too_few_workers_are_refused(workers):
    with pytest.raises(UserError, match="--workers must be at least 1"):
        list(map_jobs(work, JOBS, workers=workers))


@pytest.mark.parametrize("address", ["tcp://10.1.2.3:8786", "192.168.0.4:8786", "tcp://example.test:8786"])
def test_an_open_cluster_is_refused(address):
    with pytest.raises(UserError, match="neither loopback nor TLS"):
        list(map_jobs(work, JOBS, cluster=address))


SLOW = """
import sys, time
sys.path.insert(0, {here!r})
from core_utils.jobs import map_jobs
import test_jobs
print("begin", flush=True)
list(map_jobs(test_jobs.sleep, {{str(n): {folder!r} for n in range(4)}}, workers=2))
"""


def sleep(folder):
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(60)


def test_ctrl_c_leaves_no_process_behind(tmp_path):
    here = str(Path(__file__).parent)
    parent = subprocess.Popen(
        [sys.executable, "-c", SLOW.format(here=here, folder=str(tmp_path))],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    parent.stdout.readline()
    deadline = time.time() + 30
    while len(list(tmp_path.iterdir())) < 2 and time.time() < deadline:
        time.sleep(0.05)
    workers = [int(entry.name) for entry in tmp_path.iterdir()]
    assert len(workers) == 2
    parent.send_signal(2)
    assert parent.wait(20) != 0
    parent.stdout.close()
    deadline = time.time() + 10
    while any(alive(worker) for worker in workers) and time.time() < deadline:
        time.sleep(0.05)
    assert not any(alive(worker) for worker in workers)


def alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
