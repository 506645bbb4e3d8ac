"""A federation that learns task after task: phases of rounds, in which each client trains the task that its order names."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from core_utils import interrupts
from core_utils.runs import Run, RunError
from fedcl import metrics
from fedcl.client import Job, LocalTraining, ModelFn, Trainer
from fedcl.engine import Engine
from fedcl.errors import ConfigError, QuorumError
from fedcl.privacy import Privacy
from fedcl.robust import Aggregator
from fedcl.scenario import Scenario
from fedcl.screening import Screen
from fedcl.server import Gathering, Scope, Server
from fedcl.server_opt import ServerOptimizer

STATE = "federation"
"""Name of the checkpoint in the run's folder."""


@dataclass(frozen=True)
class Straggler:
    """Clients that do not keep up.

    Attributes:
        fraction: of the sampled clients, each round anew.
        mode: "drop" ignores them; "partial" takes what they have after a uniformly drawn share of their steps.

    Raises:
        ConfigError: a fraction outside [0, 1].
    """

    fraction: float
    mode: Literal["drop", "partial"] = "drop"

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise ConfigError(f"fraction of stragglers must lie in [0, 1], got {self.fraction}")
        if self.mode not in ("drop", "partial"):
            raise ConfigError(f"mode of stragglers must be drop or partial, got {self.mode!r}")


@dataclass(frozen=True)
class Protocol:
    """Settings of the server's loop.

    Attributes:
        scope: what is merged with what, as of `Server`.
        rounds: of each phase.
        fraction: of the available clients that are sampled each round.
        dropout: probability that a client is not available in a round.
        straggler: clients that are late.
        weights: of clients in the mean: "examples" or "uniform".
        aggregator: how a group is merged.
        privacy: clipping and noise.
        max_update_norm: longest update of a client.
        norm_policy: a longer one is clipped or rejected.
        quorum: fewest admitted replies of a round.
        max_failed_rounds: rounds without quorum in a row that are borne.
        diagnose: when local and merged accuracy are compared: at the end of each "phase", in every "round", or "never".
        seed: of sampling, batches, initial weights and noise.

    Raises:
        ConfigError: a value outside its range.
    """

    scope: Scope = "task"
    rounds: int = 8
    fraction: float = 1.0
    dropout: float = 0.0
    straggler: Straggler | None = None
    weights: Literal["examples", "uniform"] = "examples"
    aggregator: Aggregator = field(default_factory=Aggregator)
    privacy: Privacy | None = None
    max_update_norm: float | None = None
    norm_policy: Literal["clip", "reject"] = "clip"
    quorum: int = 1
    max_failed_rounds: int = 3
    diagnose: Literal["phase", "round", "never"] = "phase"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("quorum", 1), ("max_failed_rounds", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"fraction must lie in (0, 1], got {self.fraction}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.max_update_norm is not None and not 0 < self.max_update_norm < math.inf:
            raise ConfigError(f"max_update_norm must be above 0, got {self.max_update_norm}")
        for name, known in (("weights", ("examples", "uniform")), ("norm_policy", ("clip", "reject"))):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")


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
        protocol: Protocol = Protocol(),
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
        return {name: str(self.config[name]) for name in ("scenario", "frozen")}

    @staticmethod
    def _cut_log(run: Run, rounds: int) -> None:
        log = run.path / "log.jsonl"
        lines = log.read_bytes().splitlines(keepends=True) if log.is_file() else []
        if len(lines) > rounds and not run.finished:
            run.write("log.jsonl", b"".join(lines[:rounds]))


def record_from(line: dict[str, Any]) -> RoundRecord:
    """The record that a line of `log.jsonl` holds."""
    bad = line.pop("non_finite", [])
    return RoundRecord(**{**line, **dict.fromkeys(bad, math.nan)})


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
