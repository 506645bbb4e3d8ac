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
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Complex, Float

from core_utils import interrupts
from core_utils.errors import CheckFailed
from core_utils.runs import Run
from diffract.designs import Design, TrainConfig
from diffract.displacements import Displacement
from diffract.errors import ConfigError
from diffract.evaluation import evaluate
from diffract.geometries import Key
from diffract.grids import Grid
from diffract.losses import energy_penalty, pcc
from diffract.networks import DiffractiveNetwork, intensity
from diffract.objects import check_objects, placed
from diffract.propagation import propagate
from diffract.statistics import unique_bank
from diffract.streams import Stream, stream

STATE = "training"
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
    history: list[dict[str, float]] = field(default_factory=list)


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
        out: a run's folder, or a run that is open; None keeps nothing.
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
            return train(design, objects, run, validation=validation, devices=devices, progress=progress)
    job = _Job.make(design, objects, devices)
    state = _load(out, job) or _first(job)
    history = list(out.records()) if out is not None else []
    del history[state.epoch :]  # a line may be ahead of the state it belongs to
    with interrupts.deferred() as interrupted, _bar(progress, design.train.epochs * job.steps) as advance:
        advance(state.epoch * job.steps + state.step)
        while state.epoch < design.train.epochs and not interrupted():
            record = _epoch(job, state, interrupted, advance)
            if record is None:
                break
            if validation is not None and design.train.validate_every and state.epoch % design.train.validate_every == 0:
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
    losses: list[tuple[float, float]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Job:
    """What stays the same from step to step."""

    design: Design
    network: DiffractiveNetwork
    images: np.ndarray
    fields: np.ndarray | None
    batch: int
    steps: int
    mesh: Mesh

    @classmethod
    def make(cls, design: Design, objects: np.ndarray, devices: int) -> _Job:
        config = design.train
        batch = config.pairs or config.batch_size
        if batch > len(objects) and config.pairs is None:
            raise ConfigError(f"batch_size {batch} is more than the {len(objects)} objects")
        available = jax.devices()
        if not 1 <= devices <= len(available) or batch % devices:
            raise ConfigError(f"{devices} devices do not divide {batch} objects a step, or are not there", "see --devices")
        network = design.network()
        needed = len(objects) * 8 * design.grid.shape[0] * design.grid.shape[1]
        fields = None
        if needed <= CACHED and design.diffuser.kind is not None:
            groups = np.array_split(objects, max(1, len(objects) // 256))
            place = [placed(group, design.grid, design.object_side) for group in groups]
            fields = np.concatenate([np.asarray(network.illuminated(group)) for group in place])
        steps = config.steps_per_epoch or len(objects) // batch
        mesh = Mesh(np.array(available[:devices]), ("objects",))
        return cls(design, network, objects, fields, batch, max(1, steps), mesh)

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

    def partners(self, epoch: int) -> np.ndarray:
        """Diffusers of every step's pairs, [steps, pairs]."""
        rng = np.random.default_rng([self.design.seed, Stream.TRAINING, epoch, 1])
        return rng.integers(0, max(1, self.design.train.n), (self.steps, self.batch))


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


def _epoch(job: _Job, state: _State, interrupted: Any, advance: Any) -> dict[str, float] | None:
    """The rest of an epoch; None when a signal cut it short."""
    config, started = job.design.train, time.perf_counter()
    if state.step == 0:
        state.screens = epoch_screens(job.design, state.epoch)
    order, partners = job.order(state.epoch), job.partners(state.epoch)
    rate = config.learning_rate * config.decay**state.epoch
    everything = jnp.asarray(state.screens)
    while state.step < job.steps:
        chosen = order[state.step]
        screens = _screens_of(job, everything, partners[state.step])
        key = stream(job.design.seed, Stream.DISPLACEMENT, state.epoch, state.step)
        fields = None if job.fields is None else job.fields[chosen]
        targets = placed(job.images[chosen], job.design.grid, job.design.object_side)
        phases, adam, figures = _step(
            state.phases, state.adam, job.network.transfers[...], fields, targets, screens, key, rate,
            design=job.design, mesh=job.mesh,
        )  # fmt: skip
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


def _screens_of(job: _Job, everything: Array, partners: np.ndarray) -> Array:
    """Diffusers of a step: one an object, [B, 1, H, W], or all for each, [chunks, 1, c, H, W]."""
    config, shape = job.design.train, job.design.grid.shape
    if not len(everything):
        return jnp.zeros((1, 1, 1, *shape), jnp.float32)
    if config.pairs is not None:
        return everything[partners][:, None]
    chunk = max(size for size in range(1, min(config.chunk, config.n) + 1) if config.n % size == 0)
    return everything.reshape(-1, 1, chunk, *shape)


@functools.partial(jax.jit, static_argnames=("design", "mesh"), donate_argnums=(0, 1))
def _step(
    phases: Array,
    adam: Any,
    transfers: Array,
    fields: Array | None,
    targets: Array,
    screens: Array,
    key: Key,
    rate: float,
    *,
    design: Design,
    mesh: Mesh,
) -> tuple[Array, Any, tuple[Array, Array]]:
    """One step of Adam: new phases, its state, loss and correlation."""
    vaccination = design.vaccination
    displacement = None if vaccination.none else vaccination.sample(key, len(phases))
    gradient, figures = sharded_gradient(
        phases, transfers, fields, targets, screens, displacement, design.train, design.grid, design.pad, mesh
    )
    updates, adam = _ADAM.update(gradient, adam)
    return phases - rate * updates, adam, figures


def sharded_gradient(
    phases: Float[Array, "M H W"],
    transfers: Complex[Array, "4 P Q"],
    fields: Complex[Array, "B H W"] | None,
    targets: Float[Array, "B H W"],
    screens: Float[Array, "..."],
    displacement: Displacement | None,
    config: TrainConfig,
    grid: Grid,
    pad: float,
    mesh: Mesh,
) -> tuple[Float[Array, "M H W"], tuple[Float[Array, ""], Float[Array, ""]]]:
    """Gradient of the mean loss over a step's pairs, whose objects are divided among the devices of a mesh.

    Args:
        phases: of the layers, on every device.
        transfers: on every device.
        fields: of the objects before the diffuser; None computes them.
        targets: the objects.
        screens: one diffuser an object, [B, 1, H, W]; or chunks of diffusers that all objects go through,
            [chunks, 1, c, H, W], one chunk after the other, so that memory does not grow with their number.
        displacement: of the layers; the same everywhere.
        config: weights of the loss.
        grid: of the planes.
        pad: of the propagations.
        mesh: of one axis, `objects`.
    """
    whole, parted = PartitionSpec(), PartitionSpec("objects")

    def local(phases: Array, fields: Array, targets: Array, screens: Array) -> tuple[Array, tuple[Array, Array]]:
        chunks = screens if screens.ndim == 5 else screens[None]
        found = _gradient_over(phases, transfers, fields, targets, chunks, displacement, config, grid, pad)
        return jax.tree.map(lambda each: jax.lax.pmean(each, "objects"), found)

    if fields is None:
        fields = propagate(targets, transfers[0])
    if mesh.size == 1:
        chunks = screens if screens.ndim == 5 else screens[None]
        return _gradient_over(phases, transfers, fields, targets, chunks, displacement, config, grid, pad)
    screens_parted = whole if screens.ndim == 5 else parted
    divided = jax.shard_map(
        local, mesh=mesh, in_specs=(whole, parted, parted, screens_parted), out_specs=whole, check_vma=False
    )
    return divided(phases, fields, targets, screens)


def _gradient_over(
    phases: Array, transfers: Array, fields: Array, targets: Array, chunks: Array, displacement: Any,
    config: TrainConfig, grid: Grid, pad: float,
) -> tuple[Array, tuple[Array, Array]]:  # fmt: skip
    """The mean over chunks of diffusers, one at a time."""

    def loss(phases: Array, screens: Array) -> tuple[Array, Array]:
        output = intensity(phases, transfers, fields[:, None] * jnp.exp(1j * screens), displacement, grid, pad)
        wanted = targets[:, None]
        alike = pcc(output, wanted).mean()
        penalty = energy_penalty(output, wanted, config.alpha, config.beta, config.mask_threshold).mean()
        return penalty - alike, alike

    def add(total: Any, screens: Array) -> tuple[Any, None]:
        (value, alike), gradient = jax.value_and_grad(loss, has_aux=True)(phases, screens)
        return jax.tree.map(jnp.add, total, (gradient, (value, alike))), None

    nothing = (jnp.zeros_like(phases), (jnp.zeros(()), jnp.zeros(())))
    if len(chunks) == 1:
        return add(nothing, chunks[0])[0]
    total, _ = jax.lax.scan(add, nothing, chunks)
    return jax.tree.map(lambda each: each / len(chunks), total)


def _watched(job: _Job, state: _State, validation: np.ndarray) -> dict[str, float]:
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


def _load(run: Run | None, job: _Job) -> _State | None:
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
