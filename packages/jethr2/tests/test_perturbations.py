import mujoco
import numpy as np
import pytest
from flying import robot

from jethr2.errors import JetHR2Error, ParameterError
from jethr2.layout import JOINTS
from jethr2.params import ErrorParams
from jethr2.perturbations import Errors, canned_errors, columns, no_errors, perturbed_models, sample_errors


def test_a_trials_errors_depend_on_seed_and_index_alone():
    whole = sample_errors(40, seed=3)
    np.testing.assert_array_equal(sample_errors(5, seed=3, first=20).table, whole.table[20:25])
    first = np.random.default_rng(np.random.SeedSequence(3).spawn(40)[7]).standard_normal(17)  # as the protocol says
    np.testing.assert_allclose(whole.com_shift[7], 0.005 * first[:2])
    np.testing.assert_allclose(whole.fan_gain[7], 0.03 * first[-4:])
    assert not (sample_errors(40, seed=4).table == whole.table).any()


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_standard_deviations_are_those_of_the_parameters(distribution):
    table = sample_errors(4000, ErrorParams(distribution=distribution), seed=1).table
    expected = [0.005, 0.005, 0.2, *[np.radians(1.5)] * 10, *[0.03] * 4]
    np.testing.assert_allclose(table.std(axis=0), expected, rtol=0.06)
    np.testing.assert_allclose(table.mean(axis=0) / expected, 0, atol=0.07)


def test_uniform_and_truncated_errors_end_where_they_say():
    assert np.abs(sample_errors(500, ErrorParams(distribution="uniform")).mass).max() <= 0.2 * np.sqrt(3)
    truncated = np.abs(sample_errors(500, ErrorParams(distribution="truncated")).mass)
    assert 0.3 < truncated.max() <= 0.4


def test_the_scale_multiplies_all_errors():
    np.testing.assert_allclose(sample_errors(3, scale=2.5).table, 2.5 * sample_errors(3).table)
    assert not sample_errors(3, scale=0.0).table.any()


def test_mass_and_centre_of_mass_of_the_copy_are_what_was_asked_for():
    model, trim = robot()
    errors = no_errors(2)
    errors.mass[1], errors.com_shift[1], errors.fan_gain[1, 2] = 0.3, [0.004, -0.002], 0.05
    before, after = perturbed_models(model, errors)
    data = mujoco.MjData(model)

    def centre(one):
        data.qpos[:] = trim.qpos
        mujoco.mj_kinematics(one, data)
        return (one.body_mass @ data.xipos) / one.body_mass.sum()

    base = model.body("base").id
    assert after.body_mass.sum() == pytest.approx(17.3)
    assert after.body_subtreemass[base] == pytest.approx(17.3)  # a derived constant: mj_setConst was called
    np.testing.assert_allclose(after.body_inertia[base], model.body_inertia[base] * 1.03)
    # The base's inertial frame moves by the shift times 17/10, then weighs 10.3 of 17.3 kg with its own offset.
    offset = model.body_ipos[base, :2]
    rest = 17 * (centre(model) - trim.qpos[:3])[:2] - 10 * offset
    expected = (rest + 10.3 * (offset + np.array([0.004, -0.002]) * 1.7)) / 17.3
    np.testing.assert_allclose((centre(after) - trim.qpos[:3])[:2], expected, atol=1e-12)
    np.testing.assert_allclose(centre(before), centre(model), atol=1e-15)
    left = model.actuator("left_fan").id
    assert after.actuator_gainprm[left, 0] == pytest.approx(49.05 * 1.05)
    assert model.body_mass.sum() == pytest.approx(17.0, abs=1e-12)  # the original stays


def test_a_shift_without_a_change_of_mass_moves_the_whole_robots_centre_by_itself():
    model, trim = robot()
    errors = no_errors(1)
    errors.com_shift[0] = [0.005, -0.003]
    data = mujoco.MjData(model)
    data.qpos[:] = trim.qpos
    (moved,) = perturbed_models(model, errors)
    mujoco.mj_kinematics(moved, data)
    mujoco.mj_comPos(moved, data)
    shift = data.subtree_com[0, :2] - (trim.com[:2] + trim.qpos[:2])
    np.testing.assert_allclose(shift, [0.005, -0.003], atol=1e-12)


