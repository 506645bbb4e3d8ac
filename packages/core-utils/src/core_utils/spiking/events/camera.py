"""An event camera that moves before still pictures.

Every pixel remembers the log intensity L at which it last fired, R, and fires each time that L is a threshold away:

    n = trunc((L - R) / theta),  R += n * theta        |n| events, brighter if n > 0

Reference: the miniature of snn-nda (arXiv 2203.06145 records by moving pictures likewise); the pixel is that of
Lichtsteiner et al., "A 128x128 120 dB 15 us latency asynchronous temporal contrast vision sensor" (2008).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from core_utils.errors import UserError
from core_utils.spiking.events.frames import EVENT
from core_utils.spiking.events.pose import intensities, random_pose

DARK = 0.1
"""Added to the intensity before the logarithm: the light that a black pixel still sees."""

CHUNK = 256


@dataclass(frozen=True)
class EventCamera:
    """The camera, its path and its pixels.

    Attributes:
        time_steps: T, time bins of a recording.
        micro_steps: pictures taken in a bin; the light is linear in time between them.
        micro_step: time between two pictures, microseconds.
        trajectory: closed path of the camera: "saccade" is a triangle, "circle" a circle, "random" the triangle turned
            by an angle of its own for every image.
        amplitude: extent of the path, pixels.
        threshold: theta, change of log intensity that fires a pixel.
        mismatch: standard deviation of theta between pixels, as a fraction of it.
        noise: expected events without a cause, per bin, polarity and pixel.
        refractory: time after an event in which its pixel loses events, microseconds.
        bandwidth: cut-off of the pixel's low-pass, Hz; None is unlimited.

    Raises:
        UserError: a value outside its range.
    """

    time_steps: int = 5
    micro_steps: int = 4
    micro_step: int = 15_000
    trajectory: Literal["saccade", "circle", "random"] = "saccade"
    amplitude: float = 3.0
    threshold: float = 0.25
    mismatch: float = 0.1
    noise: float = 0.01
    refractory: int = 0
    bandwidth: float | None = None

    def __post_init__(self) -> None:
        if self.trajectory not in ("saccade", "circle", "random"):
            raise UserError(f"trajectory must be one of saccade, circle, random, got {self.trajectory!r}")
        for name in ("time_steps", "micro_steps", "micro_step"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("amplitude", "mismatch", "noise", "refractory"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("threshold", "bandwidth"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise UserError(f"{name} must be positive, got {getattr(self, name)}")

    @property
    def bin_duration(self) -> int:
        """Length of a time bin, microseconds."""
        return self.micro_steps * self.micro_step

    def path(self, images: int, rng: np.random.Generator) -> np.ndarray:
        """Displacement (down, right) of the picture, pixels, shape [T * micro_steps + 1, 1 or images, 2]."""
        part = np.linspace(0, 1, self.time_steps * self.micro_steps + 1)[:, None]
        if self.trajectory == "circle":
            angle = 2 * np.pi * part
            return self.amplitude / 2 * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        corners = np.array([[0, 0], [1, 0.5], [0, 1], [0, 0]])
        right, down = (np.interp(part, np.linspace(0, 1, 4), axis - axis[:3].mean()) for axis in corners.T)
        if self.trajectory == "saccade":
            return self.amplitude * np.stack([down, right], axis=-1)
        angle = rng.uniform(0, 2 * np.pi, images)
        cos, sin = np.cos(angle), np.sin(angle)
        return self.amplitude * np.stack([cos * down - sin * right, sin * down + cos * right], axis=-1)


SACCADE = EventCamera()


def simulate_events(
    images: np.ndarray, rng: np.random.Generator | int, camera: EventCamera = SACCADE
) -> list[np.ndarray]:
    """One recording an image, events in order of time.

    Args:
        images: shape [n, height, width], uint8, or floating in [0, 1].
        rng: generator or seed.
        camera: path and pixels.

    Returns:
        n arrays of dtype `EVENT`; time runs from 0 to T * `camera.bin_duration`, exclusively.

    Raises:
        UserError: another shape, or intensities outside the range.
    """
    rng = np.random.default_rng(rng)
    return [events for chunk in _chunks(images) for events in _recordings(chunk, rng, camera)]


def simulate_frames(images: np.ndarray, rng: np.random.Generator | int, camera: EventCamera = SACCADE) -> np.ndarray:
    """The events of `simulate_events` of the same images and seed, counted by time bin.

    Args:
        images: shape [n, height, width], uint8, or floating in [0, 1].
        rng: generator or seed.
        camera: path and pixels.

    Returns:
        Counts, float32, shape [n, T, 2, height, width]; axis 2 is darker, brighter.

    Raises:
        UserError: another shape, or intensities outside the range.
    """
    rng = np.random.default_rng(rng)
    return np.concatenate([_counts(chunk, rng, camera) for chunk in _chunks(images)])


def posed_event_frames(
    images: np.ndarray, rng: np.random.Generator | int, *, time_steps: int = 5, size: int = 24, mirror: bool = True
) -> np.ndarray:
    """The miniature of snn-tet and snn-nda: each image in a random pose, recorded by the moving camera.

    Args:
        images: shape [n, height, width], uint8, such as Fashion-MNIST.
        rng: generator or seed.
        time_steps: T.
        size: height and width of the frames, pixels; the pose scales the images to it.
        mirror: mirror half of the images; not for digits and letters.

    Returns:
        Counts clipped at 3 and divided by 3, float32 in [0, 1], shape [n, T, 2, size, size].

    Raises:
        UserError: another shape, or intensities outside the range.
    """
    rng = np.random.default_rng(rng)
    posed = random_pose(images, rng, size=size, mirror=0.5 if mirror else 0.0)
    counts = simulate_frames(posed, rng, EventCamera(time_steps=time_steps))
    return np.minimum(counts, 3, out=counts) / np.float32(3)


def _chunks(images: np.ndarray) -> Iterator[np.ndarray]:
    """Images that are recorded together, at least one chunk: a bound on memory, and on how far it is to the cache."""
    images = intensities(images)
    return (images[start : start + CHUNK] for start in range(0, max(len(images), 1), CHUNK))


def _recordings(images: np.ndarray, rng: np.random.Generator, camera: EventCamera) -> list[np.ndarray]:
    n, height, width = images.shape
    pixel, polarity, time = _record(images, rng, camera)
    image, place = np.divmod(pixel, height * width)
    order = np.lexsort((time, image))
    events = np.empty(len(order), EVENT)
    events["t"], events["p"] = time[order], polarity[order]
    events["y"], events["x"] = np.divmod(place[order], width)
    return np.split(events, np.searchsorted(image[order], np.arange(1, n)))[:n]


def _counts(images: np.ndarray, rng: np.random.Generator, camera: EventCamera) -> np.ndarray:
    n, height, width = images.shape
    pixel, polarity, time = _record(images, rng, camera)
    image, place = np.divmod(pixel, height * width)
    cell = ((image * camera.time_steps + time // camera.bin_duration) * 2 + polarity) * (height * width) + place
    shape = (n, camera.time_steps, 2, height, width)
    return np.bincount(cell, minlength=math.prod(shape)).astype(np.float32).reshape(shape)


def _record(
    images: np.ndarray, rng: np.random.Generator, camera: EventCamera
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every event of every image: flat index into the images, polarity, and time in microseconds; in no order."""
    parts = [*_crossings(images, rng, camera), _noise(images.size, rng, camera)]
    pixel, polarity, time = (np.concatenate(column) for column in zip(*parts, strict=True))
    return pixel, polarity, time


