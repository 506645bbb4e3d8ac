"""A federation that learns task after task: phases of rounds, in which each client trains the task that its order names."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch

from core_utils import interrupts
from core_utils.runs import Run, RunError
from fedcl import metrics
from fedcl.client import Job, LocalTraining, ModelFn, Trainer
from fedcl.engine import Engine
from fedcl.errors import ConfigError, QuorumError
from fedcl.protocol import Protocol
from fedcl.records import RoundRecord, RunResult, record_from
from fedcl.scenario import Scenario
from fedcl.screening import Screen
from fedcl.server import Gathering, Server
from fedcl.server_opt import ServerOptimizer

STATE = "federation"
"""Name of the checkpoint in the run's folder."""


class FederatedRun:
    """A federation ready to run.

    Args:
        scenario: tasks, orders and data.
        model_fn: makes the model of a number of classes.
        optimizer: the server's.
        engine: "local", "stacked" or "flwr" (Flower's in-process grid), or an `Engine`.
        training: the clients' settings.
        protocol: the server's settings.
        device: where models compute.
        trainer: of an earlier run on the same data and settings, whose models and images are used again.

    Raises:
        ConfigError: settings that exclude each other.
    """

    def __init__(
        self,
        scenario: Scenario,
        model_fn: ModelFn,
        optimizer: ServerOptimizer,
        *,
        engine: Literal["local", "stacked", "flwr"] | Engine = "local",
        training: LocalTraining = LocalTraining(),  # noqa: B008 -- frozen
        protocol: Protocol = Protocol(),  # noqa: B008 -- frozen
        device: str = "cpu",
        trainer: Trainer | None = None,
    ) -> None:
        self.scenario, self.training, self.protocol = scenario, training, protocol
        self.trainer = trainer or Trainer(scenario, model_fn, training, device=device, seed=protocol.seed)
        tasks = range(scenario.num_tasks)
        self.layouts = {task: self.trainer.layout(task) for task in tasks}
        initial = {task: self.trainer.initial[scenario.classes(task)] for task in tasks}
        self.server = Server(self.layouts, initial, optimizer, protocol.scope)
        self.engine = engine_of(engine, self.trainer) if isinstance(engine, str) else engine
        self.seen = metrics.seen_tasks(scenario.orders)
        self.config: dict[str, Any] = {
            "protocol": asdict(protocol),
            "training": asdict(training),
            "optimizer": {"name": optimizer.name, **optimizer.settings},
            "scenario": scenario.digest(),
            "frozen": _frozen_digest(self.trainer),
        }
        self.history: list[RoundRecord] = []
        self.accuracy = np.zeros((scenario.num_tasks, scenario.num_tasks))
        self.untrained = np.zeros(scenario.num_tasks)
        self._failed_in_a_row = 0

    def run(self, callbacks: Sequence[Callable[[RoundRecord], None]] = (), *, run: Run | None = None) -> RunResult:
        """Runs all rounds that are still to be run.

        Args:
            callbacks: called with each round's record.
            run: where every round is logged and saved; an unfinished run goes on from its newest whole checkpoint, bit
                for bit as if it had not been stopped. The first Ctrl-C or SIGTERM lets the round end and saves.

        Raises:
            QuorumError: more rounds in a row than borne had too few replies.
            RunError: the checkpoint is of other data or frozen weights.
        """
        tasks = range(self.scenario.num_tasks)
        if run is None or not self.restore(run):
            self.untrained = np.array([self.trainer.accuracy(task, self.server.theta(task)) for task in tasks])
        for number in range(len(self.history), self.scenario.num_tasks * self.protocol.rounds):
            with interrupts.deferred():
                record = self._round(number)
                if run is not None:
                    run.log(**asdict(record))
                    self._save(run)
            for callback in callbacks:
                callback(record)
            if self._failed_in_a_row > self.protocol.max_failed_rounds:
                raise QuorumError(
                    f"{self._failed_in_a_row} rounds in a row had fewer than quorum={self.protocol.quorum} valid replies; "
                    f"the last rejections: {record.rejected[:3]}"
                )
        versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy")}
        return RunResult(self.accuracy, self.seen, self.untrained, self.history, self.config, versions)

    def finished_state(self) -> dict[str, torch.Tensor]:
        """The server's tensors and moments after all rounds."""
        self.run()
        return self.server.state()

    def _round(self, number: int) -> RoundRecord:
        started, protocol = time.perf_counter(), self.protocol
        phase, last = number // protocol.rounds, (number + 1) % protocol.rounds == 0
        diagnosed = protocol.diagnose == "round" or (protocol.diagnose == "phase" and last)
        jobs, skipped = self._jobs(number, phase, diagnosed)
        screen = Screen({job.client: job for job in jobs}, self.layouts)
        gathering = Gathering(
            self.server, protocol.aggregator, by_examples=protocol.weights == "examples", privacy=protocol.privacy
        )
        losses, own = [], []
        up = 0
        for reply in self.engine.train(jobs, self.server.theta):
            if not screen.admits(reply) or not self._within_norm(reply, screen):
                continue
            gathering.add(reply)
            losses.append(reply.metrics.get("loss", math.nan))
            own.append((reply.task, reply.metrics.get("accuracy", math.nan)))
            up += self.layouts[reply.task].bytes
        failed = len(losses) < protocol.quorum
        self._failed_in_a_row = self._failed_in_a_row + 1 if failed else 0
        if not failed:
            gathering.apply((protocol.seed, number))
        silent = [job.client for job in jobs if job.client not in screen.seen]
        named = {each["client"] for each in screen.rejected}
        for client in silent:
            if client not in named:
                screen.reject(client, "no reply")
        record = RoundRecord(
            phase=phase,
            round=number,
            sampled=sorted([job.client for job in jobs] + [each["client"] for each in skipped]),
            accepted=sorted(screen.seen),
            rejected=skipped + screen.rejected,
            failed=failed,
            loss=float(np.mean(losses)) if losses else math.nan,
            drift=gathering.drift,
            cosine=gathering.cosine,
            update_norm=gathering.norm,
            bytes_down=sum(self.layouts[job.task].bytes for job in jobs),
            bytes_up=up,
            notes=gathering.notes,
        )
        if diagnosed and own:
            merged = {task: self.trainer.accuracy(task, self.server.theta(task)) for task in {task for task, _ in own}}
            record.local_accuracy = float(np.mean([accuracy for _, accuracy in own]))
            record.merged_accuracy = float(np.mean([merged[task] for task, _ in own]))
        if last:
            tasks = range(self.scenario.num_tasks)
            self.accuracy[phase] = [self.trainer.accuracy(task, self.server.theta(task)) for task in tasks]
        record.seconds = time.perf_counter() - started
        self.history.append(record)
        return record

    def _jobs(self, number: int, phase: int, diagnosed: bool) -> tuple[list[Job], list[dict[str, Any]]]:
        """This round's work, and who does not take part and why; drawn from (seed, round) alone."""
        protocol, clients = self.protocol, self.scenario.num_clients
        rng = np.random.default_rng([protocol.seed, 7, number])
        available = np.flatnonzero(rng.random(clients) >= protocol.dropout)
        count = min(len(available), max(1, round(protocol.fraction * len(available))))
        sampled = np.sort(rng.permutation(available)[:count])
        late, shares = rng.permutation(len(sampled)), rng.random(len(sampled))
        straggler = protocol.straggler
        slow = set(late[: round(straggler.fraction * len(sampled))].tolist()) if straggler else set()
        jobs, skipped = [], []
        for place, client in enumerate(sampled.tolist()):
            task = int(self.scenario.orders[client, phase])
            images = len(self.scenario.parts[client][task])
            if images == 0:
                skipped.append({"client": client, "reason": f"no examples of task {task}"})
            elif place in slow and straggler is not None and straggler.mode == "drop":
                skipped.append({"client": client, "reason": "straggler: missed the deadline"})
            else:
                steps = self.training.steps(images, float(shares[place]) if place in slow else 1.0)
                jobs.append(Job(client, task, number, steps, protocol.seed, diagnosed))
        return jobs, skipped

    def _within_norm(self, reply: Any, screen: Screen) -> bool:
        limit = self.protocol.max_update_norm
        if limit is None:
            return True
        norm = float(torch.linalg.vector_norm(reply.update.trained))
        if norm <= limit:
            return True
        if self.protocol.norm_policy == "reject":
            screen.seen.discard(reply.client)
            screen.reject(reply.client, f"update norm {norm:.4g} is above {limit:g}")
            return False
        reply.update.trained = reply.update.trained * (limit / norm)
        return True

    def _save(self, run: Run) -> None:
        tensors = {name: value.cpu().numpy() for name, value in self.server.state().items()}
        tensors |= {"accuracy": self.accuracy, "untrained": self.untrained}
        facts = {"round": len(self.history), "failed_in_a_row": self._failed_in_a_row, **self._belongs}
        run.save_state(STATE, tensors, facts)

    def restore(self, run: Run) -> bool:
        """Takes the newest whole checkpoint; rounds that were logged after it are dropped and run again."""
        found = run.load_state(STATE)
        if found is None:
            self._cut_log(run, 0)
            return False
        tensors, facts = found
        for name, expected in self._belongs.items():
            if facts.get(name) != expected:
                raise RunError(f"the checkpoint in {run.path} is of another {name}", "name a new folder")
        self.server.load(
            {name: torch.from_numpy(value.copy()).to(self.trainer.device) for name, value in tensors.items()}
        )
        self.accuracy, self.untrained = tensors["accuracy"].copy(), tensors["untrained"].copy()
        self._failed_in_a_row = facts["failed_in_a_row"]
        self._cut_log(run, facts["round"])
        self.history = [record_from(line) for line in run.records()]
        return True

    @property
    def _belongs(self) -> dict[str, str]:
        return {"scenario": self.config["scenario"], "backbone": self.config["frozen"]}

    @staticmethod
    def _cut_log(run: Run, rounds: int) -> None:
        log = run.path / "log.jsonl"
        lines = log.read_bytes().splitlines(keepends=True) if log.is_file() else []
        if len(lines) > rounds and not run.finished:
            run.write("log.jsonl", b"".join(lines[:rounds]))


def engine_of(name: str, trainer: Trainer) -> Engine:
    """The engine of that name.

    Raises:
        ConfigError: an unknown name.
    """
    if name == "local":
        from fedcl.engine.local import LocalEngine

        return LocalEngine(trainer)
    if name == "stacked":
        from fedcl.engine.stacked import StackedEngine

        return StackedEngine(trainer)
    if name == "flwr":
        from fedcl.engine.flower import in_process

        return in_process(trainer)
    raise ConfigError(f"engine must be local, stacked or flwr, got {name!r}")


def _frozen_digest(trainer: Trainer) -> str:
    """SHA-256 over what is frozen in each model, and so never sent."""
    digest = hashlib.sha256()
    for classes, model in trainer.models.items():
        own = set(trainer.layouts[classes].names)
        for name, value in model.state_dict().items():
            if name not in own:
                digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
                digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
