"""Clients on Flower's nodes: the same loop over any `Grid`, in this process or through a SuperLink.

A message carries one ArrayRecord with the task's tensors under names that do not depend on the task, and what to do as a
ConfigRecord; a reply carries the tensors after training and one MetricRecord. Both travel as HTTP(S) when deployed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy
from torch import Tensor

from fedcl.client import Job, Reply, Trainer
from fedcl.engine.nodes import ARRAYS, CONFIG, METRICS, InProcessGrid
from fedcl.errors import ConfigError
from fedcl.tensors import Entry, Layout, Theta


def make_client_app(trainer_of: Callable[[Context], Trainer], mods: Sequence[Any] = ()) -> ClientApp:
    """A Flower ClientApp that trains the client whose index is the node's `partition-id`.

    Args:
        trainer_of: gives the trainer in the process that got a message; called for every message, so it should keep it.
        mods: Flower's or your own, such as `fixedclipping_mod`.
    """
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        trainer, asked = trainer_of(context), cast(Mapping[str, Any], message.content[CONFIG])
        client = partition_id(context)
        job = Job(
            client,
            int(asked["task"]),
            int(asked["round"]),
            int(asked["steps"]),
            int(asked["seed"]),
            bool(asked["evaluate"]),
        )
        layout = trainer.layout(job.task)
        theta = received(cast(ArrayRecord, message.content[ARRAYS]), layout)
        if isinstance(theta, str):
            raise ValueError(  # noqa: TRY004 -- a text says what is wrong
                f"the server's tensors do not fit this node's model: {theta}"
            )
        after, examples, metrics = trainer.fit(job, theta)
        figures: dict[str, Any] = {"num-examples": examples, "task": job.task, "round": job.round, "client": client}
        content = RecordDict({ARRAYS: sent(after, layout), METRICS: MetricRecord({**figures, **metrics})})
        return Message(content, reply_to=message)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        content = RecordDict({METRICS: MetricRecord({"partition-id": partition_id(context)})})
        return Message(content, reply_to=message)

    return app


def partition_id(context: Context) -> int:
    """The client's index on this node.

    Raises:
        ConfigError: the node was started without it.
    """
    if "partition-id" not in context.node_config:
        raise ConfigError(
            "the node has no partition-id", 'start it with --node-config "partition-id=0 num-partitions=2"'
        )
    return int(context.node_config["partition-id"])


def sent(theta: Theta, layout: Layout) -> ArrayRecord:
    """Named arrays for the wire."""
    tensors = layout.unflatten(theta)
    return ArrayRecord({name: Array(np.asarray(value.detach().cpu().numpy())) for name, value in tensors.items()})


def received(record: ArrayRecord, layout: Layout) -> Theta | str:
    """Tensors from the wire, or what is wrong with them; nothing is unpickled."""
    entries = (*layout.trained, *layout.averaged, *layout.counted)
    if set(record) != set(layout.names):
        return f"wrong keys: {sorted(set(record) ^ set(layout.names))[:3]}"
    tensors: dict[str, Tensor] = {}
    for entry in entries:
        try:
            tensor = torch.from_numpy(np.array(record[entry.name].numpy()))
        except (ValueError, TypeError, OSError) as error:
            return f"array {entry.name} cannot be read: {error}"
        if complaint := _mismatch(tensor, entry):
            return complaint
        tensors[entry.name] = tensor
    return layout.flatten(tensors)


class FlowerEngine:
    """Sends a round's jobs to nodes and takes their replies.

    Args:
        grid: to send through.
        nodes: node id by client.
        layout_of: layout of a task.
        timeout: seconds to wait for a round's replies; who is later is a straggler. None waits without end.
        device: where replies' tensors go.
        wrap: makes a privacy wrapper of Flower around a strategy that averages, for each group anew; the wrapper then
            clips and adds noise. Scopes "task" and "all" only, since Flower wraps whole models.
        together: the wrapper's groups are all clients ("all") instead of those of one task.
    """

    def __init__(
        self,
        grid: Grid,
        nodes: Mapping[int, int],
        layout_of: Callable[[int], Layout],
        *,
        timeout: float | None = None,
        device: str | torch.device = "cpu",
        wrap: Callable[[Strategy], Strategy] | None = None,
        together: bool = False,
    ) -> None:
        self.grid, self.nodes, self.layout_of, self.timeout = grid, dict(nodes), layout_of, timeout
        self.device, self.wrap, self.together = torch.device(device), wrap, together
        self._strategies: dict[int, Strategy] = {}

    def train(self, jobs: Sequence[Job], theta_of: Callable[[int], Theta]) -> Iterator[Reply]:
        """Replies as they come; a node that does not answer in time gives none."""
        if self.wrap is not None:
            yield from self._wrapped(jobs, theta_of)
            return
        clients, thetas = {self.nodes[job.client]: job for job in jobs if job.client in self.nodes}, _Once(theta_of)
        messages = [self._message(job, thetas, node) for node, job in clients.items()]
        for message in self.grid.send_and_receive(messages, timeout=self.timeout):
            job = clients.get(message.metadata.src_node_id)
            if job is not None:
                yield self._reply(message, job, thetas(job.task))

    def _message(self, job: Job, theta_of: Callable[[int], Theta], node: int) -> Message:
        content = RecordDict({ARRAYS: sent(theta_of(job.task), self.layout_of(job.task)), CONFIG: _asked(job)})
        return self.grid.create_message(content, "train", node, str(job.round))

    def _reply(self, message: Message, job: Job, before: Theta) -> Reply:
        if message.has_error():
            return Reply(job.client, job.task, job.round, None, error=f"client failed: {message.error.reason}")
        try:
            figures: Any = next(iter(message.content.metric_records.values()))
            arrays = next(iter(message.content.array_records.values()))
            task, round_, examples = (int(figures[name]) for name in ("task", "round", "num-examples"))
        except (StopIteration, KeyError, TypeError, ValueError):
            return Reply(job.client, job.task, job.round, None, error="reply lacks arrays or metrics")
        after = received(arrays, self.layout_of(job.task))
        if isinstance(after, str):
            return Reply(job.client, job.task, job.round, None, error=after)
        after = after.to(self.device)
        update = Theta(after.trained - before.trained, after.averaged, after.counted)
        metrics = {name: float(figures[name]) for name in ("loss", "accuracy") if name in figures}
        return Reply(job.client, task, round_, update, examples, metrics)

    def _wrapped(self, jobs: Sequence[Job], theta_of: Callable[[int], Theta]) -> Iterator[Reply]:
        """One merged reply a group, under its first client's name; the wrapper saw every single one."""
        groups: dict[int, list[Job]] = defaultdict(list)
        for job in jobs:
            groups[-1 if self.together else job.task].append(job)
        for group, members in groups.items():
            if group not in self._strategies:
                self._strategies[group] = self.wrap(_Averaging(self))  # type: ignore[misc]
            strategy, first = self._strategies[group], members[0]
            layout, before = self.layout_of(first.task), theta_of(first.task)
            inner: Any = strategy
            while hasattr(inner, "strategy"):
                inner = inner.strategy
            inner.jobs = members
            messages = strategy.configure_train(first.round + 1, sent(before, layout), ConfigRecord({}), self.grid)
            replies = list(self.grid.send_and_receive(messages, timeout=self.timeout))
            arrays, _ = strategy.aggregate_train(first.round + 1, replies)
            if arrays is None:
                reason = "Flower's wrapper gave nothing: " + "; ".join(
                    each.error.reason for each in replies if each.has_error()
                )
                yield from (Reply(job.client, job.task, job.round, None, error=reason) for job in members)
                continue
            after = received(arrays, layout)
            if isinstance(after, str):
                yield Reply(first.client, first.task, first.round, None, error=after)
                continue
            after = after.to(self.device)
            update = Theta(after.trained - before.trained, after.averaged, after.counted)
            losses = [_loss(each) for each in replies if not each.has_error()]
            yield Reply(first.client, first.task, first.round, update, inner.examples, {"loss": float(np.mean(losses))})
            failed = {
                each.metadata.src_node_id: f"client failed: {each.error.reason}" for each in replies if each.has_error()
            }
            for job in members[1:]:
                reason = failed.get(self.nodes[job.client], f"merged by Flower's wrapper under client {first.client}")
                yield Reply(job.client, job.task, job.round, None, error=reason)


