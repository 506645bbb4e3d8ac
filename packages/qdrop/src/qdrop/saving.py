"""A quantised model as one safetensors file: codes, step sizes and zero points, and its plan as JSON in the header."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from core_utils.files import write_atomically
from core_utils.states import DamagedState, pack, unpack
from qdrop.calibration import Forward
from qdrop.config import LayerOverride, QDropConfig
from qdrop.errors import QDropError
from qdrop.folding import prepare
from qdrop.planning import Plan, PlannedTensor, PlannedUnit, PlannedWeight
from qdrop.reconstruction import UnitResult
from qdrop.sites import Site
from qdrop.student import QuantizedModel

OWNER = "qdrop"


def save(qm: QuantizedModel, path: Path | str) -> None:
    """Writes a quantised model; weights in codes, everything else of its state as it is.

    Args:
        qm: what `quantize` gave.
        path: file to write; it appears complete or not at all.

    Raises:
        QDropError: the model's inputs are no tensors, lists, tuples or dictionaries of them.
    """
    facts = {
        "config": asdict(qm.config),
        "example": _described(qm.example),
        "weights": [asdict(weight) for weight in qm.plan.weights],
        "tensors": [asdict(tensor) for tensor in qm.plan.tensors],
        "units": [_without(asdict(unit), "tail") for unit in _plain(qm.plan.units)],
        "notes": list(qm.plan.notes),
        "report": [{name: str(v) for name, v in asdict(result).items() if name != "losses"} for result in qm.report],
        "plan": {"samples": qm.plan.samples, "cache_bytes": qm.plan.cache_bytes, "seconds": qm.plan.seconds},
    }
    arrays = {name: value.detach().cpu().numpy() for name, value in qm.state_dict().items()}
    write_atomically(Path(path), pack(arrays, facts, owner=OWNER))


def load(path: Path | str, model: nn.Module, *, forward: Forward | None = None) -> QuantizedModel:
    """Reads a quantised model back.

    Args:
        path: a file that `save` wrote.
        model: a float model of the same architecture, with any weights; it is left as it is.
        forward: runs the model on inputs, as it was given to `quantize`.

    Returns:
        The quantised model: bit for bit the outputs of the one that was saved, on the same machine.

    Raises:
        QDropError: the file is missing, torn, of another program, or belongs to another architecture.
    """
    arrays, facts = _read(Path(path))
    config = _config(facts["config"])
    example = _zeros(facts["example"])
    plan = Plan(
        units=tuple(_unit(unit) for unit in facts["units"]),
        weights=tuple(PlannedWeight(**{**weight, "shape": tuple(weight["shape"])}) for weight in facts["weights"]),
        tensors=tuple(_tensor(tensor) for tensor in facts["tensors"]),
        notes=tuple(facts["notes"]),
        **facts["plan"],
    )
    with torch.random.fork_rng(devices=[]):
        prepared, _ = prepare(model, example, forward)
    _check_architecture(prepared, plan, Path(path))
    qm = QuantizedModel(prepared, plan, config)
    qm.example = example
    given = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
    expected = qm.state_dict()
    for name in [*expected, *given]:
        if name not in given or name not in expected or given[name].shape != expected[name].shape:
            raise QDropError(f"{path} holds another architecture", f"they differ at {name}")
    qm.load_state_dict(given)
    qm.set_enabled(None, True)
    qm.report = [_result(row) for row in facts["report"]]
    return qm


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        tensors, facts, owner = unpack(path.read_bytes())
    except OSError as error:
        raise QDropError(f"{path} cannot be read: {error.strerror or error}") from None
    except DamagedState as error:
        raise QDropError(f"{path} {error}") from None
    if owner != OWNER:
        raise QDropError(f"{path} is no quantised model", "give the model.safetensors that `qdrop quantize` wrote")
    return tensors, facts


def _check_architecture(prepared: nn.Module, plan: Plan, path: Path) -> None:
    for weight in plan.weights:
        try:
            layer = prepared.get_submodule(weight.path)
        except AttributeError:
            raise QDropError(f"{path} holds another architecture", f"the model has no {weight.path}") from None
        shape = tuple(layer.weight.shape) if isinstance(getattr(layer, "weight", None), Tensor) else None
        if shape != weight.shape:
            raise QDropError(f"{path} holds another architecture", f"{weight.path}: {weight.shape} there, {shape} here")
    names = dict(prepared.named_modules())
    for tensor in plan.tensors:
        if tensor.site.path not in names:
            raise QDropError(f"{path} holds another architecture", f"the model has no {tensor.site.path}")


def _described(example: Any) -> Any:
    """Inputs as JSON: shapes and dtypes in the same nesting."""
    if isinstance(example, Tensor):
        return {"tensor": list(example.shape), "dtype": str(example.dtype).removeprefix("torch.")}
    if isinstance(example, Mapping):
        return {"dict": {name: _described(value) for name, value in example.items()}}
    if isinstance(example, (list, tuple)):
        return {type(example).__name__: [_described(value) for value in example]}
    if example is None or isinstance(example, (bool, int, float, str)):
        return {"value": example}
    raise QDropError(f"inputs that hold a {type(example).__name__} cannot be described in a file")


def _zeros(described: Any) -> Any:
    if "tensor" in described:
        return torch.zeros(described["tensor"], dtype=getattr(torch, described["dtype"]))
    if "dict" in described:
        return {name: _zeros(value) for name, value in described["dict"].items()}
    for name, kind in (("list", list), ("tuple", tuple)):
        if name in described:
            return kind(_zeros(value) for value in described[name])
    return described["value"]


def _config(told: dict[str, Any]) -> QDropConfig:
    overrides = {name: LayerOverride(**override) for name, override in told["overrides"].items()}
    return QDropConfig(**{**told, "overrides": overrides, "beta": tuple(told["beta"])})


def _tensor(told: dict[str, Any]) -> PlannedTensor:
    tuples = {"shape": tuple(told["shape"]), "consumers": tuple(told["consumers"])}
    return PlannedTensor(**{**told, **tuples, "site": Site(**told["site"])})


def _unit(told: dict[str, Any]) -> PlannedUnit:
    """A unit without the functions behind it, which a file cannot hold; they matter to reconstruction only."""
    tail_site = None if told["tail_site"] is None else Site(**told["tail_site"])
    nested: dict[str, Any] = {
        "steps": tuple(tuple(step) for step in told["steps"]),
        "sites": tuple(Site(**s) for s in told["sites"]),
    }
    plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in told.items()}
    return PlannedUnit(**{**plain, **nested, "tail": (), "tail_site": tail_site})


def _result(row: dict[str, str]) -> UnitResult:
    texts = {"name", "note"}
    known = {field.name for field in fields(UnitResult)}
    return UnitResult(**{name: v if name in texts else float(v) for name, v in row.items() if name in known})  # type: ignore[arg-type]  # by name


def _plain(units: tuple[PlannedUnit, ...]) -> list[PlannedUnit]:
    return [replace(unit, tail=()) for unit in units]


def _without(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name}
