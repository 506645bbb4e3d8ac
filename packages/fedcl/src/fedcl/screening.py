"""Which replies may touch the model: everything else is turned away, with a reason that is kept."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fedcl.client import Job, Reply
from fedcl.tensors import Layout, Theta


class Screen:
    """Looks at one round's replies as they come.

    Args:
        jobs: what was asked of whom.
        layouts: of each task's tensors.
    """

    def __init__(self, jobs: Mapping[int, Job], layouts: Mapping[int, Layout]) -> None:
        self.jobs, self.layouts = jobs, layouts
        self.seen: set[int] = set()
        self.rejected: list[dict[str, object]] = []

    def admits(self, reply: Reply) -> bool:
        """Whether a reply may be merged; if not, `rejected` says why."""
        reason = self._reason(reply)
        if reason is not None:
            self.reject(reply.client, reason)
            return False
        self.seen.add(reply.client)
        return True

    def reject(self, client: int, reason: str) -> None:
        """Records that a client's reply was not used."""
        self.rejected.append({"client": client, "reason": reason})

    def _reason(self, reply: Reply) -> str | None:
        job = self.jobs.get(reply.client)
        if job is None:
            return "was not asked"
        if reply.client in self.seen:
            return "duplicate reply"
        if reply.error is not None:
            return reply.error
        if reply.round != job.round:
            return f"stale: of round {reply.round}, this is {job.round}"
        if reply.task != job.task:
            return f"wrong task: {reply.task}, asked for {job.task}"
        if reply.examples < 1:
            return "no examples"
        return damage(reply.update, self.layouts[job.task])


def damage(update: Theta | None, layout: Layout) -> str | None:
    """What is wrong with an update's tensors, or None."""
    if update is None:
        return "no update"
    expected = {
        "trained": (layout.trained, update.trained),
        "averaged": (layout.averaged, update.averaged),
        "counted": (layout.counted, update.counted),
    }
    for name, (entries, vector) in expected.items():
        size = sum(entry.size for entry in entries)
        if tuple(vector.shape) != (size,):
            return f"wrong shape: {name} {list(vector.shape)}, expected [{size}]"
        if entries and vector.dtype != entries[0].dtype:
            return f"wrong dtype: {name} {vector.dtype}, expected {entries[0].dtype}"
        if vector.is_floating_point() and not bool(torch.isfinite(vector).all()):
            return f"not finite: {name}"
    return None
