"""Flower's nodes: those of this process, and how a server finds those that have joined."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedcl.errors import DeployError

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
"""Names of a message's records."""
SERVER = 1
"""Node id of the server in this process."""
FAILED = 0
"""Code of the error that a client's exception becomes."""
LIFE = 43_200.0
"""Seconds for which a message is valid, as in Flower."""


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
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | int | None = None
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
        timeout: float | int | None = None,  # noqa: ARG002 -- there is nothing to wait for
    ) -> Iterable[Message]:
        """Replies one by one, so that no more than one is held here."""
        return self.pull_messages(self.push_messages(messages))

    def _called(self, message: Message) -> Message:
        try:
            return self.app(message, self.contexts[message.metadata.dst_node_id])
        except Exception as error:  # as on a real node: the server gets an error, whatever it was
            return Message(Error(FAILED, f"{type(error).__name__}: {error}"), reply_to=message)


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
