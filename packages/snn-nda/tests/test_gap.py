"""The generalisation gap in closed form."""

import math

import pytest

from core_utils.errors import UserError
from core_utils.training import History
from snn_nda.gap import compare_arms, gap_report, gap_summary


def record(epoch, train, test, losses=(0.5, 1.0)):
    return {
        "epoch": epoch,
        "loss": 9.0,
        "train_accuracy": train,
        "test_accuracy": test,
        "train_loss": losses[0],
        "test_loss": losses[1],
    }


def test_the_gap_is_what_seen_data_are_better_by():
    report = gap_report(History((record(0, 0.5, 0.4), record(1, 0.9, 0.6, (0.25, 2.0)))))
    assert report["epoch"] == [0, 1]
    assert report["gap"] == pytest.approx([0.1, 0.3])
    assert report["loss_gap"] == [0.5, 1.75]
    assert {len(column) for column in report.values()} == {2}


def test_epochs_that_did_not_measure_both_are_left_out():
    report = gap_report([{"epoch": 0, "loss": 1.0}, {"epoch": 1, "test_accuracy": 0.5}, record(2, 0.9, 0.6)])
    assert report["epoch"] == [2]


def test_a_history_without_measurements_is_refused():
    with pytest.raises(UserError, match="no epoch measured both train and held_out"):
        gap_report([record(0, 1.0, 1.0)], unseen="held_out")


def test_a_summary_takes_the_last_epoch_and_names_what_selection_would_add():
    accuracies = [0.9, 0.5, 0.7, 0.6]
    summary = gap_summary(gap_report([record(epoch, 1.0, each) for epoch, each in enumerate(accuracies)]), over=3)
    assert summary["test_accuracy"] == 0.6
    assert summary["gap"] == pytest.approx(0.4)
    assert summary["instability"] == pytest.approx(0.1)  # of 0.5, 0.7, 0.6 with n - 1
    assert (summary["best_test_accuracy"], summary["best_epoch"]) == (0.9, 0)
    assert summary["selection_bonus"] == pytest.approx(0.3)


def test_one_epoch_says_nothing_of_steadiness():
    assert math.isnan(gap_summary(gap_report([record(0, 1.0, 0.5)]))["instability"])


def figures(test, gap, instability=0.01):
    return {
        "train_accuracy": test + gap,
        "test_accuracy": test,
        "gap": gap,
        "loss_gap": gap,
        "instability": instability,
    }


def test_arms_are_compared_seed_by_seed():
    none = {0: figures(0.50, 0.4), 1: figures(0.70, 0.2), 2: figures(0.60, 0.3)}
    nda = {0: figures(0.52, 0.3), 1: figures(0.72, 0.1), 2: figures(0.62, 0.2), 3: figures(0.9, 0.9)}
    first, second = compare_arms({"nda": nda, "none": none}, "none")
    assert (first["arm"], second["arm"], second["seeds"]) == ("none", "nda", [0, 1, 2, 3])
    assert first["test_accuracy"] == pytest.approx(0.6)
    assert "gap_gain" not in first
    # The same gain in every seed: the spread between seeds, ten times as large, does not count.
    gain = second["test_accuracy_gain"]
    assert (gain.mean, gain.n, gain.kind) == (pytest.approx(0.02), 3, "reproduced")
    assert second["gap_gain"].mean == pytest.approx(0.1)
    assert second["instability_gain"].kind == "inconclusive"


def test_two_seeds_have_no_interval():
    arm = {0: figures(0.5, 0.4), 1: figures(0.5, 0.4)}
    _, other = compare_arms({"none": arm, "nda": dict(arm)}, "none")
    assert not any(name.endswith("_gain") for name in other)


def test_a_missing_baseline_names_the_arms():
    with pytest.raises(UserError, match=r"no run of the baseline 'none' .*nda"):
        compare_arms({"nda": {0: figures(0.5, 0.1)}}, "none")
