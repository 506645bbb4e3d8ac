"""Training, evaluating, and both over a list of settings."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from core_utils import cli
from core_utils.errors import CheckFailed, UserError
from core_utils.files import write_atomically
from diffract.commands.options import Designed

if TYPE_CHECKING:
    import numpy as np

    from diffract.designs import Design
    from diffract.job import Trained

_DATA = "folder of MNIST's IDX files or of PNG or TIFF images, .npy or .npz; scikit-learn's digits unless given"
Data = Annotated[Path | None, tyro.conf.arg(help=_DATA)]


@dataclass(frozen=True, kw_only=True)
class Train(cli.RunCommand, Designed):
    """Train a network and test it once at the end."""

    data: Data = None
    devices: int = 1  # among which the pairs of a step are divided
    out: Path = Path("runs/train")  # the run's folder

    def __call__(self) -> None:
        """Trains, or goes on, or shows what a finished run holds."""
        from diffract.job import asked_of, train_job

        design = self.design()
        if self.data is not None and not self.data.exists():
            raise UserError(f"--data {self.data} does not exist")
        with self.open_run(asked_of(design, self.data)) as run:
            if not run.finished:
                run.finish(train_job(design, self.data, run, devices=self.devices, progress=not self.quiet))
            result = run.result()
        self.show(result, lambda: _pcc_table(result["pcc"], result["objects"], result["region"]))


def _pcc_table(found: Mapping[str, float], objects: int, region: Any) -> Any:
    from rich.table import Table

    title = f"correlation over {region[0]} x {region[1]} pixels, {objects} test objects"
    table = Table("diffusers", "mean", "deviation over diffusers", title=title)
    for name in ("known", "new", "none"):
        if name in found:
            deviation = found.get(f"{name}_std")
            table.add_row(name, f"{found[name]:.3f}", "" if deviation is None else f"{deviation:.3f}")
    return table


@dataclass(frozen=True, kw_only=True)
class Evaluate(cli.Command):
    """Image objects with a trained network, through known, new or no diffusers, beside its baselines."""

    run: Path  # folder of `diffract train`
    diffusers: str = "new:20"  # new:N, known, none, or a .npy file of phases [n, H, W]
    objects: str = "test"  # test, bars (gratings of 7.2 to 12 mm over 72), siemens, or a .npy file [n, h, w]
    count: int = 100  # at most so many test objects
    out: Path = Path("runs/evaluate")  # folder of pcc.csv and montage.png

    def __call__(self) -> None:
        """Writes the table and the montage, prints means."""
        import numpy as np

        from diffract import baselines
        from diffract.evaluation import evaluate
        from diffract.job import read_trained

        trained = read_trained(self.run)
        screens = _screens(trained, self.diffusers)
        objects, periods = _objects(trained, self.objects, self.count)
        grid, planes = trained.design.grid, trained.design.planes
        imagers: dict[str, Any] = {"network": trained.network}
        imagers["free space"] = baselines.free_space(grid, planes)
        try:
            lens = baselines.lens(grid, planes, **_lens_of(grid, planes))
            imagers[lens.name] = lens
        except UserError as error:
            self.say(f"no lens to compare with: {error}")
        tables = {name: evaluate(imager, objects, screens) for name, imager in imagers.items()}
        write_atomically(self.out / "pcc.csv", _csv(tables))
        images = {name: _images(imager, objects[:8], screens) for name, imager in imagers.items()}
        write_atomically(self.out / "montage.png", _montage(objects[:8], images, grid))
        facts: dict[str, Any] = {
            name: {"mean": table.mean, "std": table.std, "efficiency": float(np.nanmean(table.efficiency))}
            for name, table in tables.items()
        }
        result = {"pcc": facts, "objects": len(objects), "undefined": tables["network"].undefined, "region": grid.shape}
        if periods:
            result["periods"] = _periods(periods, images["network"], grid)
        self.show({**result, "out": self.out}, lambda: _evaluation_table(result))


def _lens_of(grid: Any, planes: Any) -> dict[str, Any]:
    """The paper's lens where one of the network's length would stand before the diffuser."""
    if planes.depth > planes.object_to_diffuser:
        return {}
    return {"focal_length": 145.6 * grid.wavelength, "pupil": 104 * grid.wavelength}


def _screens(trained: Trained, text: str) -> np.ndarray | None:
    from diffract.job import new_diffusers, read_screens

    kind, colon, count = text.partition(":")
    if text == "none":
        return None
    if text == "known":
        if not len(trained.known):
            raise UserError("--diffusers known: the network was trained without diffusers")
        return trained.known
    if kind == "new" and colon:
        if not count.isdecimal() or not int(count):
            raise UserError(f"--diffusers {text}: new:N needs a positive number")
        return new_diffusers(trained.design, int(count))
    if not text.endswith(".npy"):
        raise UserError(f"--diffusers {text!r} is nothing known", "new:N, known, none, or a .npy file")
    screens = read_screens(Path(text))
    if screens.shape[1:] != trained.design.grid.shape:
        raise UserError(f"--diffusers {text} has the shape {screens.shape}, the grid {trained.design.grid.shape}")
    return screens


def _objects(trained: Trained, text: str, count: int) -> tuple[np.ndarray, list[float]]:
    """Objects on the grid, and the periods of bars."""
    import numpy as np

    from diffract import targets
    from diffract.objects import check_objects, load_objects, placed

    grid = trained.design.grid
    if count < 1:
        raise UserError(f"--count must be at least 1, got {count}")
    if text == "test":
        return trained.test_objects(count), []
    if text == "siemens":
        return targets.siemens(grid)[None], []
    if text == "bars":
        periods = [share * min(grid.extent) for share in (0.1, 7 / 60, 8 / 60, 9 / 60, 10 / 60)]
        return np.stack([targets.bars(grid, period) for period in periods]), periods
    if not text.endswith((".npy", ".npz")):
        raise UserError(f"--objects {text!r} is nothing known", "test, bars, siemens, or a .npy file")
    images = load_objects(Path(text)).test[:count]
    check_objects(images, constant=True)
    return placed(images, grid, trained.design.object_side), []


def _images(imager: Any, objects: np.ndarray, screens: np.ndarray | None) -> np.ndarray:
    """Behind the first diffuser."""
    import numpy as np

    from diffract.networks import diffused

    first = np.zeros((1, *objects.shape[1:]), np.float32) if screens is None else screens[:1]
    return np.asarray(imager(diffused(imager.illuminated(objects), first)))[:, 0]


def _montage(objects: np.ndarray, images: Mapping[str, np.ndarray], grid: Any) -> bytes | str:
    from diffract.losses import pcc
    from diffract.plots import montage_figure, picture

    scores = {name: [float(value) for value in pcc(each, objects)] for name, each in images.items()}
    figure = montage_figure({"object": objects, **images}, grid, title="Correlation with the object", scores=scores)
    return picture(figure, ".png")


def _csv(tables: Mapping[str, Any]) -> str:
    content = io.StringIO()
    rows = csv.writer(content, lineterminator="\n")
    rows.writerow(["imager", "object", "diffuser", "pcc", "efficiency"])
    for name, table in tables.items():
        for (i, j), value in _enumerated(table.pcc):
            rows.writerow([name, i, j, f"{value:.6f}", f"{table.efficiency[i, j]:.6f}"])
    return content.getvalue()


def _enumerated(values: np.ndarray) -> Any:
    import numpy as np

    return np.ndenumerate(values)


def _periods(periods: list[float], images: np.ndarray, grid: Any) -> list[dict[str, Any]]:
    from diffract.targets import estimate_period

    found = [estimate_period(image, grid, "vertical") for image in images]
    return [
        {"period": period, "measured": each.period, "resolved": each.resolved}
        for period, each in zip(periods, found, strict=True)
    ]


def _evaluation_table(result: Mapping[str, Any]) -> Any:
    from rich.console import Group
    from rich.table import Table

    title = f"correlation over {result['region'][0]} x {result['region'][1]} pixels, {result['objects']} objects"
    table = Table("imager", "mean", "deviation over diffusers", "light", title=title)
    for name, each in result["pcc"].items():
        table.add_row(name, f"{each['mean']:.3f}", f"{each['std']:.3f}", f"{each['efficiency']:.3f}")
    if "periods" not in result:
        return table
    bars = Table("period, mm", "measured, mm")
    for each in result["periods"]:
        measured = f"{each['measured'] * 1e3:.2f}" if each["resolved"] else "not resolved"
        bars.add_row(f"{each['period'] * 1e3:.2f}", measured)
    return Group(table, bars)


@dataclass(frozen=True, kw_only=True)
class Sweep(cli.RunCommand, Designed):
    """Train over a list of settings, each cell once, and tabulate what comes out."""

    over: str  # n=1,4,16 or layers=1,2,4 or sigma=1 lambda,2 lambda (or any setting's dotted name)
    seeds: int = 1  # trainings of each value, from --seed on
    data: Data = None
    workers: int = 1  # processes
    cluster: str | None = None  # address of a Dask scheduler instead
    out: Path = Path("runs/sweep")  # the run's folder; finished cells are kept

    def __call__(self) -> None:
        """Trains the cells that are missing, writes table.csv and a picture."""
        from core_utils.jobs import map_jobs

        name, values = _axis(self.over)
        design = self.design()
        if self.seeds < 1:
            raise UserError(f"--seeds must be at least 1, got {self.seeds}")
        cells = {
            f"{value}-seed{design.seed + s}".replace(" ", ""): (_with(design, name, value, design.seed + s), self.data)
            for value in values
            for s in range(self.seeds)
        }
        with self.open_run({"design": design, "over": self.over, "seeds": self.seeds, "data": self.data}) as run:
            if not run.finished:
                done = {key for key in cells if (run.path / f"cells/{key}.json").is_file()}
                options: dict[str, Any] = {"workers": self.workers, "cluster": self.cluster, "progress": not self.quiet}
                failed = []
                for job in map_jobs(sweep_cell, cells, done=done, **options):
                    if job.error is None:
                        run.write(f"cells/{job.key}.json", job.value)
                    else:
                        failed.append(f"{job.key}: {job.error}")
                if failed:
                    raise CheckFailed("; ".join(failed))
                rows = [
                    {"value": value, "seed": design.seed + s, **run.read(f"cells/{key}.json")}
                    for (value, s), key in zip(((v, s) for v in values for s in range(self.seeds)), cells, strict=True)
                ]
                write_sweep(run, name, rows)
                run.finish({"over": name, "rows": rows})
            result = run.result()
        self.show(result, lambda: _sweep_table(result))


_SHORT = {"n": "train.n", "layers": "geometry.n_layers", "sigma": "diffuser.sigma", "L": "diffuser.correlation_length"}


def _axis(text: str) -> tuple[str, list[str]]:
    name, equals, values = text.partition("=")
    if not equals or not values.strip():
        raise UserError(f"--over {text!r} names no values", "write n=1,4,16 or layers=1,2,4")
    return name.strip(), [value.strip() for value in values.split(",")]


def _with(design: Design, name: str, value: str, seed: int) -> Design:
    """The design with one setting replaced, through the same checks as the command line's."""
    from core_utils.jsonable import jsonable
    from core_utils.settings import from_tree

    tree = jsonable(design)
    path = _SHORT.get(name, name).split(".")
    table = tree
    for part in path[:-1]:
        if not isinstance(table.get(part), dict):
            raise UserError(f"--over {name}: no such setting", f"known: {', '.join(_SHORT)}, or table.name")
        table = table[part]
    if path[-1] not in table:
        raise UserError(f"--over {name}: no such setting", f"known: {', '.join(_SHORT)}, or table.name")
    old = table[path[-1]]
    table[path[-1]] = [value] if isinstance(old, list) else _number(value)
    if name == "L":
        tree["diffuser"]["sigma"] = []
    return from_tree(type(design), {**tree, "seed": seed}, f"--over {name}")


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def sweep_cell(job: tuple[Design, Path | None]) -> dict[str, float]:
    """One training, tested through known, new and no diffusers."""
    from diffract.evaluation import evaluate
    from diffract.job import NEW, TESTED, new_diffusers
    from diffract.objects import load_objects, placed
    from diffract.training import train

    design, data = job
    objects = load_objects(data)
    result = train(design, objects.train)
    test = placed(objects.test[:TESTED], design.grid, design.object_side)
    found = {"none": evaluate(result.network, test, None).mean}
    if len(result.known):
        new = evaluate(result.network, test, new_diffusers(design, NEW))
        found |= {"known": evaluate(result.network, test, result.known).mean, "new": new.mean, "new_std": new.std}
    return found


def write_sweep(run: Any, name: str, rows: list[dict[str, Any]]) -> None:
    """table.csv and figures/sweep.svg."""
    import numpy as np

    from diffract.plots import lines_figure, picture

    content = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = csv.DictWriter(content, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    run.write("table.csv", content.getvalue())
    values = list(dict.fromkeys(row["value"] for row in rows))
    lines = {}
    for kind in ("known", "new", "none"):
        found = [[row[kind] for row in rows if row["value"] == value and kind in row] for value in values]
        if all(found):
            lines[kind] = (range(len(values)), [np.mean(each) for each in found], [np.std(each) for each in found])
    figure = lines_figure(lines, x=name, y="Pearson correlation", title=f"Correlation against {name}")
    figure.axes[0].set_xticks(range(len(values)), values)
    run.write("figures/sweep.svg", picture(figure, ".svg"))


def _sweep_table(result: Mapping[str, Any]) -> Any:
    from rich.table import Table

    table = Table(result["over"], "seed", "known", "new", "none")
    for row in result["rows"]:
        cells = [f"{row[kind]:.3f}" if kind in row else "" for kind in ("known", "new", "none")]
        table.add_row(row["value"], str(row["seed"]), *cells)
    return table
