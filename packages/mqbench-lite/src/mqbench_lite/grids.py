"""The benchmark: algorithms, devices, widths and seeds, each point a job of its own, and the leaderboard of all."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core_utils.jobs import JobError, map_jobs
from core_utils.jsonable import dumps
from core_utils.runs import Run, environment
from mqbench_lite import leaderboard as tables
from mqbench_lite import profiles
from mqbench_lite.errors import MQBenchError
from mqbench_lite.specs import MAX_BITS, MIN_BITS

if TYPE_CHECKING:
    from mqbench_lite.cells import Cell


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """What a benchmark runs; TOML has the same names.

    Attributes:
        network: of `pretrained.float_network`; the small `residual` and `depthwise` are trained here.
        weights: safetensors of that network; the small ones need none.
        data: folder of IDX files or of images as ImageNet has them; None: the embedded Fashion-MNIST.
        algorithms: names of `mqbench_lite.algorithms`; `minmax` and `mse` quantise by ranges alone.
        profiles: names of `mqbench_lite.profiles`.
        bits: of weights and activations, as `4/4`.
        seeds: how many, from 0.
        init: LSQ's start, see `built_in.Lsq`.
        observer: of algorithms that are trained; None: their own.
        bn_fold: how batch normalisation is folded while training.
        calibration: images.
        steps: of training.
        ptq_steps: of post-training algorithms that learn.
        lr: learning rate at the end of the warm-up.
        weight_decay: of weights.
        batch_size: images.
        verify: run the exported file on the profile's engine where that is possible.
        device: where to compute.
        cache: where the small nets' trainings are kept; None: the user's cache folder.
    """

    network: str = "residual"
    weights: Path | None = None
    data: Path | None = None
    algorithms: tuple[str, ...] = ("minmax", "mse", "lsq", "ste", "pact")
    profiles: tuple[str, ...] = ("academic", "tensorrt", "acl", "tvm", "snpe", "fbgemm", "onnxruntime")
    bits: tuple[str, ...] = ("4/4",)
    seeds: int = 3
    init: str = "mse"
    observer: str | None = None
    bn_fold: int = 4
    calibration: int = 512
    steps: int = 60
    ptq_steps: int = 1000
    lr: float = 0.02
    weight_decay: float = 1e-4
    batch_size: int = 128
    verify: bool = True
    device: str = "cpu"
    cache: Path | None = None

    def __post_init__(self) -> None:
        for name in ("seeds", "calibration", "steps", "ptq_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise MQBenchError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("algorithms", "profiles", "bits"):
            if not getattr(self, name):
                raise MQBenchError(f"{name} must name at least one")
        if self.data is not None and not self.data.is_dir():
            raise MQBenchError(f"data {self.data} is no folder")
        if self.weights is not None and not self.weights.is_file():
            raise MQBenchError(f"weights {self.weights} do not exist")
        for pair in self.bits:
            widths = [int(part) for part in pair.split("/") if part.isdecimal()]
            if len(widths) != 2 or pair.count("/") != 1 or not all(MIN_BITS <= w <= MAX_BITS for w in widths):
                raise MQBenchError(
                    f"bits {pair!r}", f"give {MIN_BITS} to {MAX_BITS} of weights and activations, as 4/4"
                )
        for name in self.profiles:
            profiles.get(name)

    def options_of(self, algorithm: str) -> dict[str, Any]:
        """What this says about an algorithm of the package."""
        return {"init": self.init} if algorithm == "lsq" else {}


def grid(config: GridConfig, workdir: Path) -> dict[str, Cell]:
    """All points by name.

    Raises:
        MQBenchError: an algorithm that there is not; it names those that there are.
    """
    from mqbench_lite import algorithms
    from mqbench_lite.cells import RANGES, Cell

    for name in config.algorithms:
        if name not in RANGES:
            algorithms.get(name)
    cells = [
        Cell(config=config, algorithm=algorithm, profile=profile, bits=bits, seed=seed, workdir=workdir)
        for bits in config.bits
        for algorithm in config.algorithms
        for profile in config.profiles
        for seed in range(config.seeds)
    ]
    return {cell.key: cell for cell in cells}


def run_grid(
    run: Run, config: GridConfig, *, workers: int = 1, cluster: str | None = None, progress: bool = True
) -> tuple[list[dict[str, Any]], dict[str, JobError]]:
    """Runs the points that the run does not hold yet; each is stored as it ends.

    Args:
        run: where results are stored: `cells/NAME.json`, `results.jsonl`, `leaderboard.md`, `.csv`, `.json`, `.html`.
        config: of all points.
        workers: processes on this machine.
        cluster: a Dask scheduler's address instead.
        progress: show progress on stderr.

    Returns:
        A row a finished point, in the grid's order, and why the others failed, by name.
    """
    from mqbench_lite.cells import measure

    cells = grid(config, run.path / "work")
    done = {key for key in cells if (run.path / _file(key)).is_file()}
    failures: dict[str, JobError] = {}
    jobs = map_jobs(measure, cells, workers=workers, cluster=cluster, done=done, progress=progress)
    with contextlib.closing(jobs):
        for result in jobs:
            if result.error is None:
                run.write(_file(result.key), result.value)
                run.log(cell=result.key, accuracy=result.value["accuracy"], seconds=result.seconds)
            else:
                failures[result.key] = result.error
    rows = [run.read(_file(key)) for key in cells if key not in failures]
    if rows and not run.finished:
        write_leaderboard(run, rows, failures)
    return rows, failures


def write_leaderboard(run: Run, rows: Sequence[Mapping[str, Any]], failures: Mapping[str, JobError]) -> None:
    """All forms of the leaderboard."""
    from mqbench_lite.pages import leaderboard_page

    boards = tables.leaderboard(rows)
    run.write("results.jsonl", "".join(dumps(row) + "\n" for row in rows))
    run.write("leaderboard.md", tables.to_markdown(boards))
    run.write("leaderboard.csv", tables.to_csv(boards))
    run.write("leaderboard.json", boards)
    failed = {key: str(error) for key, error in failures.items()}
    run.write("leaderboard.html", leaderboard_page(boards, rows, failed, environment()))


def _file(key: str) -> str:
    return f"cells/{key}.json"
