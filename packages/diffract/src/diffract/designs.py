"""A whole design as settings: what a TOML file holds and a run is opened with."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from core_utils.settings import settings
from diffract.errors import ConfigError
from diffract.units import Length, metres

if TYPE_CHECKING:
    from diffract.diffusers import RandomDiffuser
    from diffract.geometries import Geometry, Misalignment
    from diffract.grids import Grid
    from diffract.networks import DiffractiveNetwork

PRESETS = ("luo2022", "mini")


@dataclass(frozen=True)
class GeometryConfig:
    """Table `geometry`; see `Geometry`."""

    object_to_diffuser: Length = "40 mm"
    diffuser_to_layer: Length = "2 mm"
    layer_spacing: Length = "2 mm"
    layer_to_output: Length = "7 mm"
    n_layers: int = 4


@dataclass(frozen=True)
class DiffuserConfig:
    """Table `diffuser`.

    Attributes:
        kind: "random" is stationary, "luo2022" the paper's literal recipe, "none" trains without diffusers.
        sigma: of the smoothing Gaussian; several share the diffusers of an epoch evenly. Or
        correlation_length: L of the phase.
        rms_phase: rad.
        delta_n: to turn phase into height.
        threshold: least distance between diffusers of one epoch, rad; 0 accepts all.
        distance: in which it is measured.
    """

    kind: Literal["random", "luo2022", "none"] = "luo2022"
    sigma: tuple[Length, ...] = ()
    correlation_length: tuple[Length, ...] = ()
    rms_phase: float | None = None
    delta_n: float = 0.74
    threshold: float = 1.0
    distance: Literal["physical", "paper_wrapped", "unwrapped"] = "physical"


@dataclass(frozen=True)
class TrainConfig:
    """Table `train`.

    Attributes:
        epochs: each has its own diffusers.
        n: diffusers of an epoch.
        batch_size: objects of a step, each through all n; or
        pairs: random pairs of object and diffuser of a step instead.
        steps_per_epoch: steps; by default the objects once through.
        learning_rate: of Adam.
        decay: factor on it after every epoch.
        alpha: weight of light beside the object.
        beta: weight of light on it.
        mask_threshold: amplitude above which a pixel belongs to the object.
        lateral: largest random shift of every layer in every step ("vaccination").
        axial: largest random displacement along the axis.
        chunk: pairs at a time; decides memory, and the gradient only by rounding. By default 1 on a CPU, 16 elsewhere.
        validate_every: epochs between looks at held-out objects behind new diffusers; 0 for none.

    Reference: Luo et al. 2022; the learning rate is quoted per iteration there, but its final value fits epochs.
    """

    epochs: int = 100
    n: int = 20
    batch_size: int = 4
    pairs: int | None = None
    steps_per_epoch: int | None = None
    learning_rate: float = 1e-3
    decay: float = 0.99
    alpha: float = 1.0
    beta: float = 0.5
    mask_threshold: float = 0.0
    lateral: Length = 0.0
    axial: Length = 0.0
    chunk: int | None = None
    validate_every: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "n", "batch_size", "pairs", "steps_per_epoch", "chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        for name in ("learning_rate", "decay"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")
        if self.validate_every < 0 or not 0 <= self.mask_threshold < 1:
            raise ConfigError("validate_every must not be negative and mask_threshold lie in [0, 1)")


@dataclass(frozen=True)
class ExportConfig:
    """Table `export`; see `Material` and `Relief`.

    Attributes:
        n: refractive index of the printed material.
        kappa: its extinction coefficient.
        base: thickness below the relief.
        step: height of a printer's layer; None for a continuous relief.
        levels: of a quantised relief; None for a continuous one.
        upsample: printed pixels a side of a design's pixel.
        mirror: print the mirror image.
        turns: quarter turns anticlockwise.
    """

    n: float = 1.72
    kappa: float = 0.03
    base: Length = "0.5 mm"
    step: Length | None = None
    levels: int | None = None
    upsample: int = 1
    mirror: bool = False
    turns: int = 0


@dataclass(frozen=True)
class Design:
    """Wavelength, sampling, planes, diffusers and training of a network; the defaults are the paper's.

    Attributes:
        wavelength: in vacuum.
        pitch: of every plane.
        shape: rows and columns.
        index: of the medium between the planes.
        object_side: pixels to which the longer side of an object is scaled; it is padded to the grid.
        method: of propagation.
        pad: of propagation, in grids.
        init: of the phases.
        seed: decides everything random.

    Raises:
        ConfigError: a setting out of range, or without a unit; names it.
    """

    wavelength: Length = "0.75 mm"
    pitch: Length = "0.3 mm"
    shape: tuple[int, int] = (240, 240)
    index: float = 1.0
    object_side: int = 160
    method: Literal["auto", "rs", "asm", "blas", "fresnel"] = "auto"
    pad: float = 2.0
    init: Literal["zeros", "uniform"] = "zeros"
    seed: int = 0
    geometry: GeometryConfig = field(default_factory=GeometryConfig)
    diffuser: DiffuserConfig = field(default_factory=DiffuserConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    export: ExportConfig = field(default_factory=ExportConfig)

    def __post_init__(self) -> None:
        grid = self.grid
        if not 1 <= self.object_side <= min(grid.shape):
            raise ConfigError(
                f"object_side must lie in 1..{min(grid.shape)}, the grid's pixels, got {self.object_side}"
            )
        for name in ("train.lateral", "train.axial"):
            metres(name, getattr(self.train, name.partition(".")[2]), grid.wavelength, zero=True)
        _ = self.planes
        diffuser = self.diffuser
        for name in ("sigma", "correlation_length"):
            for value in getattr(diffuser, name):
                metres(f"diffuser.{name}", value, grid.wavelength)
        if diffuser.kind == "random" and bool(diffuser.sigma) == bool(diffuser.correlation_length):
            raise ConfigError("diffuser takes either sigma or correlation_length")
        if diffuser.kind == "random" and diffuser.rms_phase is None:
            raise ConfigError("diffuser lacks rms_phase, in rad")
        if diffuser.rms_phase is not None and not diffuser.rms_phase > 0:
            raise ConfigError(f"diffuser.rms_phase must be positive, got {diffuser.rms_phase}")

    @classmethod
    def preset(cls, name: str) -> Design:
        """The paper's design, or its miniature."""
        return settings(cls, file=preset_file(name))

    def with_(self, **changes: object) -> Design:
        """The design with settings replaced; those of tables by `table__name`."""
        tables: dict[str, dict[str, object]] = {}
        plain: dict[str, object] = {}
        for key, value in changes.items():
            table, _, name = key.partition("__")
            if name:
                tables.setdefault(table, {})[name] = value
            else:
                plain[key] = value
        nested = {table: dataclasses.replace(getattr(self, table), **values) for table, values in tables.items()}
        return dataclasses.replace(self, **plain, **nested)  # type: ignore[arg-type]

    @property
    def grid(self) -> Grid:
        """Of every plane."""
        from diffract.grids import Grid

        wavelength = metres("wavelength", self.wavelength)
        return Grid(self.shape, metres("pitch", self.pitch, wavelength), wavelength, self.index)

    @property
    def planes(self) -> Geometry:
        """Where they stand."""
        from diffract.geometries import Geometry

        facts, wavelength = self.geometry, self.grid.wavelength
        names = ("object_to_diffuser", "diffuser_to_layer", "layer_spacing", "layer_to_output")
        distances = {name: metres(f"geometry.{name}", getattr(facts, name), wavelength) for name in names}
        return Geometry(**distances, n_layers=facts.n_layers)

    @property
    def vaccination(self) -> Misalignment:
        """Random displacements in training."""
        from diffract.geometries import Misalignment

        lateral, axial = (
            metres(f"train.{name}", getattr(self.train, name), self.grid.wavelength, zero=True)
            for name in ("lateral", "axial")
        )
        return Misalignment(lateral, axial)

    @property
    def screens(self) -> tuple[RandomDiffuser, ...]:
        """The diffusers of training, one of each correlation length; none where it has none."""
        from diffract.diffusers import RandomDiffuser

        grid, facts = self.grid, self.diffuser
        if facts.kind == "none":
            return ()
        name = "correlation_length" if facts.correlation_length else "sigma"
        lengths = [metres(f"diffuser.{name}", value, grid.wavelength) for value in getattr(facts, name)]
        strength = {"preset": "luo2022"} if facts.kind == "luo2022" else {"rms_phase": facts.rms_phase}
        common = {"delta_n": facts.delta_n, **strength}
        if not lengths:
            return (RandomDiffuser(grid, **common),)  # type: ignore[arg-type]
        return tuple(RandomDiffuser(grid, **{name: length}, **common) for length in lengths)  # type: ignore[arg-type]

    def network(self) -> DiffractiveNetwork:
        """The untrained network."""
        from flax import nnx

        from diffract.networks import DiffractiveNetwork
        from diffract.streams import Stream, stream

        rngs = nnx.Rngs(params=stream(self.seed, Stream.INIT))
        return DiffractiveNetwork(self.grid, self.planes, init=self.init, method=self.method, pad=self.pad, rngs=rngs)


def preset_file(name: str) -> Path:
    """The TOML file of a preset.

    Raises:
        ConfigError: another name.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return Path(str(resources.files("diffract").joinpath("presets", f"{name}.toml")))
