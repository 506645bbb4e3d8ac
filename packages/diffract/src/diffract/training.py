"""Training: every epoch has diffusers of its own, and every step looks through them at some objects."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from core_utils import interrupts
from core_utils.errors import CheckFailed
from core_utils.runs import Run
from diffract.designs import Design
from diffract.errors import ConfigError
from diffract.evaluation import evaluate
from diffract.gradients import Batch, Figures, Weights, gradient
from diffract.grids import Grid
from diffract.networks import DiffractiveNetwork
from diffract.objects import check_objects, placed
from diffract.propagation import propagate
from diffract.statistics import unique_bank
from diffract.streams import Stream, stream

STATE = "training"
CHUNK_ON_GPU = 16
"""Pairs at a time; on a CPU it is one."""
CACHED = 2**28
"""Bytes of object fields that are kept between steps instead of being computed in each."""
WATCHED_OBJECTS, WATCHED_DIFFUSERS = 20, 4
_ADAM = optax.scale_by_adam()


@dataclass(frozen=True, eq=False)
class TrainResult:
    """A trained network and how it came about.

    Attributes:
        network: with its final phases.
        known: the last epoch's diffusers, rad; empty where there were none.
        history: of every epoch: loss, correlation on its own pairs, seconds, and what validation found.
    """

    network: DiffractiveNetwork
    known: Float[np.ndarray, "n H W"]
    history: list[dict[str, Any]] = field(default_factory=list)


def train(
    design: Design,
    objects: Float[np.ndarray, "n h w"],
    out: Path | Run | None = None,
    *,
    validation: Float[np.ndarray, "m h w"] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    devices: int = 1,
    progress: bool = False,
) -> TrainResult:
    """Trains a network.

    Args:
        design: what and how.
        objects: amplitudes in [0, 1]; scaled and placed as the design says.
        out: a run's folder, or a run that is open; None keeps nothing. A finished run is read, not repeated.
        validation: held-out objects to watch, where the design says how often.
        resume: go on with the unfinished run in `out`, bit for bit.
        overwrite: remove the run in `out`.
        devices: among which the objects of a step are divided.
        progress: show a bar on stderr.

    Raises:
        DataError: an object that is constant or no amplitude.
        ConfigError: more objects a step than there are, or a number that the devices do not divide.
        CheckFailed: the loss is not finite; the last good state is kept.
    """
    check_objects(objects)
    if not isinstance(out, Run) and out is not None:
        with Run.open(out, design, resume=resume, overwrite=overwrite) as run:
            result = train(design, objects, run, validation=validation, devices=devices, progress=progress)
            if not run.finished:
                run.finish({"epochs": len(result.history), **result.history[-1]})
            return result
    job = _Job.make(design, objects, devices)
    state = _load(out) or _first(job)
    history = list(out.records()) if out is not None else []
    del history[state.epoch :]  # a line may be ahead of the state it belongs to
    with interrupts.deferred() as interrupted, _bar(progress, design.train.epochs * job.steps) as advance:
        advance(state.epoch * job.steps + state.step)
        while state.epoch < design.train.epochs and not interrupted():
            record = _epoch(job, state, interrupted, advance)
            if record is None:
                break
            if (
                validation is not None
                and design.train.validate_every
                and state.epoch % design.train.validate_every == 0
            ):
                record |= _watched(job, state, validation)
            history.append(record)
            if out is not None:
                if len(history) > sum(1 for _ in out.records()):
                    out.log(**record)
                _save(out, state)
        if out is not None and interrupted():
            _save(out, state)
    return TrainResult(job.network_of(state.phases), np.asarray(state.screens), history)


@dataclass(eq=False)
class _State:
    """What a resumed training needs: everything random follows from seed, epoch and step."""

    phases: Array
    adam: Any
    screens: np.ndarray
    epoch: int = 0
    step: int = 0
    losses: list[tuple[float | int, float | int]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Job:
    """What stays the same from step to step."""

    design: Design
    network: DiffractiveNetwork
    images: np.ndarray
    fields: np.ndarray | None
    batch: int
    steps: int
    chunk: int
    mesh: Mesh

    @classmethod
    def make(cls, design: Design, objects: np.ndarray, devices: int) -> _Job:
        config = design.train
        batch = config.pairs or config.batch_size
        if batch > len(objects) and config.pairs is None:
            raise ConfigError(f"batch_size {batch} is more than the {len(objects)} objects")
        available = jax.devices()
        if not 1 <= devices <= len(available) or batch % devices:
            raise ConfigError(
                f"{devices} devices do not divide {batch} objects a step, or are not there", "see --devices"
            )
        network = design.network()
        needed = len(objects) * 8 * design.grid.shape[0] * design.grid.shape[1]
        fields = None
        if needed <= CACHED:
            groups = np.array_split(objects, max(1, len(objects) // 256))
            place = [placed(group, design.grid, design.object_side) for group in groups]
            fields = np.concatenate([np.asarray(network.illuminated(group)) for group in place])
        steps = config.steps_per_epoch or len(objects) // batch
        mesh = Mesh(np.array(available[:devices]), ("pairs",))
        each = batch * (config.n if config.pairs is None and design.screens else 1) // devices
        most = config.chunk or (1 if jax.default_backend() == "cpu" else CHUNK_ON_GPU)
        chunk = max(size for size in range(1, min(most, each) + 1) if each % size == 0)
        return cls(design, network, objects, fields, batch, max(1, steps), chunk, mesh)

    def network_of(self, phases: Array) -> DiffractiveNetwork:
        self.network.phases = nnx.Param(phases)
        return self.network

    def order(self, epoch: int) -> np.ndarray:
        """Objects of every step of an epoch, [steps, batch]."""
        rng = np.random.default_rng([self.design.seed, Stream.TRAINING, epoch])
        if self.design.train.pairs is not None:
            return rng.integers(0, len(self.images), (self.steps, self.batch))
        rounds = -(-self.steps * self.batch // len(self.images))
        drawn = np.concatenate([rng.permutation(len(self.images)) for _ in range(rounds)])
        return drawn[: self.steps * self.batch].reshape(self.steps, self.batch)

    def pairs(self, epoch: int) -> np.ndarray:
        """Object and diffuser of every pair of every step, [steps, K, 2]; objects count within the step."""
        n = self.design.train.n if self.design.screens else 1
        if self.design.train.pairs is None:
            every = np.stack(np.meshgrid(np.arange(self.batch), np.arange(n), indexing="ij"), -1).reshape(-1, 2)
            return np.broadcast_to(every, (self.steps, *every.shape))
        rng = np.random.default_rng([self.design.seed, Stream.TRAINING, epoch, 1])
        screens = rng.integers(0, n, (self.steps, self.batch))
        return np.stack([np.broadcast_to(np.arange(self.batch), screens.shape), screens], -1)

    def batch_of(self, chosen: np.ndarray, screens: Array, pairs: np.ndarray) -> Batch:
        """Fields, objects, diffusers and pairs of one step; fields are left out where they are not kept."""
        fields = None if self.fields is None else self.fields[chosen]
        targets = placed(self.images[chosen], self.design.grid, self.design.object_side)
        return Batch(fields, targets, screens, pairs)  # type: ignore[arg-type]


def epoch_screens(design: Design, epoch: int) -> np.ndarray:
    """The diffusers of one epoch, rad, float32 [n, H, W]; none where the design has none.

    Several correlation lengths share them evenly and take turns.
    """
    kinds, n = design.screens, design.train.n
    out = np.zeros((n if kinds else 0, *design.grid.shape), np.float32)
    for i, kind in enumerate(kinds):
        count = len(range(i, n, len(kinds)))
        if count:
            key = stream(design.seed, Stream.TRAINING, epoch, i)
            facts = design.diffuser
            out[i :: len(kinds)] = unique_bank(kind, key, count, facts.threshold, facts.distance)
    return out


def _first(job: _Job) -> _State:
    phases = job.network.phases[...]
    return _State(phases, _ADAM.init(phases), epoch_screens(job.design, 0))


def _epoch(job: _Job, state: _State, interrupted: Any, advance: Any) -> dict[str, Any] | None:
    """The rest of an epoch; None when a signal cut it short."""
    config, started = job.design.train, time.perf_counter()
    if state.step == 0:
        state.screens = epoch_screens(job.design, state.epoch)
    order, pairs = job.order(state.epoch), job.pairs(state.epoch)
    rate = config.learning_rate * config.decay**state.epoch
    weights = Weights(config.alpha, config.beta, config.mask_threshold)
    screens = jnp.asarray(state.screens if len(state.screens) else np.zeros((1, *job.design.grid.shape), np.float32))
    vaccination = job.design.vaccination
    while state.step < job.steps:
        displacement = None
        if not vaccination.none:
            key = stream(job.design.seed, Stream.DISPLACEMENT, state.epoch, state.step)
            displacement = vaccination.sample(key, job.design.geometry.n_layers)
        phases, adam, figures = _step(
            state.phases,
            state.adam,
            job.network.transfers[...],
            job.batch_of(order[state.step], screens, pairs[state.step]),
            displacement,
            weights,
            rate,
            grid=job.design.grid,
            pad=job.design.pad,
            chunk=job.chunk,
            mesh=job.mesh,
        )
        loss, correlation = (float(each) for each in figures)
        if not np.isfinite(loss):
            raise CheckFailed(
                f"the loss is {loss} at epoch {state.epoch}, step {state.step}; phases ran from "
                f"{float(state.phases.min()):.3g} to {float(state.phases.max()):.3g} rad; the last good state is kept"
            )
        state.phases, state.adam, state.step = phases, adam, state.step + 1
        state.losses.append((loss, correlation))
        advance(1)
        if interrupted() and state.step < job.steps:
            return None
    means = np.mean(state.losses, 0)
    record = {"epoch": state.epoch, "loss": float(means[0]), "pcc": float(means[1])}
    state.epoch, state.step, state.losses = state.epoch + 1, 0, []
    return {**record, "seconds": time.perf_counter() - started}


@functools.partial(jax.jit, static_argnames=("grid", "pad", "chunk", "mesh"), donate_argnums=1)
def _step(
    phases: Array, adam: Any, transfers: Array, batch: Batch, displacement: Any, weights: Any, rate: Any, *,
    grid: Grid, pad: float | int, chunk: int, mesh: Mesh,
) -> tuple[Array, Any, Figures]:  # fmt: skip
    """One step of Adam: new phases, its state, loss and correlation."""
    if batch.fields is None:
        batch = batch._replace(fields=propagate(batch.targets, transfers[0]))
    found, figures = gradient(
        phases, transfers, batch, displacement, weights, grid=grid, pad=pad, chunk=chunk, mesh=mesh
    )
    updates, adam = _ADAM.update(found, adam)
    return phases - rate * updates, adam, figures


def _watched(job: _Job, state: _State, validation: np.ndarray) -> dict[str, Any]:
    """Correlation on held-out objects, behind the epoch's and behind new diffusers."""
    design = job.design
    objects = placed(validation[:WATCHED_OBJECTS], design.grid, design.object_side)
    kinds = design.screens
    new = [kind.sample(stream(design.seed, Stream.VALIDATION, i), WATCHED_DIFFUSERS) for i, kind in enumerate(kinds)]
    known = state.screens[:WATCHED_DIFFUSERS]
    network = job.network_of(jnp.array(state.phases))
    found = {"pcc_none": evaluate(network, objects, None).mean}
    if kinds:
        found |= {
            "pcc_known": evaluate(network, objects, known).mean,
            "pcc_new": evaluate(network, objects, jnp.concatenate(new)).mean,
        }
    return found


def _save(run: Run, state: _State) -> None:
    adam = state.adam
    tensors = {"phases": state.phases, "mu": adam.mu, "nu": adam.nu, "count": adam.count, "screens": state.screens}
    facts = {"epoch": state.epoch, "step": state.step, "losses": state.losses}
    run.save_state(STATE, {name: np.asarray(each) for name, each in tensors.items()}, facts)


def _load(run: Run | None) -> _State | None:
    held = None if run is None else run.load_state(STATE)
    if held is None:
        return None
    tensors, facts = held
    adam = _ADAM.init(jnp.asarray(tensors["phases"]))._replace(
        **{name: jnp.asarray(tensors[name]) for name in ("count", "mu", "nu")}
    )
    losses = [tuple(each) for each in facts["losses"]]
    phases = jnp.asarray(tensors["phases"])
    return _State(phases, adam, tensors["screens"], facts["epoch"], facts["step"], losses)


@contextlib.contextmanager
def _bar(shown: bool, total: int) -> Iterator[Any]:
    if not shown:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=total)
        yield lambda steps: bar.update(task, advance=steps)
