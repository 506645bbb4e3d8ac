import csv
import io
import json

import pytest

from core_utils.jsonable import dumps
from mqbench_lite.leaderboard import cells_of, leaderboard, to_csv, to_markdown
from mqbench_lite.paper import FLOAT, NETWORKS, published


def result(algorithm, profile, accuracy, seed=0, network="residual", bits="4/4"):
    facts = {"network": network, "bits": bits, "algorithm": algorithm, "profile": profile, "seed": seed}
    return {**facts, "accuracy": accuracy, "float_accuracy": 90.0}


RESULTS = [
    result("lsq", "academic", 89.0),
    result("lsq", "academic", 90.0, seed=1),
    result("lsq", "tvm", 80.0),
    result("lsq", "tvm", 84.0, seed=1),
    result("lsq", "snpe", 88.0),
    result("ste", "academic", 88.0),
    result("ste", "tvm", 86.0),
    result("ste", "snpe", 86.0),
    result("pact", "academic", 85.0),
    result("pact", "tvm", 60.0),
]


def test_scores_are_means_over_seeds_and_ranks_go_by_the_mean_over_hardware():
    (table,) = leaderboard(RESULTS)
    assert (table.network, table.bits, table.profiles) == ("residual", "4/4", ("academic", "tvm", "snpe"))
    assert [(row.algorithm, row.rank) for row in table.rows] == [("ste", 1), ("lsq", 2), ("pact", None)]
    lsq = table.rows[1]
    assert (lsq.scores["tvm"].mean, lsq.scores["tvm"].std, lsq.scores["tvm"].n) == (82.0, pytest.approx(8**0.5), 2)
    assert (lsq.hardware_mean, lsq.gap) == (85.0, 4.5)
    assert lsq.hardware_std == pytest.approx(18**0.5)
    assert table.rows[0].hardware_std == 0.0


def test_an_algorithm_that_lacks_a_device_has_no_mean_over_devices():
    pact = leaderboard(RESULTS)[0].rows[-1]
    assert (pact.algorithm, pact.hardware_mean, pact.hardware_std, pact.gap) == ("pact", None, None, None)
    heads, rows = cells_of(leaderboard(RESULTS)[0])
    assert rows[-1][heads.index("snpe")] == rows[-1][heads.index("rank")] == "-"


def test_networks_and_widths_have_tables_of_their_own():
    others = [result("lsq", "tvm", 70.0, bits="3/3"), result("lsq", "tvm", 71.0, network="depthwise")]
    assert [(table.network, table.bits) for table in leaderboard([*RESULTS, *others])] == [
        ("residual", "4/4"),
        ("residual", "3/3"),
        ("depthwise", "4/4"),
    ]


def test_markdown_csv_and_json_hold_the_same_figures():
    boards = leaderboard(RESULTS)
    markdown = to_markdown(boards)
    assert "### residual, W/A 4/4, float 90.00 %" in markdown
    assert "| lsq | 89.50 ± 0.71 | 82.00 ± 2.83 | 88.00 | 85.00 | 4.24 | 4.50 | 2 |" in markdown
    rows = {(row["algorithm"], row["profile"]): row for row in csv.DictReader(io.StringIO(to_csv(boards)))}
    assert (rows["lsq", "tvm"]["mean"], rows["lsq", "tvm"]["n"], rows["pact", "tvm"]["rank"]) == ("82.0", "2", "")
    assert json.loads(dumps(boards))[0]["rows"][1]["scores"]["tvm"]["mean"] == 82.0


def test_the_papers_figures_stand_beside_the_points_that_have_one():
    (table,) = leaderboard([result("mse", "academic", 26.0, network="mobilenet_v2", bits="4/8")])
    assert table.rows[0].scores["academic"].paper == 27.03
    assert str(table.rows[0].scores["academic"]) == "26.00 (paper 27.03)"
    assert published("mobilenet_v2", "lsq", "academic", 4, 4).accuracy == 70.6
    assert published("resnet18", "minmax", "tensorrt", 8, 8).accuracy == 70.33
    assert published("resnet18", "lsq", "tensorrt", 4, 4) is None
    assert published("residual", "mse", "academic", 8, 8) is None
    assert set(FLOAT) == set(NETWORKS)
