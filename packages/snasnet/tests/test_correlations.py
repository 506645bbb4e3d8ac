"""Rank correlations and their intervals."""

import math

import numpy as np
import pytest
from scipy.stats import kendalltau

from snasnet.correlations import correlate


def test_correlations_are_those_of_scipy_with_an_interval_around():
    rng = np.random.default_rng(0)
    truth = rng.random(40)
    table = [
        {"id": str(i), "score": truth[i] + 0.2 * rng.random(), "params": 5, "convs": -truth[i], "status": "ok"}
        for i in range(40)
    ]
    found = correlate(table, {str(i): truth[i] for i in range(40)})
    tau, low, high = found["score"]
    assert tau == pytest.approx(kendalltau([row["score"] for row in table], truth).statistic)
    assert low < tau < high
    tied = correlate([{**row, "score": i // 7} for i, row in enumerate(table)], {str(i): truth[i] for i in range(40)})
    assert tied["score"][0] == pytest.approx(kendalltau(np.arange(40) // 7, truth).statistic)
    assert found["convs"] == (pytest.approx(-1), pytest.approx(-1), pytest.approx(-1))
    assert math.isnan(found["params"][0])
    with pytest.raises(ValueError, match="at least 3"):
        correlate(table, {"0": 0.5})