def test_errors_survive_a_csv_file_to_the_bit(tmp_path):
    errors = sample_errors(5, seed=9)
    errors.to_csv(tmp_path / "errors.csv")
    np.testing.assert_array_equal(Errors.from_csv(tmp_path / "errors.csv").table, errors.table)


def test_columns_come_in_any_order_and_unit(tmp_path):
    names = [name for name, _ in columns()][::-1]
    units = {"mass": "g", "com_x": "mm", "left_knee_zero": "deg", "back_gain": "%"}
    si = dict(columns())
    head = ",".join(f"{name} [{units.get(name, si[name])}]" for name in names)
    values = {"mass": 150, "com_x": -4, "left_knee_zero": 90, "back_gain": 3, "right_gain": 0.5}
    (tmp_path / "e.csv").write_text(head + "\n" + ",".join(str(values.get(name, 0)) for name in names) + "\n")
    errors = Errors.from_csv(tmp_path / "e.csv")
    assert errors.mass[0] == pytest.approx(0.15)
    np.testing.assert_allclose(errors.com_shift[0], [-0.004, 0])
    assert errors.joint_zero[0, JOINTS.index("left_knee")] == pytest.approx(np.pi / 2)
    np.testing.assert_allclose(errors.fan_gain[0], [0, 0.03, 0, 0.5])


def edited(tmp_path, old, new):
    sample_errors(2).to_csv(tmp_path / "e.csv")
    text = (tmp_path / "e.csv").read_text()
    assert old in text
    (tmp_path / "e.csv").write_text(text.replace(old, new, 1))
    return tmp_path / "e.csv"


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("com_y [m]", "com_z [m]", r"unknown column 'com_z' \(did you mean 'com_"),
        ("mass [kg]", "mass [lb]", r"'mass' has the unit 'lb' \(one of kg, g\)"),
        ("com_y [m]", "com_x [m]", "'com_x' stands there twice"),
        ("com_x [m],", "", "lacks the column .com_x. .1 of 17 are missing"),
        ("\n", "\nnan,", "line 2: 18 values in 17 columns"),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path, old, new, complaint):
    path = edited(tmp_path, old, new)
    with pytest.raises(JetHR2Error, match=complaint) as caught:
        Errors.from_csv(path)
    assert str(path) in str(caught.value)


def test_a_missing_column_and_values_that_are_no_numbers_are_named(tmp_path):
    path = tmp_path / "e.csv"
    path.write_text("com_x [m],com_y [m]\n0,0\n")
    with pytest.raises(JetHR2Error, match=r"lacks the column 'mass' \(15 of 17 are missing\)"):
        Errors.from_csv(path)
    head = ",".join(f"{name} [{unit}]" for name, unit in columns())
    path.write_text(head + "\n" + ",".join(["nan"] + ["0"] * 16) + "\n")
    with pytest.raises(JetHR2Error, match="line 2: 'nan' is no finite number"):
        Errors.from_csv(path)
    path.write_text(head + "\n")
    with pytest.raises(JetHR2Error, match="holds no trials"):
        Errors.from_csv(path)
    with pytest.raises(JetHR2Error, match="cannot be read"):
        Errors.from_csv(tmp_path / "none.csv")


def test_sixteen_samples_ship_with_the_package():
    # Made by sample_errors(16, seed=2021), rounded to a thousandth of mm, g, deg and %.
    np.testing.assert_allclose(canned_errors().table, sample_errors(16, seed=2021).table, atol=1e-5)


def test_errors_that_mean_nothing_are_refused():
    model, _ = robot()
    with pytest.raises(ParameterError, match="n must be at least 1"):
        sample_errors(0)
    with pytest.raises(ParameterError, match="seed must be at least 0"):
        sample_errors(1, seed=-1)
    with pytest.raises(ParameterError, match="error_scale"):
        sample_errors(1, scale=-1.0)
    with pytest.raises(ParameterError, match="fan does not pull"):
        sample_errors(200, scale=40.0)
    with pytest.raises(ParameterError, match="com_shift must be finite"):
        Errors(np.full((1, 2), np.nan), np.zeros(1), np.zeros((1, 10)), np.zeros((1, 4)))
    heavy = no_errors(1)
    heavy.mass[0] = -11.0
    with pytest.raises(ParameterError, match="base's 10 kg"):
        perturbed_models(model, heavy)
