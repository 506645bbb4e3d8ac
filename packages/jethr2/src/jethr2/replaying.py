"""Flight logs of a real robot beside a simulated flight."""

from __future__ import annotations

import csv
import difflib
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from core_utils.files import write_atomically
from jethr2.errors import JetHR2Error, ParameterError
from jethr2.layout import FANS, fan_ctrl_ids, joint_names, joint_qpos_ids
from jethr2.trajectory import Trajectory

if TYPE_CHECKING:
    import mujoco

ATTITUDE = ("roll", "pitch", "yaw")
_UNITS = {
    "s": {"s": 1.0, "ms": 1e-3},
    "rad": {"rad": 1.0, "deg": math.pi / 180},
    "1": {"1": 1.0, "%": 1e-2},
    "m": {"m": 1.0, "mm": 1e-3},
}


@dataclass(frozen=True, eq=False)
class FlightLog:
    """What a robot wrote down.

    Attributes:
        time: increasing, from 0, s.
        columns: by name: `roll`, `pitch`, `yaw` (unwrapped), joints, rad; throttles `front_fan` etc. of 0 to 1; `height`
            of the base over its start, m.
    """

    time: Float[np.ndarray, " rows"]
    columns: Mapping[str, Float[np.ndarray, " rows"]]

    def to_csv(self, path: str | Path) -> None:
        """Writes what `read_log` reads, in SI units."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        units = ["m" if name == "height" else "1" if name.endswith("_fan") else "rad" for name in self.columns]
        writer.writerow(["t [s]", *(f"{name} [{unit}]" for name, unit in zip(self.columns, units, strict=True))])
        rows = np.column_stack([self.time, *self.columns.values()])
        writer.writerows([[repr(float(value)) for value in row] for row in rows])
        write_atomically(Path(path), text.getvalue())


@dataclass(frozen=True)
class Difference:
    """Log less simulation in one column, in the unit of the log's column in SI.

    Attributes:
        column: name.
        rms: root mean square.
        largest: in absolute value.
        bias: mean.
        rows: compared.
    """

    column: str
    rms: float
    largest: float
    bias: float
    rows: int


def read_log(path: str | Path, joints: tuple[str, ...]) -> FlightLog:
    """Reads a flight log: `t`, `roll`, `pitch`, `yaw`, and as many of `height`, fans and joints as there are.

    Args:
        path: CSV whose first line names columns and units, as `t [s]`, `roll [deg]`, `front_fan [%]`, `left_knee [deg]`.
        joints: names of the robot's joints.

    Returns:
        The log in SI units; time and yaw count from the first row.

    Raises:
        JetHR2Error: naming the file, the line and what is wrong: a column unknown, missing or twice, its unit, a value
            that is no finite number, time that does not increase.
    """
    try:
        lines = list(csv.reader(io.StringIO(Path(path).read_text(encoding="utf-8-sig"))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise JetHR2Error(f"{path} cannot be read: {error}") from None
    rows = [(number, line) for number, line in enumerate(lines, start=1) if line]
    if len(rows) < 3:
        raise JetHR2Error(f"{path} holds no flight", "a header with units and at least two rows")
    names, factors = _header(rows[0][1], joints, path)
    table = np.array([_numbers(line, len(names), path, number) for number, line in rows[1:]]) * factors
    columns = dict(zip(names, table.T.copy(), strict=True))
    time = columns.pop("t")
    steps = np.diff(time)
    if not (steps > 0).all():
        number = rows[int(np.argmin(steps > 0)) + 2][0]
        raise JetHR2Error(f"{path}, line {number}: time does not increase", "sort the log, and drop repeated rows")
    columns["yaw"] = np.unwrap(columns["yaw"]) - columns["yaw"][0]
    return FlightLog(time - time[0], columns)


def log_of(model: mujoco.MjModel, flight: Trajectory) -> FlightLog:
    """A simulated flight as a log: true attitude and angles, and the throttles that were commanded."""
    columns = dict(zip(ATTITUDE, flight.angles.T, strict=True))
    columns["height"] = flight["qpos"][:, 2] - flight["qpos"][0, 2]
    throttles = np.clip(flight["ctrl"][:, fan_ctrl_ids(model)], 0, 1).T
    columns |= {f"{fan}_fan": values for fan, values in zip(FANS, throttles, strict=True)}
    columns |= dict(zip(joint_names(model), flight["qpos"][:, joint_qpos_ids(model)].T, strict=True))
    columns["yaw"] = columns["yaw"] - columns["yaw"][0]
    return FlightLog(flight["time"], columns)


def compare_logs(log: FlightLog, simulated: FlightLog, *, delay: float = 0.0) -> list[Difference]:
    """How far a log is from a simulated flight, column by column, at the log's times.

    Args:
        log: of the robot.
        simulated: of `log_of`; between its rows it is taken as linear.
        delay: time of the log at which the simulation starts, s.

    Returns:
        One row per column of the log.

    Raises:
        ParameterError: the delay leaves no rows in common.
    """
    chosen = (log.time >= delay) & (log.time - delay <= simulated.time[-1] + 1e-9)
    if not chosen.any():
        raise ParameterError("delay", delay, f"such that the log of {log.time[-1]:g} s and the simulation overlap")
    differences = []
    for name, values in log.columns.items():
        error = values[chosen] - np.interp(log.time[chosen] - delay, simulated.time, simulated.columns[name])
        rms = float(np.sqrt((error**2).mean()))
        differences.append(Difference(name, rms, float(np.abs(error).max()), float(error.mean()), int(chosen.sum())))
    return differences


def comparison_figure(log: FlightLog, simulated: FlightLog, *, delay: float = 0.0, form: str = "svg") -> bytes:
    """The log's columns over the simulated ones: attitude, height if it is there, throttles.

    Args:
        log: of the robot.
        simulated: of `log_of`.
        delay: time of the log at which the simulation starts, s.
        form: `svg` or `png`.
    """
    from matplotlib.figure import Figure

    from jethr2.plots import picture

    panels = [(name, "deg", 180 / math.pi) for name in ATTITUDE]
    panels += [("height", "m", 1.0)] if "height" in log.columns else []
    panels += [(f"{fan}_fan", "%", 100.0) for fan in FANS if f"{fan}_fan" in log.columns]
    columns = 2
    count = -(-len(panels) // columns)
    figure = Figure(figsize=(8.0, 1.9 * count), layout="constrained")
    grid = figure.subplots(count, columns, sharex=True, squeeze=False).ravel()
    for axes, (name, unit, factor) in zip(grid, panels, strict=False):
        axes.plot(simulated.time, factor * simulated.columns[name], "--", color="#d55e00", label="simulated")
        axes.plot(log.time - delay, factor * log.columns[name], color="#0072b2", label="log", linewidth=1)
        axes.set(ylabel=f"{name.replace('_', ' ')} ({unit})")
        axes.grid(alpha=0.3)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[max(0, len(panels) - columns) : len(panels)]:
        axes.xaxis.set_tick_params(labelbottom=True)
        axes.set_xlabel("time (s)")
    grid[0].legend(frameon=False, fontsize="small")
    return picture(figure, form)


def _header(header: list[str], joints: tuple[str, ...], source: str | Path) -> tuple[list[str], np.ndarray]:
    """Names and factors to SI of the columns."""
    kinds = {"t": "s", "height": "m"} | dict.fromkeys((*ATTITUDE, *joints), "rad")
    kinds |= {f"{fan}_fan": "1" for fan in FANS}
    names: list[str] = []
    factors = []
    for title in header:
        name, _, rest = title.strip().partition(" ")
        if name not in kinds:
            nearest = difflib.get_close_matches(name, kinds, n=1, cutoff=0.0)[0]
            raise JetHR2Error(f"{source}: unknown column {name!r}", f"did you mean {nearest!r}?")
        unit, units = rest.strip().strip("[]"), _UNITS[kinds[name]]
        if unit not in units:
            raise JetHR2Error(f"{source}: column {name!r} has the unit {unit!r}", f"one of {', '.join(units)}")
        if name in names:
            raise JetHR2Error(f"{source}: column {name!r} stands there twice")
        names.append(name)
        factors.append(units[unit])
    for name in ("t", *ATTITUDE):
        if name not in names:
            raise JetHR2Error(f"{source} lacks the column {name!r}")
    return names, np.array(factors)


def _numbers(line: list[str], width: int, source: str | Path, number: int) -> list[float]:
    if len(line) != width:
        raise JetHR2Error(f"{source}, line {number}: {len(line)} values in {width} columns")
    values = []
    for text in line:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise JetHR2Error(f"{source}, line {number}: {text!r} is no finite number")
        values.append(value)
    return values
