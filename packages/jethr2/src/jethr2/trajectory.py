"""One flight, kept: states, commands and what the controller believed, period by period."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from core_utils.files import atomic_file, write_atomically
from jethr2.errors import JetHR2Error
from jethr2.metrics import Metrics


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One flight.

    Attributes:
        arrays: by name, one row per control period and the start: `time` s, `qpos`, `qvel`, `fan` (states of front,
            back, left, right); and what the controller made of it, whose last row repeats the one before: `ctrl` (the
            commands from then on), `lift_lost` N, `saturated` (roll, pitch, yaw), `estimate` (the attitude that it
            believes; the true one for other pilots).
        figures: of the flight, one row.
        dt: control period, s.
    """

    arrays: Mapping[str, np.ndarray]
    figures: Metrics
    dt: float

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def metrics(self) -> dict[str, float]:
        """Peaks, times and efforts by name, see `Metrics`; and whether it is a success."""
        values = {name: float(value[0]) for name, value in vars(self.figures).items()}
        return {**values, "success": float(self.figures.success()[0]), "upright": float(self.figures.upright()[0])}

    @property
    def angles(self) -> Float[np.ndarray, "rows 3"]:
        """Roll, pitch, yaw (z-y-x, yaw unwrapped), rad."""
        w, x, y, z = self.arrays["qpos"][:, 3:7].T
        roll = np.arctan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
        pitch = np.arcsin(np.clip(2 * (w * y - x * z), -1, 1))
        yaw = np.unwrap(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))
        return np.stack([roll, pitch, yaw], axis=1)

    def to_npz(self, path: str | Path) -> None:
        """Writes everything; `from_npz` reads it."""
        with atomic_file(Path(path)) as file:
            figures = {f"metric_{name}": value for name, value in vars(self.figures).items()}
            np.savez_compressed(file, **self.arrays, **figures, dt=self.dt)  # type: ignore[arg-type]

    @classmethod
    def from_npz(cls, path: str | Path) -> Trajectory:
        """Reads what `to_npz` wrote.

        Raises:
            JetHR2Error: the file is missing, damaged or holds something else.
        """
        try:
            with Path(path).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                content = dict(file)
            figures = {name.removeprefix("metric_"): content.pop(name) for name in list(content) if "metric_" in name}
            return cls(
                {name: value for name, value in content.items() if name != "dt"},
                Metrics(**figures),
                float(content["dt"]),
            )
        except Exception as error:  # zipfile, NumPy and a missing array each complain in their own way
            raise JetHR2Error(f"{path} is no trajectory of this package: {error}") from None

    def to_csv(self, path: str | Path) -> None:
        """Writes one line per row: time, then every other array's columns by name and number."""
        names, blocks = [], []
        for name, values in self.arrays.items():
            block = values.reshape(len(values), -1)
            names += [name] if values.ndim == 1 else [f"{name}_{k}" for k in range(block.shape[1])]
            blocks.append(block)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([[repr(float(value)) for value in row] for row in np.hstack(blocks)])
        write_atomically(Path(path), text.getvalue())
