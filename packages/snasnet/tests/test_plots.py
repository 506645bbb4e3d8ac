"""Pictures hold what they show."""

import re

import numpy as np
import pytest

from snasnet.cells import Cell
from snasnet.plots import accuracy_figure, cell_figure, histogram_figure, scatter_figure


def test_a_cell_s_picture_has_an_arrow_an_edge_and_dashes_for_feedback():
    picture = cell_figure(Cell("0302 0030 3003 0000"))
    assert picture.startswith("<?xml")
    assert len(re.findall(r"stroke-dasharray: [1-9]", picture)) == 2  # a bow and its head
    without = cell_figure(Cell("0302 0030 0003 0000"))
    assert not re.search(r"stroke-dasharray: [1-9]", without)
    assert picture.count("stroke-width: 1.8") >= without.count("stroke-width: 1.8") + 1
    assert cell_figure(Cell("0302 0030 3003 0000")) == picture


@pytest.mark.parametrize(
    "picture",
    [
        lambda: scatter_figure({"sahd": [1.0, 2.0, 4.0], "hd": [3.0, 2.0, 1.0]}, np.array([0.1, 0.2, 0.3]), "t"),
        lambda: histogram_figure([-3.0, -2.0, -5.0], "t"),
        lambda: accuracy_figure([-3.0, -2.0], [50.0, 60.0], "t"),
    ],
)
def test_pictures_are_svg_and_the_same_every_time(picture):
    assert picture() == picture()
    assert picture().count("<svg") == 1
