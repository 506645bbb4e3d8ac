"""The training loop: Lightning Fabric for devices and processes, a run folder for what must survive."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from core_utils import interrupts
from core_utils.errors import CheckFailed, UserError
from core_utils.runs import Run
from core_utils.training.devices import RandomState, make_fabric
from core_utils.training.loading import Loader
from core_utils.training.state import Stateful, decode, encode


@dataclass(frozen=True)
class History:
    """What a fit logged: one record an epoch, with `epoch`, `step`, `loss`, `learning_rate` and what `evaluate` gave."""

    records: tuple[dict[str, Any], ...]

    @property
    def last(self) -> dict[str, Any]:
        """The newest record."""
        return self.records[-1]


def cosine(progress: float) -> float:
    """Factor on the learning rate that falls from 1 to 0 along half a cosine; `progress` runs from 0 to 1."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def fit(
    model: nn.Module,
    loss: Callable[[nn.Module, Any, int], Tensor],
    loader: Loader,
    *,
    optimizer: Optimizer,
    schedule: Callable[[float], float] | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    before_step: Callable[[nn.Module, int], None] | None = None,
    after_step: Callable[[nn.Module, int], None] | None = None,
    state: Mapping[str, Stateful] | None = None,
    run: Run | None = None,
    stage: str = "fit",
    device: str = "cpu",
    precision: str = "32-true",
    clip: float | None = None,
    unused_parameters: bool = False,
    progress: bool = True,
) -> History:
    """Trains `model` in place for a number of epochs or steps.

    The state is saved before the first step, after every epoch and when a signal arrives: model, optimiser, random
    states, position and every object of `state`. A fit of the same stage in the same run goes on from there and ends,
    on a CPU, bit-identical to one that was never interrupted. Under torchrun every process takes its share of a batch.

    Args:
        model: trained in place.
        loss: `loss(model, batch, step)`, the batch's mean loss; may call the model several times.
        loader: the training data.
        optimizer: over the model's parameters.
        schedule: factor on the learning rates from the fraction of steps done; None keeps them.
        epochs: passes over the data, or
        steps: optimiser steps.
        evaluate: figures to log after every epoch; called with the model in evaluation mode.
        before_step: called with the model and the step's number before the loss.
        after_step: called after the optimiser's step.
        state: further objects to save and restore by name.
        run: where state and log are kept; None keeps nothing.
        stage: name of this fit within the run.
        device: "cpu", "cuda", "cuda:1", "mps" or "auto".
        precision: Fabric's: "32-true", "bf16-mixed", "16-mixed"...
        clip: largest norm of the gradient.
        unused_parameters: some parameters get no gradient in some steps, or leave the model on the way; several processes
            must know, at the price of a walk through the graph in each step.
        progress: show progress on stderr.

    Returns:
        The record of every epoch.

    Raises:
        UserError: neither or both of `epochs` and `steps`, a device that is not there.
        CheckFailed: a loss, a gradient or a parameter is not finite; names the step and keeps the last good state.
        KeyboardInterrupt: a signal arrived; the step under way was finished and saved.
    """
    if (epochs is None) == (steps is None):
        raise UserError("fit takes either epochs or steps")
    fabric = make_fabric(device, precision, unused_parameters=unused_parameters)
    per_epoch = loader.steps(fabric.world_size)
    total = steps if steps is not None else (epochs or 0) * per_epoch
    if total < 1:
        raise UserError(f"fit needs at least one step, got epochs={epochs}, steps={steps}")
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    trained, stepper = fabric.setup(model, optimizer)
    parts: dict[str, Stateful] = {
        "model": model,
        "optimizer": optimizer,
        "random": RandomState(fabric.device),
        **(state or {}),
    }
    position = _restore(fabric, run, stage, parts, total)
    kept = f"; the last good state is in {run.path / 'checkpoint'}" if run is not None else ""
    scales_itself = precision == "16-mixed"  # its scaler skips steps whose gradient overflows
    logged = _logged_through(run, stage)

    def save() -> None:
        if run is not None:
            _check_parameters(model, position.step)
            _save(run, stage, parts, position)

    if position.step == 0:
        save()
    trained.train()
    with interrupts.deferred() as signalled, _bar(stage, total, progress and fabric.is_global_zero) as show:
        for epoch, batch in _batches(loader, position, total, fabric):
            step = position.step
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (schedule(step / total) if schedule is not None else 1.0)
            if before_step is not None:
                before_step(trained, step)
            value = loss(trained, batch, step)
            figure = value.item()
            where = f"at step {step} (epoch {epoch}, batch {step % per_epoch})" + kept
            if not math.isfinite(figure):
                raise CheckFailed(f"the loss became {figure} {where}")
            stepper.zero_grad()
            fabric.backward(value)
            if not scales_itself and not math.isfinite(norm := _gradient_norm(model)):
                raise CheckFailed(f"the norm of the gradient became {norm} {where}")
            if clip is not None:
                fabric.clip_gradients(trained, stepper, max_norm=clip)
            stepper.step()
            if after_step is not None:
                after_step(trained, step)
            position.advance(figure)
            show(position.step, figure)
            epoch_ended = position.step % per_epoch == 0 or position.step == total
            if epoch_ended:
                record = {"stage": stage, "epoch": epoch, "step": position.step, "loss": _mean(fabric, position.losses)}
                record["learning_rate"] = optimizer.param_groups[0]["lr"]
                if evaluate is not None:
                    record |= _evaluated(evaluate, trained)
                position.close_epoch(record)
                if run is not None and position.step > logged:
                    run.log(**record)
            stopping = _any(fabric, signalled())
            if epoch_ended or stopping:
                save()
            if stopping:
                break
    return History(tuple(position.records))