def _crossings(
    images: np.ndarray, rng: np.random.Generator, camera: EventCamera
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The events that the light causes, micro-step by micro-step."""
    path = camera.path(len(images), rng)
    spread = 1 + camera.mismatch * rng.standard_normal(images.size, dtype=np.float32)
    theta = np.float32(camera.threshold) * np.maximum(spread, np.float32(0.1))  # a wide spread must not reach 0
    follow = camera.bandwidth and np.float32(1 - np.exp(-2 * np.pi * camera.bandwidth * camera.micro_step * 1e-6))
    level = _log_intensity(images, path[0])
    reference = level.copy()
    last = np.full(images.size, -camera.refractory)
    for step, displacement in enumerate(path[1:]):
        before, target = level, _log_intensity(images, displacement)
        level = target if follow is None else before + follow * (target - before)
        crossings = np.trunc((level - reference) / theta)
        fired = np.flatnonzero(crossings)
        count = np.abs(crossings[fired]).astype(np.intp)
        pixel = np.repeat(fired, count)
        rank = np.arange(len(pixel)) - np.repeat(np.cumsum(count) - count, count)
        sign = np.sign(crossings[pixel])
        # The light is linear between two pictures: where on the way is it `rank + 1` thresholds from the reference?
        crossed = reference[pixel] + sign * (rank + 1) * theta[pixel]
        change = level[pixel] - before[pixel]  # 0 where rounding alone fires a pixel at its threshold
        way = np.divide(crossed - before[pixel], change, out=np.zeros_like(crossed), where=change != 0)
        time = np.clip(way * camera.micro_step, 0, camera.micro_step - 1).astype(np.int64) + step * camera.micro_step
        reference += crossings * theta
        kept = _rested(pixel, rank, time, last, camera.refractory) if camera.refractory else slice(None)
        yield pixel[kept], (sign[kept] > 0).astype(np.int8), time[kept]


def _rested(pixel: np.ndarray, rank: np.ndarray, time: np.ndarray, last: np.ndarray, refractory: int) -> np.ndarray:
    """Which events find their pixel rested; `last`, the time of each pixel's last event, is brought up to date."""
    kept = np.zeros(len(pixel), bool)
    for turn in range(rank.max(initial=-1) + 1):
        event = np.flatnonzero(rank == turn)  # at most one of a pixel
        event = event[time[event] - last[pixel[event]] >= refractory]
        kept[event] = True
        last[pixel[event]] = time[event]
    return kept


def _noise(pixels: int, rng: np.random.Generator, camera: EventCamera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Events without a cause: their total is Poisson and each falls anywhere, so every bin's count is Poisson."""
    count = rng.poisson(camera.noise * camera.time_steps * 2 * pixels)
    duration = camera.time_steps * camera.bin_duration
    return (
        rng.integers(max(pixels, 1), size=count),
        rng.integers(2, size=count, dtype=np.int8),
        rng.integers(duration, size=count),
    )


def _log_intensity(images: np.ndarray, displacement: np.ndarray) -> np.ndarray:
    """log(dark + I) of the displaced images, flat.

    Args:
        images: shape [n, height, width].
        displacement: (down, right) in pixels, shape [1 or n, 2].
    """
    down, right = displacement.T
    moved = _shift_matrix(images.shape[1], down) @ images @ _shift_matrix(images.shape[2], right).swapaxes(1, 2)
    return np.log(np.float32(DARK) + moved).ravel()


def _shift_matrix(pixels: int, shift: np.ndarray) -> np.ndarray:
    """Bilinear translation of an axis as matrices, shape [len(shift), pixels, pixels]; zeros come in at the ends."""
    place = np.arange(pixels)
    distance = place[:, None] - place[None, :] - shift[:, None, None]
    return np.maximum(0, 1 - np.abs(distance)).astype(np.float32)
