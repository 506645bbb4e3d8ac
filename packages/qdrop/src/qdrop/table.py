"""A plan as text, readable at 120 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qdrop.planning import Plan

WIDTHS = (39, 39, 40)
"""Columns of the unit, its weights and its activations."""


def table(plan: Plan) -> str:
    """The plan's units with their weights and activations, then what lies in no unit, then notes and cost."""
    weights = {weight.path: weight for weight in plan.weights}
    tensors = {tensor.site: tensor for tensor in plan.tensors}
    lines = [_row("unit", "weights", "activations")]
    for number, unit in enumerate(plan.units, 1):
        left = [_weight(weights[path], unit.name) for path in unit.layers]
        right = [_tensor(tensors[site], unit.name) for site in unit.sites]
        size = f"    in {_bytes(unit.input_bytes)} out {_bytes(unit.output_bytes)} {unit.macs / 1e6:.3g} MMAC"
        lines += _rows([f"{number:>3} {unit.name or '(model)'} ({unit.kind})", size], left, right)
    left = [_weight(weight, "") for weight in plan.weights if weight.unit is None]
    right = [_tensor(tensor, "") for tensor in plan.tensors if tensor.unit is None]
    if left or right:
        lines += _rows(["    in no unit"], left, right)
    lines += [f"note: {note}" for note in plan.notes]
    lines.append(
        f"{len(plan.units)} units, {len(plan.weights)} weights, {len(plan.tensors)} activations; "
        f"cache {_bytes(plan.cache_bytes)} for {plan.samples} samples; about {_duration(plan.seconds)} on this processor"
    )
    return "\n".join(lines)


def _rows(*columns: list[str]) -> list[str]:
    height = max(1, *map(len, columns))
    return [_row(*cells) for cells in zip(*(column + [""] * (height - len(column)) for column in columns), strict=True)]


def _row(*cells: str) -> str:
    return " ".join(f"{_cut(cell, width):<{width}}" for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()


def _cut(text: str, width: int) -> str:
    """The text without its middle where it is too long: paths tell by their end."""
    return text if len(text) <= width else f"{text[:8]}..{text[10 - width :]}"


def _weight(weight: Any, unit: str) -> str:
    role = "" if weight.role == "middle" else f" {weight.role}"
    return f"{_short(weight.path, unit)} {weight.kind} {weight.bits}b{role}"


def _tensor(tensor: Any, unit: str) -> str:
    return f"{_short(tensor.site.name, unit)} {tensor.bits}b"


def _short(name: str, unit: str) -> str:
    """The name within its unit."""
    inside = unit and name.startswith(unit) and name[len(unit) : len(unit) + 1] in (".", ":", "#", ">")
    return name[len(unit) :] if inside else name or "(model)"


def _bytes(count: int) -> str:
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


def _duration(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
