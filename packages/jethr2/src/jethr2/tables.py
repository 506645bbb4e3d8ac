"""What the commands print for people; rich is imported when there is something to print."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jethr2.results import StudyResult


def group(tables: Any) -> Any:
    """Several tables, one below the other."""
    from rich.console import Group

    return Group(*tables)


def study_tables(study: StudyResult, comparisons: list[dict[str, Any]], criteria: dict[str, bool]) -> Any:
    """A study, full vectoring against each other case, and the criteria of section 7."""
    from rich.table import Column, Table

    names = ("criteria", "only full", "only it", "exact p", "difference [95 %]")
    against = Table(_case("full against"), *(Column(name, no_wrap=True) for name in names))
    for row in comparisons:
        interval = f"{row['difference']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        counts = str(row["only_first"]), str(row["only_second"])
        against.add_row(
            row["case"], "no yaw" if row["ignore_yaw"] else "all", *counts, f"{row['p_value']:.2g}", interval
        )
    held = Table("criterion", "holds")
    for name, value in criteria.items():
        held.add_row(name, "yes" if value else "no")
    return group([study_table(study), against, held])


def study_table(study: StudyResult) -> Any:
    """Section 7's table; both counts of successes stand side by side."""
    from rich.table import Column, Table

    names = ("success", "yaw ignored", "tilt", "yaw", "deg/s", "m", "s")
    what = "counts with 95 % intervals; medians: peak tilt and yaw in deg with the 95th percentile, height, time to 1 m"
    table = Table(
        _case("mode"),
        *(Column(name, no_wrap=True) for name in names),
        title=f"{len(study.trials)} trials, error scale {study.error_scale:g}: {what}",
    )
    for row in study.table():
        table.add_row(
            row.case,
            f"{row.success}/{row.n}\n{row.success_low:.2f}-{row.success_high:.2f}",
            f"{row.upright}/{row.n}\n{row.upright_low:.2f}-{row.upright_high:.2f}",
            f"{row.tilt_median:.1f}\n{row.tilt_p95:.1f}",
            f"{row.yaw_median:.1f}\n{row.yaw_p95:.1f}",
            f"{row.yaw_rate_median:.0f}",
            f"{row.height_median:.2f}",
            "" if math.isnan(row.time_median) else f"{row.time_median:.2f}",
        )
    return table


def _case(title: str) -> Any:
    """A column of names that fold, so that no number is cut at 80 characters."""
    from rich.table import Column

    return Column(title, max_width=12, overflow="fold")


def sweep_table(name: str, studies: dict[float, StudyResult]) -> Any:
    """One row per value of the parameter and mode."""
    from rich.table import Column, Table

    columns = ("all", "yaw ignored", "reach 1 m", "yaw deg", "height m")
    table = Table(Column(name, min_width=len(name)), Column("mode", no_wrap=True), *columns)
    for value, study in studies.items():
        for row in study.table():
            counts = (f"{count}/{row.n}" for count in (row.success, row.upright, row.reached))
            table.add_row(f"{value:g}", row.case, *counts, f"{row.yaw_median:.1f}", f"{row.height_median:.2f}")
    return table


def info_tables(facts: dict[str, Any], effects: list[Any], budget: list[Any], sources: list[Any]) -> Any:
    """What `info` prints: facts, effects of the actuators, cost of errors, sources."""
    from rich.table import Table

    general = Table("fact", "value")
    for key, value in facts.items():
        general.add_row(key, _brief(value))
    wrench = Table("change at full throttle", "Fx, Fy, Fz (N)", "Mx, My, Mz (N m)")
    for row in effects:
        wrench.add_row(row["change"], *(", ".join(f"{each:+.4f}" for each in row[key]) for key in ("force", "moment")))
    demand = Table("error (1 sd)", "size", "Mx, My, Mz (N m)", "feet alike deg", "feet opposite deg", "roll throttle")
    for row in budget:
        angles = (f"{math.degrees(row[key]):.2f}" for key in ("foot_angle_sym", "foot_angle_diff"))
        moment = ", ".join(f"{each:.3f}" for each in row["moment"])
        size = "" if row["source"] == "all" else f"{row['size']:.4g} {row['unit']}"
        demand.add_row(row["source"], size, moment, *angles, f"{row['roll_throttle']:.3f}")
    origin = Table("parameter", "value", "unit", "source")
    for row in sources:
        origin.add_row(row["field"], str(row["value"]), row["unit"], row["source"])
    legend = "Sources: A the paper's abstract, L the lab's program, D derived, S assumed, M measured with a prototype."
    return group([general, wrench, demand, origin, legend])


def _brief(value: Any) -> str:
    """Numbers, also those in lists and mappings, with five digits."""
    if isinstance(value, dict):
        return "\n".join(f"{key} {_brief(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ("\n" if isinstance(value[0], list) else ", ").join(map(_brief, value))
    return f"{round(value, 12) + 0.0:.5g}" if isinstance(value, float) else str(value)


def crosscheck_table(facts: dict[str, Any]) -> Any:
    """How far the engines are apart at each step."""
    from rich.table import Table

    table = Table("dt s", "position mm", "attitude deg", "joints deg")
    columns = (facts[name] for name in ("dt", "position_error", "attitude_error", "joint_error"))
    for dt, position, attitude, joint in zip(*columns, strict=True):
        table.add_row(f"{dt:g}", f"{1e3 * position:.3f}", f"{math.degrees(attitude):.3f}", f"{math.degrees(joint):.3f}")
    order = "" if facts["order"] is None else f"order of convergence {facts['order']:.3f}; "
    return group([table, f"{order}{'the engines agree' if facts['agree'] else 'the engines disagree'}"])


def difference_table(rows: list[dict[str, Any]]) -> Any:
    """Log less simulation, angles in degrees, heights in mm, throttles in percent."""
    from rich.table import Table

    table = Table("column", "unit", "rms", "largest", "mean", "rows", title="log less simulation")
    for row in rows:
        name = row["column"]
        unit, factor = (
            ("mm", 1e3) if name == "height" else ("%", 100) if name.endswith("_fan") else ("deg", math.degrees(1))
        )
        figures = (f"{factor * row[key]:.3g}" for key in ("rms", "largest", "bias"))
        table.add_row(name, unit, *figures, str(row["rows"]))
    return table
