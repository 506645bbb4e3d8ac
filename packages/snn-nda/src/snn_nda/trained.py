"""A finished training, read back from its folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from core_utils.errors import UserError
from core_utils.runs import Run, read_finished
from core_utils.settings import from_tree
from core_utils.training import load_weights
from snn_nda.gap import gap_report
from snn_nda.job import DataConfig, JobConfig, PretrainJob

WEIGHTS = "model.safetensors"
ENCODER = "encoder.safetensors"


@dataclass(frozen=True)
class Report:
    """What a run of `snn-nda train` measured.

    Attributes:
        config: what was asked.
        report: of `gap_report`.
    """

    config: JobConfig
    report: dict[str, list[float]]


def read_report(folder: Path) -> Report:
    """The gap report of a finished training.

    Raises:
        UserError: the folder is no such run, or not finished.
    """
    asked = _asked(folder, "train")
    config = from_tree(JobConfig, asked["config"], str(folder / "config.json"))
    with Run.open(folder, asked) as run:
        records = [record for record in run.records() if record.get("stage") == "fit"]
    part = "validation" if any("validation_accuracy" in record for record in records) else "test"
    return Report(config, gap_report(records, unseen=part))


def by_arm(folders: Sequence[Path]) -> dict[str, dict[int, dict[str, list[float]]]]:
    """The gap reports of finished trainings, by policy (with what is mixed) and seed.

    Args:
        folders: runs, or folders that hold one run a seed.

    Raises:
        UserError: a folder that is no finished training, a seed that a policy has twice, or trainings that differ in
            more than policy and seed; names the folders.
    """
    arms: dict[str, dict[int, dict[str, list[float]]]] = {}
    first: tuple[Path, dict[str, Any]] | None = None
    for folder in (run for each in folders for run in runs_in(each)):
        found = read_report(folder)
        config = found.config
        arm = config.policy if config.mix == "none" else f"{config.policy}+{config.mix}"
        rest = {name: value for name, value in asdict(config).items() if name not in ("policy", "mix", "seed")}
        first = first or (folder, rest)
        differing = [name for name in rest if rest[name] != first[1][name]]
        if differing:
            raise UserError(f"{folder} and {first[0]} differ in {', '.join(differing)}", "compare like with like")
        if config.seed in arms.setdefault(arm, {}):
            raise UserError(f"{folder} is a second training of policy {arm} with seed {config.seed}")
        arms[arm][config.seed] = found.report
    if first is None:
        raise UserError("there is no training to compare", "add --runs DIR ...")
    return arms


def runs_in(folder: Path) -> list[Path]:
    """The folder itself, or where it holds one run a seed, those."""
    seeds = sorted(folder.glob("seed-*"), key=lambda path: (len(path.name), path.name))
    return seeds if seeds and not (folder / "config.json").is_file() else [folder]


def encoder_starter(folder: Path, config: DataConfig) -> Callable[[nn.Module], None]:
    """Puts the encoder of a finished `snn-nda pretrain` into a new network, in place.

    Raises:
        UserError: the folder is no such run, not finished, or of another network.
    """
    job = read_pretraining(folder)
    if job.network != config.network:
        raise UserError(f"{folder} holds a {job.network}, network is {config.network}")

    def start(model: nn.Module) -> None:
        load_weights(model.blocks, folder / ENCODER)  # type: ignore[arg-type]

    return start


def read_pretraining(folder: Path) -> PretrainJob:
    """What a finished `snn-nda pretrain` was asked to do.

    Raises:
        UserError: the folder is no such run, or not finished.
    """
    asked = _asked(folder, "pretrain")
    return from_tree(PretrainJob, asked["config"], str(folder / "config.json"))


def _asked(folder: Path, verb: Literal["train", "pretrain"]) -> dict[str, Any]:
    """What a finished run of a verb was asked to do; only pre-training knows dimensions of projections."""

    def known(asked: Any) -> bool:
        return ("dim" in asked["config"]) == (verb == "pretrain") and "policy" in asked["config"]

    return read_finished(folder, f"snn-nda {verb}", known)
