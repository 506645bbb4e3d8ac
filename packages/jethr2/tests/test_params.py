"""Parameters: where they come from, and what they refuse."""

import dataclasses
import math
import subprocess
import sys
import warnings

import pytest

from core_utils.errors import UserError
from core_utils.settings import settings
from jethr2 import ControllerParams, ErrorParams, EstimatorParams, InfeasibleThrust, ParameterError, RobotParams
from jethr2.params import MPCParams, provenance

GROUPS = (RobotParams, ControllerParams, EstimatorParams, ErrorParams, MPCParams)
NUMBERS = [
    (group, field)
    for group in GROUPS
    for field in dataclasses.fields(group)
    if "allowed" in field.metadata and not isinstance(field.default, int)
]


def test_defaults_are_the_published_ones_with_their_sources():
    rows = {row.field: row for row in provenance(RobotParams())}
    assert (rows["mass"].value, rows["mass"].unit, rows["mass"].source) == (17.0, "kg", "A")
    assert (rows["thigh"].value, rows["shank"].value, rows["thigh"].source) == (0.105, 0.272, "L")
    assert (rows["fan_time_constant"].value, rows["fan_time_constant"].source) == (0.10, "S")
    assert RobotParams().max_thrust == pytest.approx(49.05, abs=1e-12)
    assert 4 * RobotParams().max_thrust / RobotParams().weight == pytest.approx(20 / 17, abs=1e-12)
    assert RobotParams().base_mass == 8.8


@pytest.mark.parametrize("group", GROUPS)
def test_every_field_has_a_unit_and_a_source(group):
    rows = provenance(group())
    assert len(rows) >= len(dataclasses.fields(group))
    assert all(row.source in "ALDSM" and isinstance(row.unit, str) for row in rows)


def test_the_labs_model_is_part_of_the_controllers_table():
    rows = {row.field: row.value for row in provenance(ControllerParams())}
    assert rows["mpc.state_weights"] == (0.0, 10.0, 20000.0, 0.0)


@pytest.mark.parametrize(("group", "field"), NUMBERS, ids=lambda part: getattr(part, "name", None))
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_number_may_be_other_than_finite(group, field, bad):
    value = (bad,) * len(field.default) if isinstance(field.default, tuple) else bad
    with pytest.raises(ParameterError, match=f"^{field.name} must be") as caught:
        group(**{field.name: value})
    assert caught.value.field == field.name
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("mass", 0.0, "positive"),
        ("mass", -17.0, "positive"),
        ("mass", 8.0, "more than the legs' and waist fans' 8.2 kg"),
        ("fan_time_constant", -0.1, "at least 0"),
        ("fan_max_thrust", 0.0, "positive"),
        ("thrust_to_weight", -1.0, "positive"),
        ("knee_range", (2.4, -0.2), "a lower and a greater upper bound"),
        ("sole_half_thickness", 0.06, "half of ankle_height"),
    ],
)
def test_a_robot_that_means_nothing_is_refused(field, value, complaint):
    with pytest.raises(ParameterError, match=complaint):
        RobotParams(**{field: value})


def test_a_fan_without_lag_is_allowed():
    assert RobotParams(fan_time_constant=0.0).fan_time_constant == 0.0


def test_thrust_to_weight_and_fan_thrust_exclude_each_other():
    assert RobotParams(thrust_to_weight=1.3).max_thrust == pytest.approx(1.3 * 17 * 9.81 / 4)
    with pytest.raises(ParameterError, match="fan_max_thrust must be left out where thrust_to_weight is given"):
        RobotParams(thrust_to_weight=1.3, fan_max_thrust=50.0)


def test_a_robot_that_cannot_lift_warns_and_strictly_fails():
    with pytest.warns(InfeasibleThrust, match=r"166\.77 N cannot lift a weight of 166\.77 N"):
        RobotParams(thrust_to_weight=1.0)
    with pytest.raises(ParameterError, match="fan_max_thrust must be enough to lift"):
        RobotParams(fan_max_thrust=40.0, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RobotParams(thrust_to_weight=1.001)


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("mode", "diferential", "mode must be one of none, differential, pitch_only, yaw_only, full"),
        ("allocation", "closed", "one of closed_form, qp, pinv"),
        ("u0", 1.2, r"in \(0, 1\]"),
        ("control_period", 0.0, "positive"),
        ("throttle_range", (0.7, 1.2), r"two throttles of \[0, 1\]"),
    ],
)
def test_a_controller_that_means_nothing_is_refused(field, value, complaint):
    with pytest.raises(UserError, match=complaint):
        settings(ControllerParams, typed={field: value})


def test_a_file_sets_what_it_names_and_suggests_the_nearest_key(tmp_path):
    file = tmp_path / "robot.toml"
    file.write_text("mass = 18\nfan_time_constant = 0.2\nknee_range = [0, 2]\n")
    params = settings(RobotParams, file=file, pairs=["joint_kp=110"])
    assert (params.mass, params.fan_time_constant, params.knee_range, params.joint_kp) == (18.0, 0.2, (0.0, 2.0), 110.0)
    file.write_text("fan_time_const = 0.2\n")
    with pytest.raises(UserError, match=r"fan_time_const.*did you mean 'fan_time_constant'"):
        settings(RobotParams, file=file)


@pytest.mark.parametrize(
    ("made", "found"),
    [
        ("RobotParams(mass=18).mass", "18.0"),
        ("RobotParams(friction=[1, 0, 0]).friction", "(1.0, 0.0, 0.0)"),
        ("RobotParams(mass='heavy')", "mass must be a number, positive, got 'heavy'"),
        ("RobotParams(mass=True)", "mass must be a number, positive, got True"),
        ("RobotParams(mass=None)", "mass must be a number, got None"),
        ("RobotParams(friction=(0.8, 0.02))", "friction must be 3 numbers, each at least 0, got (0.8, 0.02)"),
        (
            "RobotParams(thrust_map='quadratik')",
            "thrust_map must be one of linear, quadratic (did you mean 'quadratic'?), got 'quadratik'",
        ),
        ("MPCParams(horizon=2.5)", "horizon must be a whole number, positive, got 2.5"),
        ("MPCParams(horizon=0)", "horizon must be a whole number, positive, got 0"),
    ],
)
def test_values_of_other_types_are_converted_or_refused_without_the_type_hook(made, found):
    code = f"""
from jethr2.errors import ParameterError
from jethr2.params import MPCParams, RobotParams
try:
    print({made})
except ParameterError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == found


def test_parameters_load_without_an_engine():
    code = (
        "import sys, jethr2; jethr2.RobotParams(); jethr2.ControllerParams();"
        "print([name for name in ('mujoco', 'numba', 'scipy', 'jax', 'pybullet') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
