"""The benchmarks compare the same work: both plain laws command what ours commands, and the open loop flies the same flight."""

import importlib.util
from pathlib import Path

import mujoco
import numpy as np
import pytest
from flying import robot

from jethr2 import Controller, EstimatorParams


@pytest.fixture(scope="module")
def benchmarks():
    spec = importlib.util.spec_from_file_location(
        "benchmarks", Path(__file__).parents[1] / "benchmarks" / "__init__.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["ArrayLaw", "ScalarLaw"])
def test_a_plain_law_commands_what_ours_commands(benchmarks, name):
    model, trim = robot()
    ctl, plain = Controller(model, trim, estimator=EstimatorParams(mode="truth")), getattr(benchmarks, name)(trim)
    data = mujoco.MjData(model)
    data.qpos[:] = trim.qpos
    data.qvel[3:6] = [0.3, -0.5, 0.4]
    mujoco.mj_forward(model, data)
    for step in range(700):
        ctrl = ctl.step(0.002 * step, data.sensordata[None])[0]
        np.testing.assert_allclose(plain.step(0.002 * step, data.sensordata), ctrl, atol=1e-11)
        data.ctrl[:] = ctrl
        mujoco.mj_step(model, data)
    assert data.qpos[2] > trim.base_height + 0.2  # so that the integrators ran


def test_the_open_loop_flies_what_the_closed_loop_flew(benchmarks, monkeypatch):
    monkeypatch.setattr(benchmarks, "STEPS", 450)
    monkeypatch.setattr(benchmarks, "DURATION", 0.9)
    states, sensors = benchmarks.open_loop(3, 1)()
    closed = benchmarks.closed_loop(3, 1)()
    assert states.shape[:2] == sensors.shape[:2] == (3, 450)
    rise = states[:, :, 3].max(axis=1) - robot()[1].qpos[2]
    np.testing.assert_allclose(rise, closed.metrics["full"].max_height, atol=1e-9)
    assert (rise > 0.02).all()


def test_every_side_runs(benchmarks, monkeypatch):
    monkeypatch.setattr(benchmarks, "STEPS", 5)
    monkeypatch.setattr(benchmarks, "DURATION", 0.01)
    monkeypatch.setattr(benchmarks, "EVALUATIONS", 3)
    for side in (benchmarks.array_loop, benchmarks.scalar_loop):
        assert np.isfinite(side(2)()).all()
    assert len(benchmarks.one_robot()()["time"]) == 6
    for side in (benchmarks.our_evaluations, benchmarks.array_evaluations, benchmarks.scalar_evaluations):
        side()()


def test_identifiers_are_unique_and_targets_are_those_that_were_asked_for(benchmarks):
    targets = {each.id: each.target for each in benchmarks.BENCHMARKS}
    assert len(targets) == len(benchmarks.BENCHMARKS) == 10
    assert targets["closed-loop-1"] == targets["closed-loop-2"] == 0.55
    assert targets["python-loop"] == 5