class _Averaging(FedAvg):
    """What a wrapper wraps: messages to a group's clients, and the mean of their replies."""

    def __init__(self, engine: FlowerEngine) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
        self.engine, self.jobs, self.examples = engine, list[Job](), 0

    def configure_train(
        self,
        server_round: int,  # noqa: ARG002 -- jobs know theirs
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
    ) -> Iterable[Message]:
        messages = []
        for job in self.jobs:
            asked = ConfigRecord({**config, **_asked(job)})
            content = RecordDict({ARRAYS: arrays, CONFIG: asked})
            messages.append(grid.create_message(content, "train", self.engine.nodes[job.client], str(job.round)))
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        kept = [each for each in replies if not each.has_error()]
        self.examples = sum(int(cast(Any, each.content[METRICS])["num-examples"]) for each in kept)
        return super().aggregate_train(server_round, kept)


def in_process(trainer: Trainer, **options: Any) -> FlowerEngine:
    """An engine whose nodes are this process.

    Args:
        trainer: shared by all nodes.
        **options: of `FlowerEngine`; `mods` go to the ClientApp.
    """
    app = make_client_app(lambda _: trainer, options.pop("mods", ()))
    grid = InProcessGrid(app, trainer.scenario.num_clients)
    return FlowerEngine(grid, grid.nodes, trainer.layout, device=trainer.device, **options)


class _Once:
    """A task's tensors, put together once a round."""

    def __init__(self, theta_of: Callable[[int], Theta]) -> None:
        self._theta_of, self._held = theta_of, dict[int, Theta]()

    def __call__(self, task: int) -> Theta:
        if task not in self._held:
            self._held[task] = self._theta_of(task)
        return self._held[task]


def _asked(job: Job) -> ConfigRecord:
    return ConfigRecord(
        {"task": job.task, "round": job.round, "steps": job.steps, "seed": job.seed, "evaluate": job.evaluate}
    )


def _loss(message: Message) -> float:
    figures: Any = message.content[METRICS]
    return float(figures["loss"])


def _mismatch(tensor: Tensor, entry: Entry) -> str | None:
    if tuple(tensor.shape) != entry.shape:
        return f"wrong shape: {entry.name} {list(tensor.shape)}, expected {list(entry.shape)}"
    if tensor.dtype != entry.dtype:
        return f"wrong dtype: {entry.name} {tensor.dtype}, expected {entry.dtype}"
    return None
