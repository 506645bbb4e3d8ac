"""Clients on Flower's nodes: the same loop over any `Grid`, in this process or through a SuperLink.

A message carries one ArrayRecord with the task's tensors under names that do not depend on the task, and what to do as a
ConfigRecord; a reply carries the tensors after training and one MetricRecord. Both travel as HTTP(S) when deployed.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.app.metadata import Metadata
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy
from torch import Tensor

from fedcl.client import Job, Reply, Trainer
from fedcl.errors import ConfigError, DeployError
from fedcl.tensors import Entry, Layout, Theta

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
SERVER = 1
"""Node id of the server in this process."""
FAILED = 0
"""Code of the error that a client's exception becomes."""
LIFE = 43_200.0
"""Seconds for which a message is valid, as in Flower."""


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


class InProcessGrid(Grid):
    """Flower's nodes in this process, without Ray: each message calls the ClientApp when its reply is asked for.

    Args:
        app: the ClientApp.
        clients: how many nodes; node `client + 2` holds partition `client`.
    """

    def __init__(self, app: ClientApp, clients: int) -> None:
        self.app = app
        self.contexts = {
            client + 2: Context(
                run_id=1,
                node_id=client + 2,
                node_config={"partition-id": client, "num-partitions": clients},
                state=RecordDict(),
                run_config={},
            )
            for client in range(clients)
        }
        self._waiting: dict[str, Message] = {}

    @property
    def nodes(self) -> dict[int, int]:
        """Node id by client."""
        return {int(context.node_config["partition-id"]): node for node, context in self.contexts.items()}

    def set_run(self, run: Any) -> None:
        """There is one run."""

    @property
    def run(self) -> Any:
        """Not kept here."""
        raise NotImplementedError("the in-process grid holds no Run")

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message with an id of its own, which replies refer to."""
        metadata = Metadata(
            run_id=1,
            message_id=uuid.uuid4().hex,
            src_node_id=SERVER,
            dst_node_id=dst_node_id,
            reply_to_message_id="",
            group_id=group_id,
            created_at=time.time(),
            ttl=ttl or LIFE,
            message_type=message_type,
        )
        return Message(content=content, metadata=metadata)  # type: ignore[call-overload]

    def get_node_ids(self) -> Iterable[int]:
        """All nodes, always."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keeps the messages; gives their ids."""
        ids = []
        for message in messages:
            # Stock strategies make messages without an id, which a SuperLink would set.
            ids.append(message.metadata.message_id or uuid.uuid4().hex)
            message.metadata.__dict__["_message_id"] = ids[-1]
            self._waiting[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Calls the ClientApp for each message that is still waiting."""
        for name in message_ids:
            message = self._waiting.pop(name, None)
            if message is not None:
                yield self._called(message)

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,  # noqa: ARG002 -- there is nothing to wait for
    ) -> Iterable[Message]:
        """Replies one by one, so that no more than one is held here."""
        return self.pull_messages(self.push_messages(messages))

    def _called(self, message: Message) -> Message:
        try:
            return self.app(message, self.contexts[message.metadata.dst_node_id])
        except Exception as error:  # as on a real node: the server gets an error, whatever it was
            return Message(Error(FAILED, f"{type(error).__name__}: {error}"), reply_to=message)


def in_process(trainer: Trainer, **options: Any) -> FlowerEngine:
    """An engine whose nodes are this process.

    Args:
        trainer: shared by all nodes.
        **options: of `FlowerEngine`; `mods` go to the ClientApp.
    """
    app = make_client_app(lambda _: trainer, options.pop("mods", ()))
    grid = InProcessGrid(app, trainer.scenario.num_clients)
    return FlowerEngine(grid, grid.nodes, trainer.layout, device=trainer.device, **options)


def find_nodes(grid: Grid, clients: int, limit: float) -> dict[int, int]:
    """Waits until a node of each partition has joined, and asks each which one it is.

    Returns:
        Node id by client.

    Raises:
        DeployError: some did not join or answer within `limit` seconds.
    """
    found: dict[int, int] = {}
    end = time.monotonic() + limit
    while len(found) < clients:
        left = end - time.monotonic()
        if left <= 0:
            missing = sorted(set(range(clients)) - set(found))
            raise DeployError(
                f"{len(found)} of {clients} nodes joined within {limit:g} s; partitions {missing} are missing"
            )
        asked = [node for node in grid.get_node_ids() if node not in found.values()]
        messages = [grid.create_message(RecordDict({}), "query", node, "query") for node in asked]
        for reply in grid.send_and_receive(messages, timeout=min(left, 60.0)) if messages else ():
            if not reply.has_error():
                figures: Any = reply.content[METRICS]
                found[int(figures["partition-id"])] = reply.metadata.src_node_id
        if len(found) < clients:
            time.sleep(1.0)
    return found


@contextlib.contextmanager
def flower_identity(run_id: int = 1, node_id: int = SERVER) -> Iterator[None]:
    """Lets stock strategies make messages outside of a Flower process; what was set before is put back.

    `Message(...)` reads `flwr.supercore.task_identity.TaskIdentity`, which is private to Flower and global. Only
    comparisons with stock strategies need this.
    """
    from flwr.supercore.task_identity import TaskIdentity

    names = ("_task_id", "_run_id", "_node_id")
    before = {name: getattr(TaskIdentity, name) for name in names}
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, node_id
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, name, value)


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
