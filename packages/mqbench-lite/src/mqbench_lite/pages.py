"""The benchmark as one HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mqbench_lite import profiles

if TYPE_CHECKING:
    from core_utils.document import Section
    from mqbench_lite.leaderboard import Table


def leaderboard_page(
    boards: Sequence[Table],
    rows: Sequence[Mapping[str, Any]],
    failures: Mapping[str, str],
    environment: Mapping[str, Any],
) -> str:
    """Tables and pictures of all networks and widths, and what was run on which engine.

    Args:
        boards: of `leaderboard.leaderboard`.
        rows: results of all finished points.
        failures: why the others failed, by name.
        environment: of `core_utils.runs.environment`.
    """
    from core_utils.document import Picture, Section, document
    from mqbench_lite.leaderboard import cells_of
    from mqbench_lite.plots import accuracy_map, dumbbells

    sections = []
    for table in boards:
        heads, cells = cells_of(table)
        pictures = [
            Picture("accuracy of every algorithm for every device", accuracy_map(table), ".svg"),
            Picture("academic accuracy against the devices'", dumbbells(table), ".svg"),
        ]
        title = f"{table.network}, W/A {table.bits}"
        texts = [
            f"Accuracy in percent of the test part, mean ± standard deviation over seeds; float {table.float_accuracy:.2f}."
        ]
        sections.append(Section(title, texts, [heads, *cells], pictures=pictures))
    sections.append(_devices(row["profile"] for row in rows))
    agreement = _agreement(rows)
    if agreement:
        sections.append(
            Section("What engines gave", ["Every output of the exported file against the integer model's."], agreement)
        )
    if failures:
        sections.append(Section("Points that failed", (), [["point", "why"], *map(list, failures.items())], words=True))
    lead = (
        "Accuracies are those of the simulation. Where an engine ran the exported file, its outputs are compared with it "
        "below; a device that is not here was exported for, not run."
    )
    return document("Quantisation benchmark", lead, sections, environment)


def _devices(names: Iterable[str]) -> Section:
    from core_utils.document import Section

    table = [["profile", "scheme", "graph", "engine"]]
    for name in dict.fromkeys(names):
        profile = profiles.get(name)
        scheme = ", ".join(
            (
                "power-of-two steps" if profile.weight.pot_scale else "free steps",
                "weights " + ("per channel" if profile.weight.per_channel else "per tensor"),
                "symmetric" if profile.weight.symmetric else "asymmetric",
                "activations " + ("symmetric" if profile.act.symmetric else "asymmetric"),
            )
        )
        ran = profile.engine if profile.executable and profile.engine else "exported, not run"
        table.append([name, scheme, str(profile.graph), "no device" if name == "academic" else ran])
    return Section("Devices", (), table, words=True)


def _agreement(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    heads = ["point", "engine", "differing outputs", "largest", "same top-1 (%)", "on integers (%)"]
    table = []
    for row in rows:
        for found in row["engines"].get("engines", ()):
            point = f"{row['algorithm']} {row['profile']} {row['bits']} seed {row['seed']}"
            if found["skipped"]:
                table.append([point, found["engine"], found["skipped"], *[""] * 3])
                continue
            figures = [f"{found['differing']} of {found['logits']}", f"{found['max_difference']:.2g}"]
            shares = [f"{100 * found['top1']:.2f}", f"{100 * found['layers']:.0f}"]
            table.append([point, found["engine"], *figures, *shares])
    return [heads, *table] if table else []


def agreement_page(file: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """What each engine gave for a file, and where it first differs, as HTML.

    Args:
        file: its name.
        rows: of `verification.EngineAgreement`, as mappings.
    """
    from core_utils.document import Section, document
    from core_utils.runs import environment

    heads = [
        "engine",
        "samples",
        "differing outputs",
        "largest",
        "mean",
        "max LSB",
        "same top-1 (%)",
        "layers on integers (%)",
    ]
    table = [heads]
    notes = []
    for row in rows:
        if row["skipped"]:
            table.append([row["engine"], row["skipped"], *[""] * 6])
            continue
        figures = [
            f"{row['differing']} of {row['logits']}",
            f"{row['max_difference']:.3g}",
            f"{row['mean_difference']:.3g}",
        ]
        lsb = "-" if row["max_lsb"] is None else str(row["max_lsb"])
        shares = [f"{100 * row['top1']:.2f}", f"{100 * row['layers']:.0f}"]
        table.append([row["engine"], str(row["samples"]), *figures, lsb, *shares])
        first = row["first"]
        if first is not None:
            share = f"{100 * first['differing']:.3g} % of its codes, by up to {first['max_lsb']}"
            notes.append(f"{row['engine']} first differs at {first['layer']}: {share}.")
        notes.extend(f"{row['engine']}: {warning}." for warning in row["warnings"])
    lead = "Every output of every engine against the model run on integers, as the file asks for."
    return document(f"Does {file} agree?", lead, [Section("Engines", notes, table)], environment())
