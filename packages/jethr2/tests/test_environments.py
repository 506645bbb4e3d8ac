import math
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from flying import robot
from gymnasium.utils.env_checker import check_env

import jethr2
from jethr2 import Controller, ParameterError, simulate
from jethr2.environments import ID, TakeOffEnv, TakeOffVectorEnv
from jethr2.perturbations import canned_errors, sample_errors

jethr2.register()


def made(**options):
    return gymnasium.make(ID, **options)


def rolled(env, actions, seed=0):
    """Observations, rewards and ends of one episode."""
    seen, _ = env.reset(seed=seed)
    rows = [seen]
    results = []
    for action in actions:
        seen, reward, terminated, truncated, info = env.step(action)
        rows.append(seen)
        results.append((reward, terminated, truncated, info))
        if terminated or truncated:
            break
    return np.array(rows), results


def same_infos(got, wanted):
    """Where Gymnasium's masks say that an environment has an entry, it is the same."""
    assert got.keys() == wanted.keys()
    for name in got:
        if name.startswith("_"):
            np.testing.assert_array_equal(got[name], wanted[name])
        elif isinstance(got[name], dict):
            same_infos(got[name], wanted[name])
        else:
            mask = got[f"_{name}"]
            np.testing.assert_array_equal(got[name][mask], wanted[name][mask])


@pytest.mark.parametrize("control", ["joint", "residual"])
def test_gymnasiums_own_checker_has_nothing_to_say(control):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(made(control=control, randomize=True).unwrapped, skip_render_check=True)


def test_gymnasium_finds_it_by_the_modules_name_alone():
    code = "import gymnasium; print(gymnasium.make('jethr2.environments:JetHR2-TakeOff-v0').spec.id)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert result.stdout == f"{ID}\n"


def test_registering_twice_changes_nothing():
    before = gymnasium.spec(ID)
    jethr2.register()
    assert gymnasium.spec(ID) is before
    assert before.max_episode_steps == 300


def test_residual_control_without_actions_is_the_controllers_flight_to_the_bit():
    model, trim = robot()
    env = made(control="residual", randomize=True)
    _, info = env.reset(seed=5)
    seed = info["trial_seed"]
    for _ in range(150):
        env.step(np.zeros(14, np.float32))
    flight = simulate(model, Controller(model, trim), 1.5, sample_errors(1, seed=seed), seed, trim=trim)
    assert env.unwrapped._task.arena.qpos[0].tobytes() == flight["qpos"][-1].tobytes()
    assert env.unwrapped._task.arena.qvel[0].tobytes() == flight["qvel"][-1].tobytes()


def test_residual_control_without_actions_takes_off_within_the_episode():
    _, results = rolled(made(control="residual"), np.zeros((300, 14), np.float32))
    assert len(results) == 300
    assert results[-1][1:3] == (False, True)
    assert results[-1][3]["height"] > 3
    gained = sum(info["reward_terms"]["height"] for *_, info in results)
    assert gained == pytest.approx(10.0, abs=0.01)  # 10 per metre up to 1 m, from a start that settles by 0.1 mm
    assert sum(reward for reward, *_ in results) > 9


def test_without_thrust_the_robot_stands_and_the_height_term_stays_nothing():
    action = np.zeros(14, np.float32)
    action[10:] = -1
    seen, results = rolled(made(), [action] * 100)
    assert not any(terminated for _, terminated, *_ in results)
    assert abs(sum(info["reward_terms"]["height"] for *_, info in results)) < 0.1
    np.testing.assert_array_equal(seen[-1][30:34], 0.0)


def test_the_reward_is_the_sum_of_its_terms_and_only_height_can_be_positive():
    rng = np.random.default_rng(0)
    _, results = rolled(made(randomize=2.0), rng.uniform(-1, 1, (60, 14)).astype(np.float32))
    for reward, _, _, info in results:
        assert reward == pytest.approx(sum(info["reward_terms"].values()), abs=1e-12)
        assert max(info["reward_terms"][name] for name in ("tilt", "yaw_rate", "effort")) <= 0


def test_a_robot_that_turns_over_ends_its_episode_at_60_degrees():
    action = np.ones(14, np.float32)
    action[:10], action[10] = 0, -1  # the front fan off: it dives
    _, results = rolled(made(), [action] * 300)
    tilts = [info["tilt"] for *_, info in results]
    assert [terminated for _, terminated, *_ in results] == [tilt > math.radians(60) for tilt in tilts]
    assert results[-1][1]


def test_equal_seeds_give_equal_episodes_and_others_do_not():
    actions = np.random.default_rng(1).uniform(-1, 1, (30, 14)).astype(np.float32)
    env = made(control="residual", randomize=True)
    first, again, other = rolled(env, actions, 3)[0], rolled(env, actions, 3)[0], rolled(env, actions, 4)[0]
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


def test_a_reset_takes_errors_of_ones_own():
    env = made(control="residual")
    errors = canned_errors()[:1]
    env.reset(seed=0, options={"errors": errors})
    changed = env.unwrapped._task.arena._models[0]
    assert changed.body_mass.sum() == pytest.approx(17 + errors.mass[0], abs=1e-12)
    env.reset(seed=0, options={"errors": None})
    assert env.unwrapped._task.arena._models[0].body_mass.sum() == pytest.approx(17, abs=1e-12)