@dataclass
class _Position:
    """How far a fit has come."""

    step: int = 0
    losses: list[float] = dataclasses.field(default_factory=list)
    records: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def advance(self, loss: float) -> None:
        self.step += 1
        self.losses.append(loss)

    def close_epoch(self, record: dict[str, Any]) -> None:
        self.losses.clear()
        self.records.append(record)


def _batches(loader: Loader, position: _Position, total: int, fabric: Fabric) -> Iterator[tuple[int, Any]]:
    """Epoch and batch from the position on, which the caller advances, until `total` steps are done."""
    rank, world_size = fabric.global_rank, fabric.world_size
    while position.step < total:
        epoch, start = divmod(position.step, loader.steps(world_size))
        for batch in loader.batches(epoch, start=start, rank=rank, world_size=world_size):
            yield epoch, fabric.to_device(batch)
            if position.step == total:
                return


def _save(run: Run, stage: str, parts: Mapping[str, Stateful], position: _Position) -> None:
    tensors: dict[str, np.ndarray] = {}
    facts = {name: encode(part.state_dict(), tensors, name) for name, part in parts.items()}
    run.save_state(stage, tensors, {"parts": facts, "position": dataclasses.asdict(position)})


def _restore(fabric: Fabric, run: Run | None, stage: str, parts: Mapping[str, Stateful], total: int) -> _Position:
    """Loads what rank 0 finds in the run into every process's parts."""
    loaded = run.load_state(stage) if run is not None and not run.follower else None
    loaded = fabric.broadcast(loaded) if fabric.world_size > 1 else loaded
    if loaded is None:
        return _Position()
    tensors, facts = loaded
    unknown = sorted(set(facts["parts"]) ^ set(parts))
    if unknown:
        raise UserError(f"the saved state of stage {stage!r} and this fit differ in {', '.join(unknown)}")
    position = _Position(**facts["position"])
    if position.step > total:
        raise UserError(f"the saved state of stage {stage!r} is at step {position.step}, this fit ends at {total}")
    for name, part in parts.items():
        part.load_state_dict(decode(facts["parts"][name], tensors))
    return position


def _logged_through(run: Run | None, stage: str) -> int:
    """The last step that the log holds; a killed process may have logged more than it saved."""
    records = run.records() if run is not None else ()
    return max((record["step"] for record in records if record.get("stage") == stage), default=0)


def _gradient_norm(model: nn.Module) -> float:
    """What a spike hides from the loss: a comparison with NaN is false, its gradient is NaN all the same."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return float(nn.utils.get_total_norm(gradients)) if gradients else 0.0


def _check_parameters(model: nn.Module, step: int) -> None:
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckFailed(f"{name} is not finite after step {step - 1}; the last good state is kept")


def _mean(fabric: Fabric, losses: list[float]) -> float:
    """The mean loss of the epoch's steps over all processes."""
    reduced: Any = fabric.all_reduce(torch.tensor(losses, device=fabric.device).mean(), reduce_op="mean")
    return float(reduced)


def _any(fabric: Fabric, flag: bool) -> bool:
    """Whether any process says so: all stop after the same step."""
    if fabric.world_size == 1:
        return flag
    reduced: Any = fabric.all_reduce(torch.tensor(float(flag), device=fabric.device), reduce_op="sum")
    return bool(reduced)


@torch.no_grad()
def _evaluated(evaluate: Callable[[nn.Module], Mapping[str, float]], model: nn.Module) -> dict[str, float]:
    model.eval()
    figures = {name: float(value) for name, value in evaluate(model).items()}
    model.train()
    return figures


@contextmanager
def _bar(stage: str, total: int, visible: bool) -> Iterator[Callable[[int, float], None]]:
    if not (visible and sys.stderr.isatty()):
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(stage, total=total)
        yield lambda step, loss: bar.update(task, completed=step, description=f"{stage}  loss {loss:.4f}")
