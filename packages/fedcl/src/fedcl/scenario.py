"""Who learns what, when, from which images: tasks, each client's own order of tasks, and the parts of the data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from core_utils.files import write_atomically
from fedcl.errors import ScenarioError
from fedcl.partitions import IID, Partition

Order = Literal["random", "same"]
Normal = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, eq=False)
class Subset:
    """Images and labels: float32 [n, ...], int64 [n] within 0..classes of the task - 1."""

    x: np.ndarray
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, eq=False)
class Scenario:
    """A federation's tasks and data.

    Attributes:
        x: training images, [n, ...], uint8 or floating point.
        y: their classes, int64 [n].
        x_test: test images.
        y_test: their classes.
        tasks: the classes of each task, sorted; a label within a task is the position here.
        orders: int64 [K, T]; row i is client i's order of tasks.
        parts: indices into `x` by client and task.
        normal: mean and deviation of each channel (of images / 255), applied to uint8 images; None leaves them / 255.
        seed: what everything was drawn from.
    """

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    tasks: tuple[tuple[int, ...], ...]
    orders: np.ndarray
    parts: tuple[tuple[np.ndarray, ...], ...]
    normal: Normal | None = None
    seed: int = 0

    @classmethod
    def from_arrays(
        cls,
        x: np.ndarray,
        y: np.ndarray,
        *,
        x_test: np.ndarray,
        y_test: np.ndarray,
        tasks: int | Sequence[Sequence[int]] = 10,
        classes_per_task: int | None = None,
        clients: int,
        order: Order | np.ndarray = "random",
        partition: Partition | None = None,
        per_client: int | None = None,
        allow_uneven: bool = False,
        normal: Normal | None = None,
        seed: int = 0,
    ) -> Scenario:
        """Splits classes into tasks, draws orders and deals the images; the same seed gives the same scenario.

        Args:
            x: training images, uint8 or finite floating point, [n, ...].
            y: classes, integers [n], not negative.
            x_test: test images of the same shape and dtype.
            y_test: their classes.
            tasks: how many, or the classes of each.
            classes_per_task: by default all classes are used.
            clients: K.
            order: "random" gives each client its own permutation, "same" all of them one; or an array [K, T].
            partition: `IID()` or `Dirichlet(...)`; by default IID.
            per_client: most images of a client in a task; the others are left out.
            allow_uneven: tasks may have unequal numbers of classes.
            normal: mean and deviation of each channel.
            seed: decides classes of tasks, orders and parts, each from a stream of its own.

        Raises:
            ScenarioError: what is asked for cannot be had; names both numbers.
        """
        y, y_test = _labels(y, "training"), _labels(y_test, "test")
        _check_images(x, y, "training")
        _check_images(x_test, y_test, "test")
        if x.shape[1:] != x_test.shape[1:] or x.dtype != x_test.dtype:
            raise ScenarioError(f"test images are {_kind(x_test)}, training images {_kind(x)}")
        if clients < 1:
            raise ScenarioError(f"clients must be at least 1, got {clients}")
        split = _tasks(np.unique(y), tasks, classes_per_task, allow_uneven, np.random.default_rng([seed, 1]))
        missing = sorted({label for task in split for label in task} - set(np.unique(y_test).tolist()))
        if missing:
            raise ScenarioError(f"class {missing[0]} has no test images")
        orders = _orders(order, clients, len(split), np.random.default_rng([seed, 2]))
        rng, deal = np.random.default_rng([seed, 3]), partition or IID()
        columns = []
        for task in split:
            members = np.flatnonzero(np.isin(y, task))
            dealt = [members[part] for part in deal(y[members], clients, rng)]
            columns.append([part if per_client is None else _some(part, per_client, rng) for part in dealt])
        parts = tuple(tuple(column[client] for column in columns) for client in range(clients))
        return cls(x, y, x_test, y_test, split, orders, parts, normal, seed)

    @property
    def num_clients(self) -> int:
        """K."""
        return len(self.orders)

    @property
    def num_tasks(self) -> int:
        """T."""
        return len(self.tasks)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one image."""
        return tuple(int(side) for side in self.x.shape[1:])

    def classes(self, task: int) -> int:
        """How many classes a task has."""
        return len(self.tasks[task])

    def client(self, client: int, task: int) -> Subset:
        """What a client holds of a task."""
        return self._subset(self.x, self.y, self.parts[client][task], task)

    def joint(self, task: int) -> Subset:
        """What all clients together hold of a task."""
        return self._subset(self.x, self.y, np.concatenate([row[task] for row in self.parts]), task)

    def test(self, task: int) -> Subset:
        """The test images of a task."""
        return self._subset(self.x_test, self.y_test, np.flatnonzero(np.isin(self.y_test, self.tasks[task])), task)

    def counts(self) -> np.ndarray:
        """Images by client, task and position of the class in its task: int64 [K, T, classes]."""
        widest = max(len(task) for task in self.tasks)
        counts = np.zeros((self.num_clients, self.num_tasks, widest), np.int64)
        for i, row in enumerate(self.parts):
            for t, part in enumerate(row):
                counts[i, t] = np.bincount(np.searchsorted(self.tasks[t], self.y[part]), minlength=widest)
        return counts

    def digest(self) -> str:
        """SHA-256 over tasks, orders, parts and all data."""
        digest = hashlib.sha256(json.dumps([self.tasks, self.orders.tolist(), self.normal]).encode())
        for array in (self.x, self.y, self.x_test, self.y_test, *(part for row in self.parts for part in row)):
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Writes `scenario.json` (tasks, orders, seed) and `scenario.safetensors` (images, classes, parts)."""
        sizes = [[len(part) for part in row] for row in self.parts]
        everything = np.concatenate([part for row in self.parts for part in row]).astype(np.int64)
        arrays = {"x": self.x, "y": self.y, "x_test": self.x_test, "y_test": self.y_test, "parts": everything}
        facts = {
            "format": 1,
            "tasks": self.tasks,
            "orders": self.orders.tolist(),
            "sizes": sizes,
            "normal": self.normal,
            "seed": self.seed,
            "digest": self.digest(),
        }
        content = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        write_atomically(Path(folder, "scenario.safetensors"), content)
        write_atomically(Path(folder, "scenario.json"), json.dumps(facts, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> Scenario:
        """Reads what `save` wrote.

        Raises:
            ScenarioError: a file is missing, damaged or does not belong to the other.
        """
        file = Path(folder, "scenario.json")
        try:
            facts = json.loads(file.read_bytes())
            arrays = safetensors.numpy.load(Path(folder, "scenario.safetensors").read_bytes())
            flat = [size for row in facts["sizes"] for size in row]
            pieces = iter(np.split(arrays["parts"], np.cumsum(flat)[:-1]))
            parts = tuple(tuple(next(pieces) for _ in row) for row in facts["sizes"])
            tasks = tuple(tuple(task) for task in facts["tasks"])
            normal: Any = facts["normal"] and tuple(tuple(each) for each in facts["normal"])
            x, y, x_test, y_test = (arrays[name] for name in ("x", "y", "x_test", "y_test"))
            orders = np.array(facts["orders"], np.int64)
            found = cls(x, y, x_test, y_test, tasks, orders, parts, normal, facts["seed"])
            expected = facts["digest"]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ScenarioError(f"{file} or its arrays cannot be read: {error}") from None
        if found.digest() != expected:
            raise ScenarioError(f"{file} and scenario.safetensors do not belong together", "make the scenario anew")
        return found

    def _subset(self, x: np.ndarray, y: np.ndarray, indices: np.ndarray, task: int) -> Subset:
        images, labels = x[indices], np.searchsorted(self.tasks[task], y[indices])
        if images.dtype == np.uint8:
            images = images.astype(np.float32) / np.float32(255)
            if self.normal is not None:
                mean, deviation = (np.array(each, np.float32).reshape(-1, 1, 1) for each in self.normal)
                images = (images - mean) / deviation
        return Subset(images, labels.astype(np.int64))


def _labels(y: np.ndarray, what: str) -> np.ndarray:
    y = np.asarray(y)
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise ScenarioError(f"{what} labels must be integers in one dimension, got {_kind(y)}")
    if len(y) and y.min() < 0:
        raise ScenarioError(f"{what} labels must not be negative, got {y.min()} at {int(y.argmin())}")
    return y.astype(np.int64)


def _check_images(x: np.ndarray, y: np.ndarray, what: str) -> None:
    if len(x) != len(y) or len(x) == 0:
        raise ScenarioError(f"{len(x)} {what} images have {len(y)} labels; as many are needed, and at least one")
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise ScenarioError(f"{what} images must be uint8 or floating point, got {_kind(x)}")
    if x.dtype != np.uint8 and not np.isfinite(x).all():
        raise ScenarioError(f"{what} image {int(np.argwhere(~np.isfinite(x))[0][0])} has values that are not finite")


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {list(array.shape)}"


def _tasks(
    known: np.ndarray,
    tasks: int | Sequence[Sequence[int]],
    classes_per_task: int | None,
    allow_uneven: bool,
    rng: np.random.Generator,
) -> tuple[tuple[int, ...], ...]:
    if not isinstance(tasks, int):
        split = tuple(tuple(sorted(int(label) for label in task)) for task in tasks)
        used = [label for task in split for label in task]
        if len(set(used)) != len(used) or not set(used) <= set(known.tolist()) or not all(split):
            raise ScenarioError(f"tasks must be disjoint, not empty, and of the {len(known)} classes of the data")
    else:
        per_task = classes_per_task or len(known) // max(tasks, 1)
        if tasks < 1 or per_task < 1 or tasks * per_task > len(known):
            raise ScenarioError(f"{tasks} tasks of {max(per_task, 1)} classes need more than the data's {len(known)}")
        if classes_per_task is None and tasks * per_task != len(known) and not allow_uneven:
            hint = "set classes_per_task or allow_uneven"
            raise ScenarioError(f"{len(known)} classes cannot be split into {tasks} equal tasks", hint)
        order = rng.permutation(known)[: None if classes_per_task is None else tasks * per_task]
        split = tuple(tuple(sorted(part.tolist())) for part in np.array_split(order, tasks))
    if len({len(task) for task in split}) > 1 and not allow_uneven:
        raise ScenarioError(f"tasks have {sorted({len(task) for task in split})} classes", "set allow_uneven")
    return split


def _orders(order: Order | np.ndarray, clients: int, tasks: int, rng: np.random.Generator) -> np.ndarray:
    if isinstance(order, str):
        if order not in ("random", "same"):
            raise ScenarioError(f"order must be random, same or an array, got {order!r}")
        if order == "same":
            return np.tile(rng.permutation(tasks), (clients, 1)).astype(np.int64)
        return np.stack([rng.permutation(tasks) for _ in range(clients)]).astype(np.int64)
    order = np.asarray(order)
    if order.shape != (clients, tasks):
        raise ScenarioError(f"order must have shape [{clients}, {tasks}], got {list(order.shape)}")
    for row, tasks_of_client in enumerate(order):
        if sorted(tasks_of_client.tolist()) != list(range(tasks)):
            raise ScenarioError(f"order row {row} is no permutation of 0 to {tasks - 1}: {tasks_of_client.tolist()}")
    return order.astype(np.int64)


def _some(part: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    if most < 1:
        raise ScenarioError(f"per_client must be at least 1, got {most}")
    return part if len(part) <= most else np.sort(rng.choice(part, most, replace=False))
