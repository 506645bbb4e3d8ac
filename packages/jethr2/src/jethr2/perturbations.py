"""What differs from the model in a trial: mass, centre of mass, joint zeros, fan gains (spec 2.7).

Mass, centre of mass and gains change a copy of the model, joint zeros are added to the commands on the plant's side; the
controller never learns of them.
"""

from __future__ import annotations

import copy
import csv
import importlib.resources
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from core_utils.files import write_atomically
from jethr2.errors import JetHR2Error, ParameterError
from jethr2.layout import FANS, JOINTS, fan_actuator_ids
from jethr2.params import ErrorParams

if TYPE_CHECKING:
    import mujoco

_UNITS = {"m": {"m": 1.0, "mm": 1e-3}, "kg": {"kg": 1.0, "g": 1e-3}, "rad": {"rad": 1.0, "deg": math.pi / 180}}
_UNITS["1"] = {"1": 1.0, "%": 1e-2}


@dataclass(frozen=True, eq=False)
class Errors:
    """Errors of n trials.

    Attributes:
        com_shift: of the whole robot's centre of mass, x and y, m.
        mass: added to the base, kg.
        joint_zero: added to the joints' commands, rad.
        fan_gain: added to the fans' gains, as a share.
        joints: names of the joints, in the order of `joint_zero`.
    """

    com_shift: Float[np.ndarray, "n 2"]
    mass: Float[np.ndarray, " n"]
    joint_zero: Float[np.ndarray, "n joints"]
    fan_gain: Float[np.ndarray, "n 4"]
    joints: tuple[str, ...] = JOINTS

    def __post_init__(self) -> None:
        for name in ("com_shift", "mass", "joint_zero", "fan_gain"):
            if not np.isfinite(getattr(self, name)).all():
                raise ParameterError(name, "NaN or infinity", "finite")
        if not (self.fan_gain > -1).all():
            raise ParameterError("fan_gain", float(self.fan_gain.min()), "above -1: a fan does not pull")

    def __len__(self) -> int:
        return len(self.mass)

    def __getitem__(self, rows: slice | np.ndarray) -> Errors:
        """The errors of some of the trials."""
        return Errors(self.com_shift[rows], self.mass[rows], self.joint_zero[rows], self.fan_gain[rows], self.joints)

    @property
    def table(self) -> Float[np.ndarray, "n columns"]:
        """All errors in SI units, one row per trial, in the order of `columns`."""
        return np.column_stack([self.com_shift, self.mass, self.joint_zero, self.fan_gain])

    def to_csv(self, path: str | Path) -> None:
        """Writes one row per trial under names with units."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([f"{name} [{unit}]" for name, unit in columns(self.joints)])
        writer.writerows([[repr(float(value)) for value in row] for row in self.table])
        write_atomically(Path(path), text.getvalue())

    @classmethod
    def from_csv(cls, path: str | Path, joints: tuple[str, ...] = JOINTS) -> Errors:
        """Reads what `to_csv` writes; columns in any order, mm, g, deg and % too.

        Raises:
            JetHR2Error: naming the file and what is wrong: a column missing, unknown or twice, a unit, a value.
        """
        try:
            rows = list(csv.reader(io.StringIO(Path(path).read_text(encoding="utf-8"))))
        except (OSError, UnicodeDecodeError) as error:
            raise JetHR2Error(f"{path} cannot be read: {error}") from None
        return cls._parsed(rows, str(path), joints)

    @classmethod
    def _parsed(cls, rows: list[list[str]], source: str, joints: tuple[str, ...]) -> Errors:
        rows = [row for row in rows if row]
        if len(rows) < 2:
            raise JetHR2Error(f"{source} holds no trials", "a header with units and one row per trial")
        wanted = dict(columns(joints))
        places, factors = _header(rows[0], wanted, source)
        table = np.array([_numbers(row, len(rows[0]), source, line) for line, row in enumerate(rows[1:], start=2)])
        table = table[:, places] * factors
        return cls(table[:, :2], table[:, 2], table[:, 3 : 3 + len(joints)], table[:, 3 + len(joints) :], joints)


def columns(joints: tuple[str, ...] = JOINTS) -> list[tuple[str, str]]:
    """Names and SI units of the errors, in the order in which they are drawn."""
    names = [("com_x", "m"), ("com_y", "m"), ("mass", "kg")]
    return names + [(f"{joint}_zero", "rad") for joint in joints] + [(f"{fan}_gain", "1") for fan in FANS]


def no_errors(n: int = 1, joints: tuple[str, ...] = JOINTS) -> Errors:
    """The model as it is."""
    return Errors(np.zeros((n, 2)), np.zeros(n), np.zeros((n, len(joints))), np.zeros((n, 4)), joints)


def canned_errors() -> Errors:
    """Sixteen samples of the default distribution that ship with the package, for demonstrations."""
    text = (importlib.resources.files("jethr2") / "perturbations.csv").read_text(encoding="utf-8")
    return Errors._parsed(list(csv.reader(io.StringIO(text))), "perturbations.csv", JOINTS)


def sample_errors(
    n: int,
    params: ErrorParams | None = None,
    *,
    seed: int = 0,
    scale: float = 1.0,
    joints: tuple[str, ...] = JOINTS,
    first: int = 0,
) -> Errors:
    """Draws the errors of trials; a trial's depend on the seed and its index alone.

    Args:
        n: number of trials.
        params: standard deviations and distribution.
        seed: of the study.
        scale: multiplies all errors.
        joints: names.
        first: index of the first trial.

    Raises:
        ParameterError: n below 1, a seed or scale below 0, errors so large that a fan would pull.
    """
    params = params or ErrorParams()
    for name, value, low in (("n", n, 1), ("seed", seed, 0), ("error_scale", scale, 0.0), ("first", first, 0)):
        if not (value >= low and math.isfinite(value)):
            raise ParameterError(name, value, f"at least {low}")
    count = 7 + len(joints)
    # What SeedSequence(seed).spawn gives to the trial, without making those before it.
    trials = [np.random.SeedSequence(seed, spawn_key=(trial,)) for trial in range(first, first + n)]
    draws = np.array([_standard(np.random.default_rng(trial), count, params) for trial in trials]) * scale
    draws[:, :2] *= params.com_shift_sd
    draws[:, 2] *= params.mass_sd
    draws[:, 3:-4] *= params.joint_zero_sd
    draws[:, -4:] *= params.fan_gain_sd
    return Errors(draws[:, :2], draws[:, 2], draws[:, 3:-4], draws[:, -4:], joints)


def perturbed_models(model: mujoco.MjModel, errors: Errors) -> list[mujoco.MjModel]:
    """A copy of the model for each trial, with its mass, centre of mass and fan gains, and all derived constants.

    Raises:
        ParameterError: an error in mass that leaves the base none.
    """
    import mujoco

    base = root_body(model)
    mass, total = model.body_mass[base], model.body_subtreemass[base]
    ratio = 1 + errors.mass / mass
    if not (ratio > 0).all():
        raise ParameterError("mass", float(errors.mass.min()), f"above minus the base's {mass:g} kg")
    fans, scratch = fan_actuator_ids(model), mujoco.MjData(model)
    copies = []
    for trial in range(len(errors)):
        changed = copy.copy(model)
        changed.body_mass[base] *= ratio[trial]
        changed.body_inertia[base] *= ratio[trial]
        changed.body_ipos[base, :2] += errors.com_shift[trial] * total / mass
        changed.actuator_gainprm[fans, 0] *= 1 + errors.fan_gain[trial]
        mujoco.mj_setConst(changed, scratch)
        copies.append(changed)
    return copies


def root_body(model: mujoco.MjModel) -> int:
    """The body that carries the free joint."""
    import mujoco

    return int(model.jnt_bodyid[np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE)[0]])


def _standard(rng: np.random.Generator, count: int, params: ErrorParams) -> np.ndarray:
    """Draws of mean 0, and of standard deviation 1 before truncation."""
    if params.distribution == "uniform":
        return rng.uniform(-math.sqrt(3), math.sqrt(3), count)
    if params.distribution == "truncated":
        from scipy.special import ndtr, ndtri

        tail = ndtr(-params.truncation)
        return ndtri(tail + rng.uniform(size=count) * (1 - 2 * tail))
    return rng.standard_normal(count)


def _header(header: list[str], wanted: dict[str, str], source: str) -> tuple[list[int], np.ndarray]:
    """Places and factors of the wanted columns."""
    import difflib

    found: dict[str, tuple[int, float]] = {}
    for place, title in enumerate(header):
        name, _, rest = title.strip().partition(" ")
        if name not in wanted:
            nearest = difflib.get_close_matches(name, wanted, n=1, cutoff=0.0)[0]
            raise JetHR2Error(f"{source}: unknown column {name!r}", f"did you mean {nearest!r}?")
        units, unit = _UNITS[wanted[name]], rest.strip().strip("[]")
        if unit not in units:
            raise JetHR2Error(f"{source}: column {name!r} has the unit {unit!r}", f"one of {', '.join(units)}")
        if name in found:
            raise JetHR2Error(f"{source}: column {name!r} stands there twice")
        found[name] = place, units[unit]
    missing = [name for name in wanted if name not in found]
    if missing:
        raise JetHR2Error(f"{source} lacks the column {missing[0]!r}", f"{len(missing)} of {len(wanted)} are missing")
    return [found[name][0] for name in wanted], np.array([found[name][1] for name in wanted])


def _numbers(row: list[str], width: int, source: str, line: int) -> list[float]:
    if len(row) != width:
        raise JetHR2Error(f"{source}, line {line}: {len(row)} values in {width} columns")
    values = []
    for text in row:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise JetHR2Error(f"{source}, line {line}: {text!r} is no finite number")
        values.append(value)
    return values
