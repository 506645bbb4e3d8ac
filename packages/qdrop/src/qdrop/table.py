"""A plan as text, readable at 120 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qdrop.planning import Plan, PlannedTensor, PlannedUnit, PlannedWeight


def table(plan: Plan) -> str:
    """The plan's units with their weights and activations, then what lies in no unit, then notes and cost."""
    weights = {weight.path: weight for weight in plan.weights}
    tensors = {tensor.site: tensor for tensor in plan.tensors}
    lines = [f"{'unit':<34} {'weights':<44} activations"]
    for number, unit in enumerate(plan.units, 1):
        lines += _unit(number, unit, [weights[p] for p in unit.layers], [tensors[s] for s in unit.sites])
    alone = [_weight(weight, "") for weight in plan.weights if weight.unit is None]
    outside = [_tensor(tensor, "") for tensor in plan.tensors if tensor.unit is None]
    if alone or outside:
        lines += _columns("in no unit", alone, outside)
    lines += [f"note: {note}" for note in plan.notes]
    lines.append(
        f"{len(plan.units)} units, {len(plan.weights)} weights, {len(plan.tensors)} activations; "
        f"cache {plan.cache_bytes / 1e9:.2f} GB for {plan.samples} samples; about {_duration(plan.seconds)}"
    )
    return "\n".join(lines)


def _unit(number: int, unit: PlannedUnit, weights: list[PlannedWeight], tensors: list[PlannedTensor]) -> list[str]:
    title = f"{number:>3} {unit.name or '(model)'} ({unit.kind})"
    return _columns(title, [_weight(w, unit.name) for w in weights], [_tensor(t, unit.name) for t in tensors])


def _columns(title: str, left: list[str], right: list[str]) -> list[str]:
    count = max(1, len(left), len(right))
    rows = zip([title], [*left, *[""] * count][:count], [*right, *[""] * count][:count], strict=False)
    first = next(iter(rows))
    rest = zip([*left, *[""] * count][1:count], [*right, *[""] * count][1:count], strict=True)
    return [f"{first[0]:<34} {first[1]:<44} {first[2]}".rstrip(), *(f"{'':<34} {w:<44} {a}".rstrip() for w, a in rest)]


def _weight(weight: PlannedWeight, unit: str) -> str:
    role = "" if weight.role == "middle" else f" {weight.role}"
    return f"{_short(weight.path, unit)} {weight.kind} {weight.bits}b{role}"


def _tensor(tensor: PlannedTensor, unit: str) -> str:
    return f"{_short(tensor.site.name, unit)} {tensor.bits}b"


def _short(name: str, unit: str) -> str:
    """The name within its unit."""
    return name[len(unit) :] if unit and name.startswith(f"{unit}.") else name or "(model)"


def _duration(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
