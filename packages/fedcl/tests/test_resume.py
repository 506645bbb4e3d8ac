"""A federation that is stopped, killed or finds a damaged checkpoint goes on bit for bit."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from federations import convolutional, federation, scenario

from core_utils.runs import Run, RunError
from core_utils.states import unpack
from fedcl import FedAvgM, FedYogi


def ran(path, rounds=None, optimizer=FedYogi, model=None, data=None, **protocol):
    """Runs all rounds, or stops after some as a crash between two of them would."""
    options = {"model": model} if model else {}
    run = federation(optimizer(0.1), rounds=3, data=data, scope="shared", **options, **protocol)

    class CrashError(Exception):
        pass

    def crash(record):
        if rounds is not None and record.round + 1 == rounds:
            raise CrashError

    with Run.open(path, run.config, resume=True) as folder:
        try:
            result = run.run([crash], run=folder)
        except CrashError:
            return run, None
        return run, result


def logged(path):
    lines = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    return [{**line, "seconds": 0.0} for line in lines]


def assert_same(one, other):
    a, b = one.server.state(), other.server.state()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    np.testing.assert_array_equal(one.accuracy, other.accuracy)


@pytest.mark.parametrize("optimizer", [FedYogi, FedAvgM])
@pytest.mark.parametrize("stops", [(3,), (2, 5)])
def test_stopped_and_resumed_is_uninterrupted(tmp_path, optimizer, stops):
    whole, expected = ran(tmp_path / "whole", optimizer=optimizer)
    for stop in stops:
        ran(tmp_path / "parts", stop, optimizer=optimizer)
    parts, result = ran(tmp_path / "parts", optimizer=optimizer)
    assert_same(whole, parts)
    assert logged(tmp_path / "whole") == logged(tmp_path / "parts")
    assert [r.round for r in result.history] == list(range(6))
    np.testing.assert_array_equal(result.untrained, expected.untrained)
    assert result.figures == pytest.approx(expected.figures, nan_ok=True, abs=0, rel=0)


def test_running_statistics_and_counts_are_kept(tmp_path):
    whole, _ = ran(tmp_path / "whole", model=convolutional)
    ran(tmp_path / "parts", 4, model=convolutional)
    parts, _ = ran(tmp_path / "parts", model=convolutional)
    assert_same(whole, parts)
    assert parts.server.theta(0).counted.item() > 0


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, damage, caplog):
    whole, _ = ran(tmp_path / "whole")
    ran(tmp_path / "parts", 4)
    newest = tmp_path / "parts/checkpoint/federation.safetensors"
    content = newest.read_bytes()
    changed = {"truncated": content[:-100], "flipped": content[:-9] + b"\x55" + content[-8:], "empty": b""}[damage]
    newest.write_bytes(changed)
    parts, _ = ran(tmp_path / "parts")
    assert "federation.safetensors" in caplog.text
    assert_same(whole, parts)
    assert logged(tmp_path / "whole") == logged(tmp_path / "parts")
    environment = json.loads((tmp_path / "parts/environment.json").read_text())
    assert "the state before it was used" in environment["fallbacks"][0]


def test_a_killed_log_line_without_its_checkpoint_is_run_again(tmp_path):
    whole, _ = ran(tmp_path / "whole")
    ran(tmp_path / "parts", 3)
    log = tmp_path / "parts/log.jsonl"
    log.write_text(log.read_text() + (tmp_path / "whole/log.jsonl").read_text().splitlines(keepends=True)[3])
    parts, _ = ran(tmp_path / "parts")
    assert_same(whole, parts)
    assert logged(tmp_path / "whole") == logged(tmp_path / "parts")


def test_a_checkpoint_of_other_data_or_settings_is_refused(tmp_path):
    run, _ = ran(tmp_path / "run", 2)
    with pytest.raises(RunError, match="holds a run of another configuration"):
        ran(tmp_path / "run", seed=1)
    other = federation(FedYogi(0.1), rounds=3, data=scenario(seed=5), scope="shared")
    with (
        Run.open(tmp_path / "run", run.config, resume=True) as folder,
        pytest.raises(RunError, match="of another scenario"),
    ):
        other.run(run=folder)


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from federations import federation
from core_utils.runs import Run
from fedcl import FedYogi
run = federation(FedYogi(0.1), rounds=20, scope="shared")
with Run.open({path!r}, run.config, resume=True) as folder:
    folder.finish(run.run(run=folder).figures)
"""


def test_killed_at_any_moment_it_goes_on_bit_for_bit(tmp_path):
    tests = str(Path(__file__).parent)

    def start(path):
        script = SCRIPT.format(tests=tests, path=str(path))
        return subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)

    assert start(tmp_path / "whole").wait(timeout=300) == 0
    kills = 0
    for attempt in range(30):
        process = start(tmp_path / "parts")
        log, end = tmp_path / "parts/log.jsonl", time.monotonic() + 120
        begun = log.stat().st_size if log.is_file() else 0
        while (
            process.poll() is None and time.monotonic() < end and (log.stat().st_size if log.is_file() else 0) <= begun
        ):
            time.sleep(0.002)
        time.sleep(0.013 * attempt)
        if process.poll() is None and kills < 2:
            process.send_signal(signal.SIGKILL)
            kills += process.wait(timeout=60) != 0
        elif process.wait(timeout=300) == 0:
            break
    assert kills >= 1
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
    files = [(tmp_path / name / "checkpoint/federation.safetensors").read_bytes() for name in ("whole", "parts")]
    (tensors, facts, owner), (others, *same) = (unpack(file) for file in files)
    assert [facts, owner] == same
    assert tensors.keys() == others.keys()
    assert all((tensors[name] == others[name]).all() for name in tensors)
