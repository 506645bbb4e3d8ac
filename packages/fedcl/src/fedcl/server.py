"""The server's tensors, and how a round's updates change them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedcl.client import Reply
from fedcl.errors import ConfigError
from fedcl.metrics import Spread
from fedcl.privacy import Privacy, clipped
from fedcl.robust import Aggregator
from fedcl.server_opt import ServerOptimizer
from fedcl.tensors import Layout, Theta

Scope = Literal["task", "shared", "all"]


class Server:
    """Tensors and optimiser of each group.

    A group is what is merged together. Scope "task": all tensors of a task, over the clients that train it. "shared":
    all but the heads are one group over all clients, each task's head one of its own. "all": everything is one group.

    Args:
        layouts: of each task's tensors.
        initial: each task's tensors.
        optimizer: each group gets a fresh one.
        scope: "task", "shared" or "all".

    Raises:
        ConfigError: tensors that the scope would merge differ in shape.
    """

    def __init__(
        self, layouts: Mapping[int, Layout], initial: Mapping[int, Theta], optimizer: ServerOptimizer, scope: Scope
    ) -> None:
        if scope not in ("task", "shared", "all"):
            raise ConfigError(f"scope must be task, shared or all, got {scope!r}")
        self.layouts, self.scope = layouts, scope
        first = layouts[min(layouts)]
        if scope == "all" and any(layout != first for layout in layouts.values()):
            heads = sorted({layout.head for layout in layouts.values()})
            raise ConfigError(
                f"scope all merges heads by position, but tasks have heads of {heads} values", "use shared"
            )
        if scope == "shared" and any(layout.body != first.body for layout in layouts.values()):
            raise ConfigError("scope shared merges all but the heads, whose shapes differ between tasks")
        self.vectors: dict[str, Tensor] = {}
        self.buffers: dict[str, tuple[Tensor, Tensor]] = {}
        for task, theta in sorted(initial.items()):
            for index, (group, part) in enumerate(self.groups(task)):
                self.vectors.setdefault(group, theta.trained[part].clone())
                if index == 0:
                    self.buffers.setdefault(group, (theta.averaged.clone(), theta.counted.clone()))
        self.optimizers = {group: optimizer.fresh() for group in self.vectors}

    def groups(self, task: int) -> list[tuple[str, slice]]:
        """The groups that hold a task's trained vector, in order; the first also holds its buffers."""
        if self.scope == "shared":
            body = self.layouts[task].shared
            return [("shared", slice(0, body)), (f"head{task}", slice(body, None))]
        return [(f"task{task}" if self.scope == "task" else "all", slice(None))]

    def theta(self, task: int) -> Theta:
        """A task's tensors as they are now."""
        groups = [group for group, _ in self.groups(task)]
        return Theta(torch.cat([self.vectors[group] for group in groups]), *self.buffers[groups[0]])

    def state(self) -> dict[str, Tensor]:
        """Tensors, buffers, moments and counts of all groups, by name."""
        held = {f"trained/{group}": vector for group, vector in self.vectors.items()}
        for group, (averaged, counted) in self.buffers.items():
            held |= {f"averaged/{group}": averaged, f"counted/{group}": counted}
        for group, optimizer in self.optimizers.items():
            held |= {f"optimizer/{group}/{name}": value for name, value in optimizer.state_dict().items()}
        return held

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes what `state` gave."""
        self.vectors = {group: state[f"trained/{group}"].clone() for group in self.vectors}
        self.buffers = {
            group: (state[f"averaged/{group}"].clone(), state[f"counted/{group}"].clone()) for group in self.buffers
        }
        for group, optimizer in self.optimizers.items():
            prefix = f"optimizer/{group}/"
            optimizer.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})


class Gathering:
    """One round's updates, merged as they come; with the plain mean none of them is kept.

    Args:
        server: whose groups; it changes only in `apply`.
        aggregator: merges a group.
        by_examples: weight of a client is its number of images, else 1.
        privacy: clips and adds noise.
    """

    def __init__(
        self, server: Server, aggregator: Aggregator, *, by_examples: bool = True, privacy: Privacy | None = None
    ) -> None:
        self.server, self.aggregator, self.by_examples, self.privacy = server, aggregator, by_examples, privacy
        self.spreads: dict[str, Spread] = {}
        self.weights: dict[str, list[float]] = {}
        self.held: dict[str, list[Tensor]] = {}
        self.averaged: dict[str, Tensor] = {}
        self.counted: dict[str, Tensor] = {}
        self.notes: list[str] = []

    def add(self, reply: Reply) -> None:
        """Takes the update of an admitted reply."""
        update = reply.update
        assert update is not None, "only admitted replies are gathered"  # noqa: S101 -- for the type checker
        weight = float(reply.examples) if self.by_examples else 1.0
        for index, (group, part) in enumerate(self.server.groups(reply.task)):
            delta = update.trained[part]
            if self.privacy is not None:
                delta = clipped(delta, self.privacy.clip_norm)
            self.spreads.setdefault(group, Spread()).add(delta, weight)
            self.weights.setdefault(group, []).append(weight)
            if self.aggregator.rule != "mean":
                self.held.setdefault(group, []).append(delta.clone())
            if index == 0:
                self._add_buffers(group, update, weight)

    def apply(self, seed: tuple[int, int]) -> None:
        """One optimiser step in every group that got updates; the others are not touched.

        Args:
            seed: of the federation, and the round; privacy's noise derives from them.

        Raises:
            ConfigError: a group has fewer updates than the rule needs and the fallback is "error".
        """
        merged = {group: self._merged(group) for group in sorted(self.spreads)}
        for number, (group, delta) in enumerate(merged.items()):
            if delta is None:
                continue
            if self.privacy is not None:
                delta = self.privacy.noisy(delta, self.weights[group], (*seed, number))
            old = self.server.vectors[group]
            self.server.vectors[group] = self.server.optimizers[group].step({"x": old}, {"x": delta})["x"]
            if group in self.averaged:
                self.server.buffers[group] = self.averaged[group] / sum(self.weights[group]), self.counted[group]

    @property
    def drift(self) -> float:
        """Mean over clients of each one's group's drift, over groups of two and more; NaN where there is none."""
        return self._mean_over_clients(lambda spread: spread.drift)

    @property
    def cosine(self) -> float:
        """Mean pairwise cosine of updates, likewise."""
        return self._mean_over_clients(lambda spread: spread.cosine)

    @property
    def norm(self) -> float:
        """Norm of the mean update over all groups."""
        return float(np.sqrt(sum(float(torch.linalg.vector_norm(each.mean)) ** 2 for each in self.spreads.values())))

    def _mean_over_clients(self, figure: object) -> float:
        bodies = [each for group, each in self.spreads.items() if group in self.server.buffers and each.count > 1]
        if not bodies:
            return float("nan")
        return float(np.average([figure(each) for each in bodies], weights=[each.count for each in bodies]))  # type: ignore[operator]

    def _add_buffers(self, group: str, update: Theta, weight: float) -> None:
        if group not in self.averaged:
            self.averaged[group], self.counted[group] = weight * update.averaged, update.counted.clone()
        else:
            self.averaged[group].add_(update.averaged, alpha=weight)
            self.counted[group] = torch.maximum(self.counted[group], update.counted)

    def _merged(self, group: str) -> Tensor | None:
        rule, count = self.aggregator, self.spreads[group].count
        if rule.rule == "mean":
            return self.spreads[group].mean
        if count >= rule.needs:
            return rule(torch.stack(self.held[group]))
        said = f"{group} has {count} updates, {rule.rule} needs {rule.needs}"
        if rule.fallback == "error":
            raise ConfigError(said, "set fallback to skip or mean")
        self.notes.append(f"{said}: {rule.fallback}")
        return self.spreads[group].mean if rule.fallback == "mean" else None
