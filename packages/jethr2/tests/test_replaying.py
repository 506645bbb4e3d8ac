import functools
import math

import numpy as np
import pytest
from flying import robot

from jethr2 import Controller, ParameterError, simulate
from jethr2.errors import JetHR2Error
from jethr2.layout import JOINTS
from jethr2.replaying import FlightLog, compare_logs, comparison_figure, log_of, read_log


@functools.cache
def simulated():
    model, trim = robot()
    return log_of(model, simulate(model, Controller(model, trim), 1.0, trim=trim))


def written(tmp_path, text):
    path = tmp_path / "log.csv"
    path.write_text(text)
    return path


def test_a_log_that_is_the_simulation_itself_differs_by_nothing(tmp_path):
    simulated().to_csv(tmp_path / "log.csv")
    log = read_log(tmp_path / "log.csv", JOINTS)
    rows = compare_logs(log, simulated())
    assert [row.column for row in rows] == [*simulated().columns]
    assert len(rows) == 3 + 1 + 4 + 10
    assert max(row.largest for row in rows) < 1e-15
    assert {row.rows for row in rows} == {501}


def test_a_known_offset_is_found_with_its_sign():
    columns = dict(simulated().columns)
    columns["pitch"] = columns["pitch"] + 0.1 * np.where(np.arange(501) % 2, 1.0, -1.0) + 0.02
    row = compare_logs(FlightLog(simulated().time, columns), simulated())[1]
    assert row.column == "pitch"
    assert row.bias == pytest.approx(0.02, abs=1e-3)
    assert row.largest == pytest.approx(0.12, abs=1e-12)
    assert row.rms == pytest.approx(math.hypot(0.1, 0.02), abs=1e-3)


def test_a_log_that_starts_earlier_is_shifted_by_its_delay():
    late = FlightLog(simulated().time + 0.5, simulated().columns)
    rows = compare_logs(late, simulated(), delay=0.5)
    assert max(row.largest for row in rows) < 1e-12
    with pytest.raises(ParameterError, match="delay must be such that"):
        compare_logs(late, simulated(), delay=9.0)


def test_units_in_the_header_count_and_yaw_and_time_start_at_nothing(tmp_path):
    header = "t [ms],roll [deg],pitch [rad],yaw [deg],front_fan [%],left_knee [deg],height [mm]\n"
    path = written(tmp_path, header + "1000,90,0.1,179,50,45,0\n\n1010,0,0.2,-179,100,90,250\n")
    log = read_log(path, JOINTS)
    np.testing.assert_allclose(log.time, [0, 0.01], atol=1e-12)
    np.testing.assert_allclose(log.columns["roll"], [math.pi / 2, 0])
    np.testing.assert_allclose(log.columns["yaw"], [0, math.radians(2)], atol=1e-12)
    np.testing.assert_allclose(log.columns["front_fan"], [0.5, 1])
    np.testing.assert_allclose(log.columns["left_knee"], [math.pi / 4, math.pi / 2])
    np.testing.assert_allclose(log.columns["height"], [0, 0.25])


START = "t [s],roll [rad],pitch [rad],yaw [rad]\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no flight"),
        (START + "0,0,0,0\n", "holds no flight"),
        (START + "0,0,0,0\n0.1,0,0,0\n\n0.1,0,0,0\n", "line 5: time does not increase"),
        (START + "0,0,0,0\n-1,0,0,0\n", "line 3: time does not increase"),
        (START + "0,0,0,0\n1,nan,0,0\n", "line 3: 'nan' is no finite number"),
        (START + "0,0,0,0\n1,0,0\n", "line 3: 3 values in 4 columns"),
        ("t [s],rol [rad],pitch [rad],yaw [rad]\n0,0,0,0\n1,0,0,0\n", "unknown column 'rol' .did you mean 'roll'"),
        ("t [s],roll,pitch [rad],yaw [rad]\n0,0,0,0\n1,0,0,0\n", "'roll' has the unit '' .one of rad, deg"),
        ("t [s],roll [rad],pitch [rad]\n0,0,0\n1,0,0\n", "lacks the column 'yaw'"),
        ("t [s],roll [rad],roll [rad]\n0,0,0\n1,0,0\n", "'roll' stands there twice"),
    ],
)
def test_what_is_wrong_with_a_log_is_one_line_that_names_it(tmp_path, text, complaint):
    with pytest.raises(JetHR2Error, match=complaint) as caught:
        read_log(written(tmp_path, text), JOINTS)
    assert "log.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_log_is_named(tmp_path):
    with pytest.raises(JetHR2Error, match=r"none\.csv cannot be read"):
        read_log(tmp_path / "none.csv", JOINTS)


def test_the_picture_has_a_panel_for_what_the_log_holds(monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    original = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *words, **more: figures.append(self) or original(self, *words, **more)
    )
    comparison_figure(simulated(), simulated())
    few = {name: simulated().columns[name] for name in ("roll", "pitch", "yaw")}
    comparison_figure(FlightLog(simulated().time, few), simulated())
    panels = [[axes.get_ylabel() for axes in figure.axes if axes.get_visible()] for figure in figures]
    assert panels[1] == ["roll (deg)", "pitch (deg)", "yaw (deg)"]
    assert panels[0][3:] == ["height (m)", "front fan (%)", "back fan (%)", "left fan (%)", "right fan (%)"]
