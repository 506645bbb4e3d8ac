import functools
import io
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from flying import robot
from PIL import Image

from jethr2 import Controller, ParameterError, RobotParams, simulate, sweep
from jethr2.plots import flight_figure, success_figure


@functools.cache
def flight():
    model, trim = robot()
    return simulate(model, Controller(model, trim), 1.0, trim=trim)


@functools.cache
def studies():
    robot = RobotParams(fan_max_thrust=None)
    return sweep("thrust_to_weight", [1.05, 1.3], n=4, nthread=1, duration=1.0, robot=robot)


def drawn(content):
    """Numbers of paths and of glyphs in an SVG."""
    root = ET.fromstring(content)
    assert root.tag.endswith("svg")
    return len(root.findall(".//{*}path"))


def test_a_flights_picture_is_the_same_bytes_every_time():
    assert flight_figure(flight()) == flight_figure(flight())
    assert drawn(flight_figure(flight(), title="a flight")) > drawn(flight_figure(flight()))


def test_a_flights_picture_can_be_png():
    with Image.open(io.BytesIO(flight_figure(flight(), form="png"))) as image:
        assert image.size == (960, 960)
        assert np.asarray(image.convert("L")).std() > 10


def test_shares_and_intervals_are_drawn_where_the_studies_have_them(monkeypatch):
    from matplotlib.axes import Axes

    calls = []
    original = Axes.errorbar

    def errorbar(self, x, y, yerr, **options):
        calls.append((options["label"], np.array(x), np.array(y), np.array(yerr)))
        return original(self, x, y, yerr, **options)

    monkeypatch.setattr(Axes, "errorbar", errorbar)
    success_figure(studies(), "thrust_to_weight")
    assert [label for label, *_ in calls] == ["full", "differential"] * 2
    for number, (label, x, y, spread) in enumerate(calls):
        np.testing.assert_allclose(x, [1.05, 1.3], atol=0.01)
        for k, study in enumerate(studies().values()):
            chosen = study.upright(label) if number >= 2 else study.success(label)
            low, high = study.wilson(ignore_yaw=number >= 2)[label]
            assert y[k] == pytest.approx(100 * chosen.mean())
            assert (y[k] - spread[0, k], y[k] + spread[1, k]) == pytest.approx((100 * low, 100 * high))


def test_pictures_that_cannot_be_are_named():
    with pytest.raises(ParameterError, match="results must be"):
        success_figure({}, "error_scale")
    with pytest.raises(ParameterError, match="form must be svg or png"):
        flight_figure(flight(), form="pdf")
