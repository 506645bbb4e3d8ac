"""Pictures: whole files, the same for the same figures, that hold what they should."""

import math

import pytest

from qdrop.evaluation import FlatnessRow
from qdrop.plots import _smooth, compare_figure, flatness_figure, loss_figure, sqnr_figure
from qdrop.reconstruction import UnitResult

REPORT = [
    UnitResult("stem", [3.0, 2.0, 1.0], 20.0),
    UnitResult("block", [float(1 + step % 7) for step in range(1000)], math.inf),
    UnitResult("head", [], math.nan),
]
ROWS = [FlatnessRow(size, number, size + number, 0.5) for size in (0.0, 0.1) for number in range(3)]
FIGURES = {
    "loss": lambda kind: loss_figure(REPORT, "Loss", kind),
    "sqnr": lambda kind: sqnr_figure(REPORT, "Precision", kind),
    "compare": lambda kind: compare_figure(
        {"nearest": {"2/2": [0.1, 0.2]}, "qdrop": {"2/2": [0.8, 0.9]}}, "a", "C", kind
    ),
    "flatness": lambda kind: flatness_figure({"case2": ROWS, "qdrop": ROWS}, "nats", "F", kind),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_picture_is_whole_and_the_same_twice(name):
    svg, png = (FIGURES[name](kind) for kind in ("svg", "png"))
    assert svg.startswith(b"<?xml")
    assert svg.rstrip().endswith(b"</svg>")
    assert png.startswith(b"\x89PNG")
    assert FIGURES[name]("svg") == svg
    assert FIGURES[name]("png") == png


def test_pictures_of_nothing_are_pictures():
    for picture in (
        loss_figure([], "t"),
        sqnr_figure([], "t"),
        compare_figure({}, "a", "t"),
        flatness_figure({}, "l", "t"),
    ):
        assert picture.startswith(b"\x89PNG")


def test_a_unit_without_losses_has_no_curve():
    assert loss_figure(REPORT, "t", "svg") == loss_figure(REPORT[:2], "t", "svg") != loss_figure(REPORT[:1], "t", "svg")


def test_a_long_curve_is_drawn_by_means_that_hold_all_of_it():
    places, means = _smooth([float(step) for step in range(1000)])
    assert len(means) == 100
    assert means.mean() == pytest.approx(499.5)
    assert (places[0], places[-1]) == (5.0, 995.0)
    assert means[0] == pytest.approx(4.5)