def test_the_observation_holds_what_it_says():
    env = made()
    seen, _ = env.reset(seed=0)
    _, trim = robot()
    np.testing.assert_allclose(seen[:10], trim.qpos[7:], atol=1e-6)
    np.testing.assert_array_equal(seen[10:20], 0)
    np.testing.assert_allclose(seen[20:23], [0, 0, -1], atol=1e-6)
    np.testing.assert_array_equal(seen[23:], 0)
    action = np.linspace(-1, 1, 14).astype(np.float32)
    seen, *_ = env.step(action)
    np.testing.assert_array_equal(seen[34:], action)
    # After 10 ms the fans are at throttle (1 - exp(-0.1)).
    np.testing.assert_allclose(seen[30:34], (0.5 + 0.5 * action[10:]) * (1 - math.exp(-0.1)), rtol=1e-5)


def test_body_axes_are_mujocos():
    import mujoco

    from jethr2.environments import _motions

    rng = np.random.default_rng(2)
    qpos, qvel = rng.standard_normal((20, 17)), rng.standard_normal((20, 16))
    qpos[:, 3:7] /= np.linalg.norm(qpos[:, 3:7], axis=1, keepdims=True)
    for motion, position, speed in zip(_motions(qpos, qvel), qpos, qvel, strict=True):
        flat = np.empty(9)
        mujoco.mju_quat2Mat(flat, position[3:7])
        turn = flat.reshape(3, 3)
        np.testing.assert_allclose(motion["velocity"], turn.T @ speed[:3], atol=1e-14)
        np.testing.assert_allclose(motion["up"], turn[2], atol=1e-14)
        assert motion["yaw_rate"] == pytest.approx((turn @ speed[3:6])[2], abs=1e-14)
        assert math.cos(motion["tilt"]) == pytest.approx(turn[2, 2], abs=1e-14)


@pytest.mark.parametrize("control", ["joint", "residual"])
@pytest.mark.parametrize("nthread", [1, 2])
def test_the_vector_environment_equals_single_environments_through_ends_and_new_starts(control, nthread):
    options = {"control": control, "randomize": True, "max_episode_steps": 40}
    batch = gymnasium.make_vec(ID, num_envs=5, nthread=nthread, **options)
    assert isinstance(batch, TakeOffVectorEnv)
    single = gymnasium.make_vec(ID, num_envs=5, vectorization_mode="sync", **options)
    first, info = batch.reset(seed=7)
    expected, expected_info = single.reset(seed=7)
    assert first.tobytes() == expected.tobytes()
    np.testing.assert_array_equal(info["trial_seed"], expected_info["trial_seed"])
    rng = np.random.default_rng(3)
    ends = 0
    for _ in range(90):
        actions = rng.uniform(-1, 1, (5, 14)).astype(np.float32)
        got, wanted = batch.step(actions), single.step(actions)
        for one, other in zip(got[:4], wanted[:4], strict=True):
            np.testing.assert_array_equal(one, other)
        same_infos(got[4], wanted[4])
        ends += (got[2] | got[3]).sum()
    assert ends >= 10


def test_a_robot_that_diverges_ends_alone_and_the_others_keep_their_bits():
    def flown(poke):
        env = TakeOffVectorEnv(3)
        env.reset(seed=0)
        for step in range(10):
            if poke and step == 5:
                env._task.arena._state[1, 20] = np.nan
            result = env.step(np.full((3, 14), 0.2, np.float32))
            if poke and step == 5:
                assert result[2].tolist() == [False, True, False]
                assert result[4]["diverged"].tolist() == [False, True, False]
        return result[0]

    np.testing.assert_array_equal(flown(True)[[0, 2]], flown(False)[[0, 2]])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"control": "torque"}, "control must be joint or residual"),
        ({"randomize": -1.0}, "randomize must be"),
        ({"render_mode": "human"}, "render_mode must be rgb_array or None"),
        ({"period": 0.003}, "period must be a multiple"),
    ],
)
def test_options_that_mean_nothing_are_named(options, complaint):
    with pytest.raises(ParameterError, match=complaint):
        TakeOffEnv(**options)


def test_bad_actions_and_reset_options_are_named():
    env = TakeOffEnv()
    env.reset(seed=0)
    with pytest.raises(ParameterError, match="action must be finite"):
        env.step(np.full(14, np.nan, np.float32))
    with pytest.raises(ParameterError, match="options must be errors, got 'wind'"):
        env.reset(options={"wind": 3})
    with pytest.raises(ParameterError, match="2 trials"):
        env.reset(options={"errors": canned_errors()[:2]})
    with pytest.raises(ParameterError, match="num_envs must be at least 1"):
        TakeOffVectorEnv(0)


def test_a_frame_shows_the_robot():
    env = made(render_mode="rgb_array")
    env.reset(seed=0)
    frame = env.render()
    env.close()
    assert frame.shape == (480, 480, 3)
    assert frame.dtype == np.uint8
    assert frame[200:280, 200:280].std() > 5
