import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from core_utils.runs import RunError
from jethr2 import ControllerParams, ErrorParams, ParameterError, RobotParams, ablate, monte_carlo, sweep
from jethr2.errors import JetHR2Error
from jethr2.metrics import FIGURES
from jethr2.perturbations import sample_errors
from jethr2.studies import ALL, BASELINE, tune_baseline

SHORT = {"modes": ("none", "full"), "duration": 0.6}


def bits(result):
    return {case: [getattr(metrics, name).tobytes() for name in FIGURES] for case, metrics in result.metrics.items()}


@pytest.fixture(scope="module")
def whole():
    return bits(monte_carlo(7, **SHORT, nthread=1))


@pytest.mark.parametrize(("nthread", "chunk"), [(2, 256), (3, 2), (1, 1)])
def test_threads_and_chunks_change_no_bit(whole, nthread, chunk):
    assert bits(monte_carlo(7, **SHORT, nthread=nthread, chunk=chunk)) == whole


def test_processes_change_no_bit(whole):
    assert bits(monte_carlo(7, **SHORT, workers=2, nthread=1, chunk=4)) == whole


def test_a_dask_cluster_changes_no_bit(whole):
    import distributed

    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None, silence_logs=50
    ) as cluster:
        assert bits(monte_carlo(7, **SHORT, nthread=1, chunk=4, cluster=cluster.scheduler_address)) == whole


def test_trials_do_not_depend_on_how_many_there_are(whole):
    fewer = bits(monte_carlo(3, **SHORT))
    assert all(few == many[: len(few)] for case in fewer for few, many in zip(fewer[case], whole[case], strict=True))


def test_an_interrupted_study_goes_on_to_the_same_bits_in_other_chunks(whole, tmp_path):
    def stop(done, total):
        assert total == 14
        if done == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        monte_carlo(7, **SHORT, out=tmp_path / "run", chunk=2, on_chunk=stop)
    assert sorted(each.name for each in (tmp_path / "run" / "chunks").iterdir()) == [
        "none-0000000-0000001.npz",
        "none-0000002-0000003.npz",
    ]
    assert (tmp_path / "run" / "partial.json").is_file()
    flown = []
    result = monte_carlo(
        7, **SHORT, out=tmp_path / "run", chunk=3, nthread=2, on_chunk=lambda done, _: flown.append(done)
    )
    assert bits(result) == whole
    assert flown == [7, 10, 13, 14]
    again = monte_carlo(7, **SHORT, out=tmp_path / "run", on_chunk=lambda *_: pytest.fail("nothing is left to fly"))
    assert bits(again) == whole


