"""From a float model and a few unlabelled samples to a quantised model, unit by unit."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from core_utils.runs import Run
from qdrop import calibration as samples_of
from qdrop.cache import Samples
from qdrop.calibration import Calibration, Forward, run
from qdrop.config import QDropConfig
from qdrop.engine import Engine
from qdrop.errors import PlanError, ReconstructionError
from qdrop.folding import prepare
from qdrop.planning import plan_prepared
from qdrop.reconstruction import Unit, UnitCache, UnitResult, learn
from qdrop.student import QuantizedModel


def quantize(
    model: nn.Module,
    calib: Iterable[Any],
    config: QDropConfig = QDropConfig(),  # noqa: B008 -- frozen
    *,
    example_inputs: Any = None,
    forward: Forward | None = None,
    units: Sequence[str] | None = None,
    workdir: Path | str | None = None,
    resume: bool = True,
    progress: bool = True,
    callback: Callable[[UnitResult], None] | None = None,
) -> QuantizedModel:
    """Quantises a trained model after training, with unlabelled samples only.

    The model is left as it is: parameters, flags, hooks, mode and random state. Samples are used as the loader gives
    them; augmentation is the loader's business. Under an initialised `torch.distributed` group each rank gives its own
    part of the samples, and all end with the same model.

    Args:
        model: any eager model; it is run in float32 and evaluation mode.
        calib: batches: tensors, dictionaries (keywords of the model), tuples or lists of which the first element is the
            input, or lists of images [C, H, W].
        config: bits, method and schedule.
        example_inputs: inputs of one small batch; the first two calibration samples by default.
        forward: runs the model on a batch's inputs, `forward(model, inputs)`.
        units: names of the modules to reconstruct together; found by themselves by default.
        workdir: folder in which finished units are kept; a run that was interrupted there goes on.
        resume: go on with what `workdir` holds; else it must be new.
        progress: show a line per unit on stderr.
        callback: called with every unit's result.

    Returns:
        The quantised model, on the device of the float one, with the same signature.

    Raises:
        CalibrationError: the samples cannot be used.
        PlanError: the model cannot be quantised as asked.
        ReconstructionError: a unit's inputs are not finite, or it cannot be reached.
    """
    device = next((value.device for value in model.parameters()), torch.device("cpu"))
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        data = samples_of.read(calib, model, example_inputs, forward, device)
        example = _example(data, example_inputs)
        teacher, notes = prepare(model, example, forward)
        _check_finite(teacher, example, forward or run)
        planned = plan_prepared(teacher, example, config, units, samples=data.samples, forward=forward)
        for note in notes:
            warnings.warn(note, stacklevel=2)
        held = {"config": asdict(config), "model": _digest(teacher.state_dict()), "data": _digest(data.batches)}
        folder = nullcontext() if workdir is None else Run.open(Path(workdir), held, resume=resume)
        with folder as kept:
            engine = Engine(teacher, planned, config, data, forward or run, example, kept)
            engine.quantize(reconstruct_unit, progress, callback)
    return engine.student


def reconstruct_unit(
    unit: Unit,
    teacher_unit: Unit,
    cache: UnitCache,
    config: QDropConfig,
    generator: torch.Generator,
    *,
    index_stream: Iterator[Any] | None = None,
    mask_stream: Iterator[Bool[Tensor, " ..."]] | None = None,
) -> UnitResult:
    """Learns rounding and activation step sizes of one unit, so that its output stays the float unit's (Sec. 3, Alg. 1).

    Args:
        unit: of the quantised model; it is left with the codes and step sizes that were found.
        teacher_unit: the same unit of the float model.
        cache: its inputs in both networks, and its output in the float one; by sample.
        config: method and schedule.
        generator: draws samples and masks.
        index_stream: instead, the samples of every iteration.
        mask_stream: instead, the masks of every iteration, True where an element is quantised: the input's, then the
            quantisers' in the order of their calls.

    Returns:
        Losses, signal-to-noise ratio, share of the weights between two codes, seconds.

    Raises:
        ReconstructionError: inputs or targets are not finite, or a stream does not fit.
    """
    for name in ("fp_inputs", "quantised_inputs", "fp_outputs", "token_mask"):
        setattr(cache, name, Samples.of(getattr(cache, name)))
    for name in ("quantised_inputs", "fp_outputs"):
        if not getattr(cache, name).finite():
            raise ReconstructionError(f"unit {unit.name}: its {name.replace('_', ' ')} hold NaN or infinity")
    return learn(unit, teacher_unit, cache, config, generator, index_stream, mask_stream)


def _example(data: Calibration, given: Any) -> Any:
    """Inputs of one small batch: the user's, or the first two samples."""
    return next(data.first(2))[0] if given is None else given


def _check_finite(teacher: nn.Module, example: Any, forward: Forward) -> None:
    """A checkpoint of another model family shows here, before any time is spent."""
    with torch.no_grad():
        leaves = pytree.tree_leaves(forward(teacher, example))
    if not all(torch.isfinite(leaf).all() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()):
        raise PlanError("the float model's output is not finite", "check its weights and how its inputs are scaled")


def _digest(tree: Any) -> str:
    """SHA-256 over all tensors of a tree, and over what else it holds."""
    digest = hashlib.sha256()
    for leaf in pytree.tree_leaves(tree):
        if isinstance(leaf, Tensor):
            digest.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
            digest.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest()
