"""The generalisation gap: how much better a network is on what it was trained on, epoch by epoch and over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from core_utils.claims import judge
from core_utils.errors import UserError
from core_utils.training import History

STABLE_OVER = 10
"""Epochs at the end whose test accuracies are compared to see how steady a training is."""


def gap_report(
    history: History | Sequence[Mapping[str, Any]], *, seen: str = "train", unseen: str = "test"
) -> dict[str, list[float]]:
    """Accuracy and loss on seen and unseen data, and their gap, for every epoch that measured both.

    Args:
        history: what `train` returned with both among its `watch`, or the records of a run's log.
        seen: name of the data that were trained on, measured without augmentation.
        unseen: name of the data that were not.

    Returns:
        Columns of equal length: `epoch`, `train_accuracy`, `test_accuracy`, `gap` (accuracy on seen minus on unseen
        data), `train_loss`, `test_loss`, `loss_gap` (loss on unseen minus on seen data; nats). Accuracies are fractions.

    Raises:
        UserError: no epoch measured both.
    """
    records = history.records if isinstance(history, History) else history
    names = [f"{part}_{figure}" for figure in ("accuracy", "loss") for part in (seen, unseen)]
    rows = [[float(record[name]) for name in ("epoch", *names)] for record in records if {*names} <= {*record}]
    if not rows:
        raise UserError(f"no epoch measured both {seen} and {unseen}", "train with both among `watch`")
    epoch, train_accuracy, test_accuracy, train_loss, test_loss = map(list, zip(*rows, strict=True))
    return {
        "epoch": epoch,
        "train_accuracy": train_accuracy,
        "test_accuracy": test_accuracy,
        "gap": [a - b for a, b in zip(train_accuracy, test_accuracy, strict=True)],
        "train_loss": train_loss,
        "test_loss": test_loss,
        "loss_gap": [b - a for a, b in zip(train_loss, test_loss, strict=True)],
    }


def gap_summary(report: Mapping[str, Sequence[float]], *, over: int = STABLE_OVER) -> dict[str, float]:
    """One training in numbers, at its last epoch.

    Args:
        report: of `gap_report`.
        over: epochs at the end that instability looks at; fewer are taken if there are fewer.

    Returns:
        The last value of every column but the epoch; `instability`, the standard deviation of the test accuracy over
        the last `over` epochs (NaN for fewer than 2); `best_test_accuracy` with its `best_epoch`, which is what a paper
        prints that selects the epoch on the test data, and is too good by `selection_bonus`.
    """
    accuracies = list(report["test_accuracy"])
    best = max(accuracies)
    last = accuracies[-over:]
    return {
        **{name: values[-1] for name, values in report.items() if name != "epoch"},
        "instability": statistics.stdev(last) if len(last) > 1 else math.nan,
        "best_test_accuracy": best,
        "best_epoch": report["epoch"][accuracies.index(best)],
        "selection_bonus": best - accuracies[-1],
    }


COMPARED = {"test_accuracy": 1, "gap": -1, "loss_gap": -1, "instability": -1}
"""What `compare_arms` compares, and whether more (1) or less (-1) is better."""


def compare_arms(arms: Mapping[str, Mapping[int, Mapping[str, float]]], baseline: str) -> list[dict[str, Any]]:
    """What each arm gains over the baseline, paired by seed.

    Args:
        arms: by name of the arm and seed, what `gap_summary` gave.
        baseline: name of the arm to compare with.

    Returns:
        A row an arm, baseline first: `arm`, `seeds`, the mean of each figure of `COMPARED` and of `train_accuracy`,
        and for other arms with at least three seeds in common `<figure>_gain`, a `Verdict`: the mean with its 95 %
        Student-t interval of how much better the arm is.

    Raises:
        UserError: there is no such baseline.
    """
    if baseline not in arms:
        raise UserError(f"there is no run of the baseline {baseline!r}", f"there are {', '.join(sorted(arms))}")
    return [_row(name, arms[name], arms[baseline]) for name in sorted(arms, key=lambda name: (name != baseline, name))]


def _row(
    name: str, arm: Mapping[int, Mapping[str, float]], baseline: Mapping[int, Mapping[str, float]]
) -> dict[str, Any]:
    means = {
        figure: statistics.fmean(each[figure] for each in arm.values()) for figure in ("train_accuracy", *COMPARED)
    }
    row: dict[str, Any] = {"arm": name, "seeds": sorted(arm), **means}
    paired = sorted(set(arm) & set(baseline))
    if arm is baseline or len(paired) < 3:
        return row
    for figure, sign in COMPARED.items():
        gains = [sign * (arm[seed][figure] - baseline[seed][figure]) for seed in paired]
        row[f"{figure}_gain"] = judge(gains) if all(map(math.isfinite, gains)) else None
    return row
