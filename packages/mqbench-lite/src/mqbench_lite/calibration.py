"""Ranges from data: every quantiser looks at all batches, then takes its grid.

Reference: MQBench, arXiv:2111.03759, section 2. Its toolkit's min-max of activations keeps the last batch alone; here all
batches count.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from mqbench_lite.errors import CalibrationError, MQBenchError
from mqbench_lite.quantizers import Quantizer

_log = logging.getLogger(__name__)


def calibrate(
    qm: nn.Module, loader: Iterable[Any], batches: int = 32, observer: str | tuple[str, str] | None = None
) -> nn.Module:
    """Finds the range of every quantiser, in place; a model that was calibrated before starts afresh.

    Args:
        qm: a model that holds quantisers of this package.
        loader: batches: inputs, or sequences that begin with inputs, or mappings by the names of inputs. They pass one by
            one and none is kept.
        batches: how many of them, at most.
        observer: a name of `mqbench_lite.observers.OBSERVERS`, or two for weights and activations; None: the algorithm's
            own.

    Returns:
        The model, ready to be evaluated or trained.

    Raises:
        CalibrationError: no batch, NaN or infinite values, a quantiser that no tensor passes or that is frozen.
        MQBenchError: the model holds no quantiser of this package, no such observer.
    """
    quantizers = dict(quantizers_of(qm))
    if not quantizers:
        raise MQBenchError("the model holds no quantiser to calibrate", "prepare it first")
    names = (observer, observer) if observer is None or isinstance(observer, str) else observer
    chosen = dict(zip(("weight", "act"), names, strict=True))
    again = [name for name, quantizer in quantizers.items() if quantizer.state == "ready"]
    if again:
        _log.warning("%d quantisers were calibrated before; their ranges start afresh", len(again))
    for name, quantizer in quantizers.items():
        quantizer.label = quantizer.label or name
    try:
        for quantizer in quantizers.values():
            quantizer.observe(chosen[quantizer.role])
        with evaluating(qm), torch.no_grad():
            _show(qm, loader, batches, tuple(quantizers.values()))
        for quantizer in quantizers.values():
            quantizer.ready()
    except BaseException:
        for quantizer in quantizers.values():
            if quantizer.state != "frozen":
                quantizer.reset()
        raise
    return qm


def reestimate_batch_norm(qm: nn.Module, loader: Iterable[Any], batches: int = 8) -> nn.Module:
    """Sets the running statistics of batch normalisation to those of some batches, as the quantised model has them.

    Before training: the statistics that a folded weight is scaled by then belong to the quantised weights.

    Args:
        qm: calibrated, or not yet.
        loader: as for `calibrate`.
        batches: how many, at most; their statistics are averaged.
    """
    norms = [module for module in qm.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return qm
    training, momenta = qm.training, [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the average of all; the first batch replaces what was there
        norm.num_batches_tracked.zero_()  # type: ignore[union-attr, operator]
    qm.train()
    for module in qm.modules():
        if isinstance(module, _DropoutNd):
            module.eval()
    try:
        with torch.no_grad():
            for batch in islice(loader, batches):
                run_batch(qm, batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        qm.train(training)
    return qm


def quantizers_of(qm: nn.Module) -> Iterator[tuple[str, Quantizer]]:
    """The model's quantisers of this package, by name."""
    return ((name, module) for name, module in qm.named_modules() if isinstance(module, Quantizer))


def run_batch(qm: nn.Module, batch: Any) -> Any:
    """The model's outputs for a batch as loaders give it; labels are left out."""
    device = next((value.device for value in qm.parameters()), torch.device("cpu"))
    if isinstance(batch, Mapping):
        return qm(**{name: _on(value, device) for name, value in batch.items()})
    if not isinstance(batch, Tensor):
        batch = batch[0]
    return qm(*(_on(each, device) for each in (batch if isinstance(batch, list | tuple) else (batch,))))


@contextmanager
def evaluating(qm: nn.Module) -> Iterator[None]:
    """The model in evaluation mode while inside."""
    modes = {module: module.training for module in qm.modules()}
    qm.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _show(qm: nn.Module, loader: Iterable[Any], batches: int, quantizers: tuple[Quantizer, ...]) -> None:
    index = -1
    for index, batch in enumerate(islice(loader, batches)):
        for quantizer in quantizers:
            quantizer.batch = index
        run_batch(qm, batch)
    if index < 0:
        raise CalibrationError("the model", 0, "the loader is empty")


def _on(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
