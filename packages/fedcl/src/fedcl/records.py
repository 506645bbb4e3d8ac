"""What a federation leaves: a record of each round, and the accuracies after each phase."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedcl import metrics


@dataclass
class RoundRecord:
    """What happened in one round.

    Attributes:
        phase: from 0.
        round: from 0 over all phases.
        sampled: clients that were asked.
        accepted: clients whose updates were merged.
        rejected: {client, reason} of the others.
        failed: there was no quorum, and nothing changed.
        loss: mean over accepted clients of their training loss.
        drift: as of `metrics.drift`, over the trained tensors that are merged; null where no group has two updates.
        cosine: mean pairwise cosine of updates.
        update_norm: of the mean update.
        bytes_down: sent to clients.
        bytes_up: received from the accepted ones.
        local_accuracy: mean accuracy of the clients' own models right after training, when diagnosed.
        merged_accuracy: mean accuracy of the server's models on the same tasks.
        notes: what a robust rule fell back to.
        seconds: wall time.
    """

    phase: int
    round: int
    sampled: list[int]
    accepted: list[int]
    rejected: list[dict[str, Any]]
    failed: bool
    loss: float
    drift: float
    cosine: float
    update_norm: float
    bytes_down: int
    bytes_up: int
    local_accuracy: float | None = None
    merged_accuracy: float | None = None
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class RunResult:
    """What a federation came to.

    Attributes:
        accuracy: [T, T]; row p is after phase p, column t the test accuracy of task t.
        seen: bool [T, T]: whether any client had trained task t by then.
        untrained: accuracy of the initial model on each task, [T].
        history: one record a round.
        config: protocol, training, optimiser and digests of scenario and frozen weights.
        versions: of the packages that computed it.
    """

    accuracy: np.ndarray
    seen: np.ndarray
    untrained: np.ndarray
    history: list[RoundRecord]
    config: dict[str, Any]
    versions: dict[str, str]

    @property
    def figures(self) -> dict[str, float]:
        """The usual figures: final average accuracy, forgetting, transfers, drift, aggregation drop, bytes."""
        drifts = [record.drift for record in self.history if math.isfinite(record.drift)]
        drops = [
            record.local_accuracy - record.merged_accuracy
            for record in self.history
            if record.local_accuracy is not None and record.merged_accuracy is not None
        ]
        local = [record.local_accuracy for record in self.history if record.local_accuracy is not None]
        return {
            "accuracy": float(metrics.average_accuracy(self.accuracy)[-1]),
            "forgetting": metrics.forgetting(self.accuracy, self.seen),
            "backward_transfer": metrics.backward_transfer(self.accuracy, self.seen),
            "forward_transfer": metrics.forward_transfer(self.accuracy, self.seen, self.untrained),
            "drift": float(np.mean(drifts)) if drifts else math.nan,
            "aggregation_drop": float(np.mean(drops)) if drops else math.nan,
            "local_accuracy": float(np.mean(local)) if local else math.nan,
            "bytes_down": float(sum(record.bytes_down for record in self.history)),
            "bytes_up": float(sum(record.bytes_up for record in self.history)),
            "failed_rounds": float(sum(record.failed for record in self.history)),
        }


def record_from(line: dict[str, Any]) -> RoundRecord:
    """The record that a line of `log.jsonl` holds."""
    bad = line.pop("non_finite", [])
    return RoundRecord(**{**line, **dict.fromkeys(bad, math.nan)})