SCRIPT = """
import sys
from pathlib import Path
from jethr2 import monte_carlo
monte_carlo(7, ("none", "full"), duration=0.6, out=sys.argv[1], chunk=1, nthread=1, on_chunk=lambda *_: print(flush=True))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_loses_no_finished_chunk(whole, tmp_path, number):
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, tmp_path / "run"], stdout=subprocess.PIPE, cwd=tmp_path)
    for _ in range(3):
        process.stdout.readline()
    process.send_signal(number)
    process.wait(timeout=60)
    process.stdout.close()
    finished = len(list((tmp_path / "run" / "chunks").glob("*.npz")))
    assert 3 <= finished < 14
    flown = []
    result = monte_carlo(7, **SHORT, out=tmp_path / "run", chunk=1, on_chunk=lambda *_: flown.append(1))
    assert len(flown) == 14 - finished
    assert bits(result) == whole


def test_a_folder_of_another_study_is_refused_by_what_differs(tmp_path):
    monte_carlo(2, ("full",), duration=0.1, out=tmp_path / "run")
    with pytest.raises(RunError, match=r"error_scale is 1\.0 there, 2\.0 here"):
        monte_carlo(2, ("full",), 2.0, duration=0.1, out=tmp_path / "run")
    with pytest.raises(RunError, match=r"cases\.full\.damping is 0\.8 there, 0\.7 here"):
        monte_carlo(2, ("full",), duration=0.1, out=tmp_path / "run", controller=ControllerParams(damping=0.7))
    assert monte_carlo(2, ("full",), 2.0, duration=0.1, out=tmp_path / "run", overwrite=True).complete


def test_a_damaged_or_foreign_chunk_is_named(tmp_path):
    monte_carlo(2, ("full",), duration=0.1, out=tmp_path / "one")
    monte_carlo(2, ("full",), seed=1, duration=0.1, out=tmp_path / "two")
    (chunk,) = (tmp_path / "one" / "chunks").iterdir()
    (other,) = (tmp_path / "two" / "chunks").iterdir()
    other.write_bytes(chunk.read_bytes())
    with pytest.raises(JetHR2Error, match="belongs to another study"):
        monte_carlo(2, ("full",), seed=1, duration=0.1, out=tmp_path / "two")
    chunk.write_bytes(chunk.read_bytes()[:100])
    with pytest.raises(JetHR2Error, match="is damaged"):
        monte_carlo(2, ("full",), duration=0.1, out=tmp_path / "one")


def test_modes_meet_the_same_errors_and_noise():
    law = ControllerParams(mode="full")
    result = monte_carlo(3, ("full",), duration=0.4, cases={"twin": law})
    both = bits(result)
    assert both["full"] == both["twin"]


def test_given_errors_are_flown_as_the_drawn_ones(whole):
    assert bits(monte_carlo(7, **SHORT, errors=sample_errors(7), chunk=3)) == whole
    with pytest.raises(ParameterError, match="7 rows, one per trial"):
        monte_carlo(7, **SHORT, errors=sample_errors(6))


def test_the_table_counts_intervals_and_tests_of_a_few_trials():
    result = monte_carlo(12, ("none", "full"), duration=2.4)
    none, full = result.table()
    assert (none.case, full.case, full.n) == ("none", "full", 12)
    assert (none.success, full.success, full.upright) == (0, 12, 12)  # as 1 and 127 of 128 would have it
    assert result.wilson()["full"] == (full.success_low, full.success_high)
    assert full.success_low == pytest.approx(12 / (12 + 1.959964**2))
    test = result.mcnemar("full", "none")
    assert (test.only_first, test.only_second, test.p_value) == (12, 0, 2.0**-11)
    assert none.yaw_median > 5 * full.yaw_median
    median, low, high = result.median_difference("full", "none", "max_height")
    assert 0 < low <= median <= high
    with pytest.raises(ParameterError, match="case must be one of none, full"):
        result.success("fll")


def test_a_study_of_another_robot_sees_its_digest(tmp_path):
    from jethr2.robot import to_mjcf

    (tmp_path / "robot.xml").write_text(to_mjcf(RobotParams()))
    result = monte_carlo(2, ("full",), duration=0.2, robot=tmp_path / "robot.xml", out=tmp_path / "run")
    assert result.complete
    (tmp_path / "robot.xml").write_text(to_mjcf(RobotParams(joint_kp=110.0)))
    with pytest.raises(RunError, match="source is"):
        monte_carlo(2, ("full",), duration=0.2, robot=tmp_path / "robot.xml", out=tmp_path / "run")


def test_more_thrust_lifts_more_robots():
    # Section 7's sweep says the same of 48 trials.
    results = sweep("thrust_to_weight", [1.05, 1.3], modes=("full",), n=8, duration=2.5)
    assert list(results) == [1.05, 1.3]
    (weak,), (strong,) = (result.table() for result in results.values())
    assert weak.reached < strong.reached
    assert weak.height_median < strong.height_median


def test_a_sweep_reaches_controllers_and_scales_and_refuses_the_unknown(tmp_path):
    results = sweep("error_scale", [0.0, 1.0], modes=("full",), n=1, duration=0.1, out=tmp_path)
    assert [result.error_scale for result in results.values()] == [0.0, 1.0]
    assert {each.name for each in tmp_path.iterdir()} == {"error_scale=0", "error_scale=1"}
    sweep("u0", [0.9], modes=("full",), n=1, duration=0.1)
    with pytest.raises(ParameterError, match="did you mean 'fan_time_constant'"):
        sweep("fan_time_constants", [0.1])
    with pytest.raises(ParameterError, match="at least one"):
        sweep("u0", [])


def test_the_baseline_is_the_best_of_its_grid_on_other_trials():
    grid = {"natural_frequencies": (2.0, 6.0), "throttles": (1.0,)}
    chosen = tune_baseline(6, duration=2.5, **grid)
    assert chosen.mode == "differential"
    assert chosen.natural_frequency == (6.0, 6.0, 4.0)  # 2 rad/s cannot hold the unstable robot


def test_an_ablation_has_all_modes_and_the_tuned_baseline(monkeypatch):
    import jethr2.studies

    tuned = ControllerParams(mode="differential", u0=0.95)
    monkeypatch.setattr(jethr2.studies, "tune_baseline", lambda **_: tuned)
    result = ablate(2, baseline_tuned=True, duration=0.1)
    assert tuple(result.metrics) == (*ALL, BASELINE)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"n": 0}, "n must be a whole number of at least 1"),
        ({"nthread": 0}, "nthread must be"),
        ({"workers": -1}, "workers must be"),
        ({"chunk": 0}, "chunk must be"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"modes": ("ful",)}, "did you mean 'full'"),
        ({"modes": ()}, "modes must be some of none"),
        ({"backend": "cuda"}, "backend must be one of mujoco, mjx"),
        ({"error_scale": -1.0}, "error_scale must be at least 0"),
        ({"duration": 0.0}, "duration must be at least one control period"),
    ],
)
def test_what_means_nothing_is_refused_by_name(options, complaint):
    with pytest.raises(ParameterError, match=complaint):
        monte_carlo(**{"n": 2, **options})


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory's peak is read as Linux gives it")
def test_ten_thousand_trials_fit_into_a_gigabyte():
    """Figures alone are kept: what one chunk leaves behind, times their number, and one chunk's models."""
    # Not ru_maxrss, which a process inherits from the one that started it: that is as large as all tests before.
    code = (
        "import re; from pathlib import Path; from jethr2 import monte_carlo\n"
        "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "monte_carlo(256, ('full',), duration=0.002, nthread=1); first = peak()\n"
        "monte_carlo(2048, ('full',), duration=0.002, nthread=1); print(first, peak())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    first, second = (int(each) / 1024 for each in found.stdout.split())
    assert second + (10_000 - 2048) / 1792 * max(second - first, 0) < 1000


@pytest.mark.slow
def test_the_ablation_of_section_7_holds():
    result = ablate(128, 0)
    rows = {row.case: row for row in result.table()}
    # Binomial noise of the prototype's own draws: three standard errors about its counts.
    for case, low, high in (("none", 0, 4), ("differential", 1, 24), ("pitch_only", 8, 35), ("yaw_only", 3, 25)):
        assert low <= rows[case].success <= high, case
    assert rows["full"].success_low >= 0.90
    assert result.mcnemar("full", "differential").p_value < 1e-6
    assert result.mcnemar("full", "none").p_value < 1e-6
    assert result.mcnemar("full", "differential", ignore_yaw=True).p_value < 0.01
    assert rows["differential"].yaw_median > 5 * rows["full"].yaw_median
    assert rows["full"].height_median > rows["differential"].height_median
    assert 100 <= rows["differential"].upright <= 124
    assert rows["none"].tilt_median > 170


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "full"), [(2.0, 80), (3.0, 26)])
def test_larger_errors_find_the_limit_of_the_feet(scale, full):
    # Section 7, of 128; with the prototype's fixed vectoring gain. Three standard errors of two binomial draws.
    result = monte_carlo(128, error_scale=scale, controller=ControllerParams(thrust_floor=1.0))
    counts = {row.case: row.success for row in result.table()}
    assert counts["full"] == pytest.approx(full, abs=23)
    assert max(count for case, count in counts.items() if case != "full") < 20


@pytest.mark.slow
def test_joint_errors_cause_the_spin_and_mass_errors_the_dive():
    # Section 7, by source, 64 trials; success shares of none, differential, pitch_only, yaw_only, full.
    mass = monte_carlo(64, errors=ErrorParams(joint_zero_sd=0.0, fan_gain_sd=0.0))
    joints = monte_carlo(64, errors=ErrorParams(com_shift_sd=0.0, mass_sd=0.0, fan_gain_sd=0.0))
    for result, shares in ((mass, (0.02, 0.89, 0.98, 0.19, 1.0)), (joints, (0.0, 0.22, 0.22, 0.11, 1.0))):
        for mode, share in zip(ALL, shares, strict=True):
            assert result.success(mode).mean() == pytest.approx(share, abs=0.17), mode
