"""A Flower app of a configuration: what `flwr run` ships to a SuperLink and its SuperNodes."""

from __future__ import annotations

import functools
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from core_utils.files import write_atomically
from core_utils.jsonable import dumps, jsonable
from core_utils.runs import Run
from fedcl.client import Trainer
from fedcl.engine.flower import FlowerEngine, make_client_app
from fedcl.engine.nodes import find_nodes
from fedcl.errors import DeployError
from fedcl.job import JobConfig, make_run, read_config

_log = logging.getLogger(__name__)

PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "fedcl-app"
version = "1.0.0"
description = "A federation of fedcl"
license = "Apache-2.0"
dependencies = ["fedcl[flwr]>=1,<2"]

[tool.hatch.build.targets.wheel]
packages = ["fedcl_app"]

[tool.flwr.app]
publisher = "fedcl"

[tool.flwr.app.components]
serverapp = "fedcl_app.server:app"
clientapp = "fedcl_app.client:app"

[tool.flwr.app.config]
out = {out}
join-seconds = {join}
round-seconds = {round}
"""
CLIENT = '''\
"""Trains the client of this node's partition."""

from pathlib import Path

from fedcl.deploy.app import client_app, read

app = client_app(read(Path(__file__).with_name("config.json")))
'''
SERVER = '''\
"""Runs the federation over the nodes that join."""

from pathlib import Path

from fedcl.deploy.app import read, server_app

app = server_app(read(Path(__file__).with_name("config.json")))
'''


def write_app(
    folder: Path, config: JobConfig, *, out: Path, join_seconds: float = 120, round_seconds: float = 3600
) -> None:
    """Writes the folder that `flwr run` takes.

    Args:
        folder: must not exist or be empty.
        config: what is run; paths in it are those of the machines that read them.
        out: folder of the results on the server's machine.
        join_seconds: how long the server waits for its nodes.
        round_seconds: how long it waits for a round's replies.

    Raises:
        DeployError: the folder holds something.
    """
    if folder.exists() and any(folder.iterdir()):
        raise DeployError(f"{folder} is not empty", "name a new folder")
    values = {"out": json.dumps(str(out)), "join": float(join_seconds), "round": float(round_seconds)}
    write_atomically(folder / "pyproject.toml", PYPROJECT.format(**values))
    files = {"__init__.py": '"""A federation of fedcl."""\n', "client.py": CLIENT, "server.py": SERVER}
    for name, text in files.items():
        write_atomically(folder / "fedcl_app" / name, text)
    write_atomically(folder / "fedcl_app" / "config.json", json.dumps(jsonable(asdict(config)), indent=2) + "\n")


def read(file: Path) -> JobConfig:
    """The configuration beside an app's modules."""
    return read_config(json.loads(file.read_bytes()), str(file))


def client_app(config: JobConfig) -> ClientApp:
    """The ClientApp of a configuration; data and model are made on the first message."""

    @functools.cache
    def trainer() -> Trainer:
        torch.set_num_threads(1)
        return make_run(_without_engine(config)).trainer

    return make_client_app(lambda _: trainer())


def server_app(config: JobConfig) -> ServerApp:
    """The ServerApp of a configuration: finds its nodes, runs all rounds, evaluates on the server, keeps a run folder.

    A restarted one goes on from its last round. `flwr run --run-config` may set out, join-seconds and round-seconds.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        torch.set_num_threads(1)
        settings: Any = context.run_config
        federation = make_run(_without_engine(config))
        nodes = find_nodes(grid, federation.scenario.num_clients, float(settings["join-seconds"]))
        limit = float(settings["round-seconds"])
        federation.engine = FlowerEngine(
            grid, nodes, federation.trainer.layout, timeout=limit, device=federation.trainer.device
        )
        with Run.open(Path(str(settings["out"])), config.asked(), resume=True) as run:
            if not run.finished:
                result = federation.run([_told], run=run)
                run.finish({**result.figures, "accuracy_matrix": result.accuracy, "seen": result.seen})

    return app


def _told(record: Any) -> None:
    _log.warning("round %d: %d of %d replies", record.round, len(record.accepted), len(record.sampled))


def _without_engine(config: JobConfig) -> JobConfig:
    """Nodes run the local engine; on a SuperLink there is no other."""
    tree = json.loads(dumps(asdict(config)))
    tree["run"]["engine"] = "local"
    return read_config(tree, "the app's configuration")
