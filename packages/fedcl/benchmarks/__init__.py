"""Rounds of a federation beside a plain PyTorch loop and Flower's own strategy on the same clients.

Perceptron 196-64-64-10, 5 steps of batch 32 a client and round, FedAdam on the server, data in memory, one thread. The plain
loop is what one writes first: it loads the global weights, runs torch.optim.SGD, and averages in Python. Ours also screens
replies, measures drift and keeps records, as it always does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from core_utils.bench import Benchmark

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

STEPS, BATCH, IMAGES, LR = 5, 32, 160, 0.05
ROUNDS = {10: 10, 100: 2}
"""Of a call, by clients."""


def local_10() -> Callable[[], object]:
    """Our engine that trains clients in turn, 10 clients."""
    return _ours("local", 10)


def local_100() -> Callable[[], object]:
    """The same, 100 clients."""
    return _ours("local", 100)


def stacked_10() -> Callable[[], object]:
    """Our engine that stacks clients, 10 clients."""
    return _ours("stacked", 10)


def stacked_100() -> Callable[[], object]:
    """The same, 100 clients."""
    return _ours("stacked", 100)


def flower_100() -> Callable[[], object]:
    """Our loop over Flower's in-process nodes, 100 clients."""
    return _ours("flwr", 100)


def _ours(engine: str, clients: int) -> Callable[[], Tensor]:
    from fedcl import FedAdam, FederatedRun, LocalTraining, Protocol, Scenario, Trainer
    from fedcl.federation import engine_of

    x, y = data(clients)
    scenario = Scenario.from_arrays(x, y, x_test=x[:100], y_test=y[:100], tasks=1, clients=clients)
    training = LocalTraining(STEPS, batch_size=BATCH, lr=LR)
    trainer = Trainer(scenario, perceptron, training)
    made: Any = engine_of(engine, trainer)
    protocol = Protocol(scope="all", rounds=ROUNDS[clients], diagnose="never")

    def call() -> Tensor:
        run = FederatedRun(
            scenario, perceptron, FedAdam(0.03), engine=made, training=training, protocol=protocol, trainer=trainer
        )
        run.run()
        return run.server.theta(0).trained

    return call


def plain_10() -> Callable[[], object]:
    """The plain loop, 10 clients."""
    return plain(10)


def plain_100() -> Callable[[], object]:
    """The plain loop, 100 clients."""
    return plain(100)


def plain(clients: int) -> Callable[[], Tensor]:
    """Clients in turn, weights averaged in Python, one Adam step on their mean."""
    import torch

    x, y = (torch.from_numpy(part) for part in data(clients))
    rows = [torch.arange(client, len(y), clients) for client in range(clients)]
    held = [(x[own], y[own]) for own in rows]

    def call() -> Tensor:
        torch.manual_seed(0)
        model, server = perceptron(10), perceptron(10)
        moments = [[torch.zeros_like(p) for p in server.parameters()] for _ in range(2)]
        for _ in range(ROUNDS[clients]):
            total = [torch.zeros_like(p) for p in server.parameters()]
            for images, labels in held:
                model.load_state_dict(server.state_dict())
                train(model, images, labels)
                for each, after in zip(total, model.parameters(), strict=True):
                    each += after.detach() * len(labels)
            with torch.no_grad():
                for p, mean, m, v in zip(server.parameters(), total, *moments, strict=True):
                    delta = mean / len(y) - p
                    m.mul_(0.9).add_(delta, alpha=0.1)
                    v.mul_(0.99).add_(delta**2, alpha=0.01)
                    p += 0.03 * m / (v.sqrt() + 1e-3)
        return torch.cat([p.detach().flatten() for p in server.parameters()])

    return call


def flower_s_own_100() -> Callable[[], object]:
    """Flower's FedAdam and a ClientApp with the plain loop's training, on the same in-process nodes."""
    import logging

    import torch
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp.strategy import FedAdam

    from fedcl.engine.nodes import InProcessGrid, flower_identity

    logging.getLogger("flwr").setLevel(logging.ERROR)
    clients = 100
    x, y = (torch.from_numpy(part) for part in data(clients))
    held = [(x[client::clients].clone(), y[client::clients].clone()) for client in range(clients)]
    model, app = perceptron(10), ClientApp()

    @app.train()
    def answer(message: Message, context: Context) -> Message:
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())  # type: ignore[union-attr]
        images, labels = held[int(context.node_config["partition-id"])]
        train(model, images, labels)
        metrics = MetricRecord({"num-examples": len(labels)})
        return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)

    def call() -> dict[str, np.ndarray]:
        torch.manual_seed(0)
        grid = InProcessGrid(app, clients)
        strategy = FedAdam(eta=0.03, fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
        start = ArrayRecord({name: Array(value.numpy()) for name, value in perceptron(10).state_dict().items()})
        with flower_identity():
            result = strategy.start(grid, start, num_rounds=ROUNDS[clients], train_config=ConfigRecord({}))
        return {name: array.numpy() for name, array in result.arrays.items()}

    return call


def train(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Five steps as one writes them."""
    import torch

    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    order = torch.randperm(len(labels))
    for step in range(STEPS):
        rows = order[step * BATCH : (step + 1) * BATCH]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()


def perceptron(classes: int) -> nn.Module:
    """196-64-64-10."""
    from torch import nn

    return nn.Sequential(nn.Linear(196, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, classes))


def data(clients: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise around a centre a class: float32 [n, 196], int64 [n]."""
    import numpy as np

    rng = np.random.default_rng(0)
    y = np.arange(clients * IMAGES) % 10
    return (rng.normal(size=(10, 196))[y] + rng.normal(size=(len(y), 196))).astype(np.float32), y


WHAT = "Rounds of a perceptron (5 steps of batch 32 a client), one thread"

BENCHMARKS = (
    Benchmark(
        id="local-10",
        statement=f"{WHAT}, 10 clients: the local engine takes at most 1.15 times as long as a plain loop.",
        ours=local_10,
        peer=plain_10,
        target=1 / 1.15,
    ),
    Benchmark(
        id="local-100",
        statement=f"{WHAT}, 100 clients: the local engine takes at most 1.15 times as long as a plain loop.",
        ours=local_100,
        peer=plain_100,
        target=1 / 1.15,
    ),
    Benchmark(
        id="stacked-10",
        statement=f"{WHAT}, 10 clients: the stacked engine beside a plain loop.",
        ours=stacked_10,
        peer=plain_10,
    ),
    Benchmark(
        id="stacked-100",
        statement=f"{WHAT}, 100 clients: the stacked engine is at least 2.2 times as fast as a plain loop.",
        ours=stacked_100,
        peer=plain_100,
        target=2.2,
    ),
    Benchmark(
        id="local-beside-flower",
        statement=f"{WHAT}, 100 clients: the local engine beside Flower's FedAdam on in-process nodes.",
        ours=local_100,
        peer=flower_s_own_100,
    ),
    Benchmark(
        id="nodes-beside-flower",
        statement=f"{WHAT}, 100 clients: our loop over Flower's in-process nodes beside Flower's FedAdam on them.",
        ours=flower_100,
        peer=flower_s_own_100,
    ),
    Benchmark(
        id="nodes-beside-plain",
        statement=f"{WHAT}, 100 clients: our loop over in-process nodes takes at most 2.3 times as long as a plain loop.",
        ours=flower_100,
        peer=plain_100,
        target=1 / 2.3,
    ),
)
