"""What is done with recordings from the shell: caches of frames, pictures, simulated ones, and what a file holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from core_utils import cli
from core_utils.errors import UserError

if TYPE_CHECKING:
    import numpy as np

Named = Literal["cifar10-dvs", "n-caltech101", "n-cars", "n-mnist", "dvs-gesture", "other"]


@dataclass(frozen=True, kw_only=True)
class Recorded(cli.Command):
    """Options of what reads a folder of recordings."""

    data: Path | None = None  # folder of the recordings, extracted
    dataset: Named = "other"  # which data set they are; says sensor, parts and whether a mirror keeps labels
    sensor: tuple[int, int] | None = None  # width and height of the sensor of an "other" data set, pixels
    time_steps: int = 10  # frames of a recording
    size: int = 48  # height and width of the frames, pixels
    by: Literal["time", "number"] = "number"  # steps of equal duration, or of equal numbers of events
    method: Literal["nearest", "area", "sum"] = "sum"  # how frames are made smaller; the paper's is nearest
    sort: bool = False  # accept recordings whose times decrease, by sorting their events

    def parts(self) -> Any:
        """The recordings of training and test part."""
        from snn_nda.datasets import recording_parts

        if self.data is None:
            raise UserError("--data is missing", "name the folder of the recordings")
        if (self.dataset == "other") != (self.sensor is not None):
            raise UserError("--sensor WIDTH HEIGHT belongs to --dataset other, and must be given there")
        name = None if self.dataset == "other" else self.dataset
        return recording_parts(name, self.data, sort=self.sort, sensor_size=self.sensor)

    def options(self) -> Any:
        """How recordings become frames."""
        from snn_nda.frame_cache import FrameOptions

        return FrameOptions(time_steps=self.time_steps, size=self.size, by=self.by, method=self.method)


@dataclass(frozen=True, kw_only=True)
class Prepare(Recorded):
    """Make the frame caches of recordings; `train` would make them, too. Goes on where it was interrupted."""

    workers: int = 2  # processes
    cluster: str | None = None  # address of a Dask scheduler instead
    out: Path | None = None  # folder of the caches; by default .frames in --data

    def __call__(self) -> None:
        """Makes what is missing and prints the files."""
        from snn_nda.datasets import prepared

        parts = self.parts()
        files = prepared(
            parts,
            self.data or Path(),
            self.options(),
            cache=self.out,
            workers=self.workers,
            cluster=self.cluster,
            progress=not self.quiet,
        )
        self.show({"train": files[0], "test": files[1], "recordings": [len(part) for part in parts]})


@dataclass(frozen=True, kw_only=True)
class Preview(Recorded):
    """Draw what each operation of a policy does to one recording: a grid of pictures and the same in motion."""

    policy: str = "paper"  # paper, code, M1N2 and the like, or FILE.toml
    index: int = 0  # which recording of the training part, or of the embedded miniature without --data
    seed: int = 0  # decides the two lots of the policy that are drawn
    out: Path = Path("runs/preview")  # folder of preview.png and preview.gif

    def __call__(self) -> None:
        """Writes the pictures."""
        from core_utils.files import write_atomically
        from snn_nda.policies import policy
        from snn_nda.preview import preview_gif, preview_png

        chosen = policy(self.policy, self.dataset)
        frames, title = self._recording()
        write_atomically(self.out / "preview.png", preview_png(frames, chosen, title=title, rng=self.seed))
        write_atomically(self.out / "preview.gif", preview_gif(frames, chosen, rng=self.seed))
        self.show({name: self.out / f"preview.{name}" for name in ("png", "gif")})

    def _recording(self) -> tuple[np.ndarray, str]:
        from dataclasses import asdict

        from snn_nda.adapters import EventFrames
        from snn_nda.synthetic import SyntheticEventDataset

        if self.data is None:
            dataset: Any = SyntheticEventDataset(n=50, T=5, size=48)
            title = "Fashion-MNIST before a simulated camera"
        else:
            train, _ = self.parts()
            dataset = EventFrames(dataset=train, **asdict(self.options()))
            title = train.paths[self.index].name if 0 <= self.index < len(train) else ""
        if not 0 <= self.index < len(dataset):
            raise UserError(f"--index must lie in 0..{len(dataset) - 1}, got {self.index}")
        return dataset[self.index][0], title


@dataclass(frozen=True, kw_only=True)
class Simulate(cli.Command):
    """Record real images, in random poses, with the simulated event camera; write a data set of `.dat` files."""

    source: str = "fashion-mnist"  # fashion-mnist (embedded), digits, or a folder of MNIST-like IDX files
    train: int = 200  # training recordings
    test: int = 100  # test recordings
    time_steps: int = 5  # T; the camera moves for so many times 60 ms
    size: int = 24  # height and width of the sensor, pixels
    seed: int = 0  # decides images, poses and noise
    out: Path = Path("runs/simulated")  # folder of train/<class>/<number>.dat and test/...

    def __call__(self) -> None:
        """Writes the recordings."""
        from snn_nda.recording_files import write_dat
        from snn_nda.synthetic import SyntheticEventDataset

        if (self.out / "train").exists() or (self.out / "test").exists():
            raise UserError(f"--out {self.out} holds recordings already", "name a new folder")
        events = {}
        parts: tuple[tuple[Literal["train", "test"], int], ...] = (("train", self.train), ("test", self.test))
        for part, count in parts:
            dataset = SyntheticEventDataset(
                self.source, count, self.time_steps, self.size, self.seed, part=part, output="events"
            )
            for index in range(len(dataset)):
                recording, label = dataset[index]
                write_dat(self.out / part / str(label) / f"{index:05}.dat", recording, (self.size, self.size))
            events[part] = sum(map(len, dataset.samples))
        self.show({"folder": self.out, "sensor": [self.size, self.size], "events": events})


@dataclass(frozen=True, kw_only=True)
class Info(cli.Command):
    """Say what recordings hold: events, duration, rate, extent, polarities."""

    files: tyro.conf.Positional[tuple[Path, ...]]  # recordings, of any format that is read
    sort: bool = False  # accept times that decrease

    def __call__(self) -> None:
        """Prints the figures; writes nothing."""
        from core_utils.spiking.events import read_events
        from snn_nda.recording_files import statistics_of

        found = {str(file): statistics_of(read_events(file, sort=self.sort)) for file in self.files}
        self.show(found, lambda: _info_table(found))


def _info_table(found: dict[str, dict[str, float | int]]) -> Any:
    from rich.table import Table

    table = Table("recording", "events", "duration (ms)", "events/s", "x", "y", "brighter")
    for name, each in found.items():
        table.add_row(
            name,
            f"{each['events']}",
            f"{each['duration_us'] / 1000:.1f}",
            f"{each['rate']:.3g}",
            f"{each['x_min']} to {each['x_max']}",
            f"{each['y_min']} to {each['y_max']}",
            f"{100 * each['brighter']:.1f} %",
        )
    return table
