"""Layers and diffusers as files for printers, lithography and light modulators, and back."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from core_utils.data import LARGEST_IMAGE, DataError
from core_utils.files import write_atomically
from core_utils.jsonable import dumps
from diffract.errors import ConfigError
from diffract.grids import Grid
from diffract.meshes import mesh, stl
from diffract.reliefs import Material, Relief, body_of, heights, phase_of, piece

Format = Literal["stl", "png16", "tiff", "npy", "csv", "slices", "gds", "slm"]
FORMATS: tuple[Format, ...] = ("stl", "png16", "tiff", "npy", "csv", "slices", "gds", "slm")
VERSION = 1
COUNTS = 65535
SLM_PANEL = (1080, 1920)
"""Rows and columns of the usual light modulator."""


@dataclass(frozen=True, eq=False)
class Piece:
    """One layer on its way to a file.

    Attributes:
        phase: of the design, rad.
        grid: of the design.
        material: of the piece.
        relief: how phase becomes thickness.
        panel: rows and columns of a light modulator.
        surface: of meshes.
    """

    phase: Float[np.ndarray, "H W"]
    grid: Grid
    material: Material
    relief: Relief
    panel: tuple[int, int] = SLM_PANEL
    surface: Literal["steps", "smooth"] = "steps"

    @property
    def height(self) -> Float[np.ndarray, "H W"]:
        """Above the base, on the design's grid, m."""
        return heights(self.phase, self.grid, self.material, self.relief)

    @property
    def thickness(self) -> Float[np.ndarray, "H W"]:
        """As printed, m."""
        return piece(self.height, self.grid, self.material, self.relief)

    @property
    def pixel(self) -> float:
        """As printed, m."""
        return self.grid.pitch / self.relief.upsample


def export_layers(
    phases: Float[np.ndarray, "M H W"],
    grid: Grid,
    out: Path,
    material: Material,
    formats: Sequence[str],
    relief: Relief | None = None,
    *,
    name: str = "layer",
    panel: tuple[int, int] = SLM_PANEL,
    surface: Literal["steps", "smooth"] = "steps",
) -> list[Path]:
    """Writes every layer in every format.

    Args:
        phases: of a network's layers, or of diffusers, rad.
        grid: of the layers.
        out: folder; files are `layer-1.stl` and so on, in order of the light.
        material: of the pieces.
        formats: `stl`, `png16` and `tiff` (16-bit height maps with a JSON file beside them), `npy`, `csv` (heights, m, with
            the same JSON file), `slices` (a bitmap a printer's layer), `gds` (a mask a bit; needs gdstk), `slm` (8 bits).
        relief: how phase becomes thickness.
        name: of the files.
        panel: rows and columns of the light modulator.
        surface: of meshes.

    Returns:
        The files, without those inside the folders of slices.

    Raises:
        ConfigError: an unknown format, or a material, step or panel that does not fit.
    """
    for form in formats:
        if form not in FORMATS:
            raise ConfigError(f"format must be one of {', '.join(FORMATS)}, got {form!r}")
    pieces = [
        Piece(np.asarray(phase, np.float64), grid, material, relief or Relief(), panel, surface) for phase in phases
    ]
    return [
        _WRITERS[form](each, out / f"{name}-{number}")
        for number, each in enumerate(pieces, start=1)
        for form in formats
    ]


def load_height_map(path: Path) -> Float[np.ndarray, "H W"]:
    """The phase of an exported layer on the design's grid, rad, from a .png, .tiff, .npy or .csv and its .json.

    Mirroring, turns, upsampling, rim and base are undone.

    Raises:
        DataError: a file that is missing, damaged or of another format; names it.
    """
    facts = _sidecar(path)
    try:
        if path.suffix == ".npy":
            thickness = np.load(path, allow_pickle=False)
        elif path.suffix == ".csv":
            thickness = np.loadtxt(path, delimiter=",", ndmin=2)
        else:
            thickness = _counts(path) * facts["z_scale"]
    except (OSError, EOFError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} is damaged or no height map: {error}") from None
    if list(thickness.shape) != facts["printed_shape"]:
        raise DataError(f"{path} has {thickness.shape} pixels, its JSON file says {tuple(facts['printed_shape'])}")
    grid = Grid((1, 1), facts["pitch"], facts["wavelength"], facts["medium_index"])
    height = body_of(thickness, facts["pitch"], Relief(**facts["relief"]))
    return phase_of(height, grid, Material(**facts["material"]))


def load_slices(folder: Path) -> Float[np.ndarray, "H W"]:
    """The thickness that a stack of slices adds up to, as printed, m."""
    from PIL import Image

    facts = _sidecar(folder)
    total = np.zeros(facts["printed_shape"])
    for number in range(facts["slices"]):
        with Image.open(folder / f"{number:04}.png") as picture:
            total += np.asarray(picture, bool)
    return total * facts["slice_height"]


def _sidecar(path: Path) -> dict[str, Any]:
    file = path.with_name(path.name.removesuffix(path.suffix) + ".json") if path.suffix else path / "slices.json"
    try:
        facts = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{file}, which describes {path.name}, cannot be read: {error}") from None
    if not isinstance(facts, dict) or facts.get("version") != VERSION:
        raise DataError(f"{file} is no description of a height map of version {VERSION}")
    return facts


def _counts(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as picture:
        if picture.width * picture.height > LARGEST_IMAGE:
            raise DataError(f"{path} has more than {LARGEST_IMAGE} pixels")
        return np.asarray(picture, np.float64)


def _description(each: Piece, thickness: np.ndarray, **more: Any) -> str:
    """What a height map needs to be understood, as JSON."""
    facts: Mapping[str, Any] = {
        "version": VERSION,
        "unit": "m",
        "wavelength": each.grid.wavelength,
        "medium_index": each.grid.index,
        "material": asdict(each.material),
        "pitch": each.grid.pitch,
        "printed_pixel": each.pixel,
        "printed_shape": thickness.shape,
        "minimum": float(thickness.min()),
        "maximum": float(thickness.max()),
        "z_scale": _scale(each),
        "relief": asdict(each.relief),
        **more,
    }
    return dumps(facts, indent=2) + "\n"


def _scale(each: Piece) -> float:
    """Metres a count: the thickest possible piece is the largest count."""
    return (each.relief.base + each.material.full_wave(each.grid)) / COUNTS


def _stl(each: Piece, stem: Path) -> Path:
    thickness = each.thickness
    if each.surface == "smooth" and each.relief.holes:
        raise ConfigError("holes need surface steps")
    if thickness.min() <= 0 and each.relief.base <= 0:
        raise ConfigError(
            f"base must be positive for a mesh, got {each.relief.base}", "a piece of thickness 0 has holes"
        )
    return _written(stem.with_name(f"{stem.name}.stl"), stl(mesh(thickness, each.pixel, each.surface), stem.name))


def _image(suffix: str, kind: str) -> Callable[[Piece, Path], Path]:
    def write(each: Piece, stem: Path) -> Path:
        thickness = each.thickness
        counts = np.rint(thickness / _scale(each)).astype(np.uint16)
        _written(stem.with_name(f"{stem.name}.json"), _description(each, thickness))
        return _written(stem.with_name(f"{stem.name}{suffix}"), _encoded(counts, kind))

    return write


def _npy(each: Piece, stem: Path) -> Path:
    content, thickness = io.BytesIO(), each.thickness
    np.save(content, thickness)
    _written(stem.with_name(f"{stem.name}.json"), _description(each, thickness))
    return _written(stem.with_name(f"{stem.name}.npy"), content.getvalue())


def _csv(each: Piece, stem: Path) -> Path:
    content, thickness = io.StringIO(), each.thickness
    np.savetxt(content, thickness, delimiter=",", fmt="%.9e")
    _written(stem.with_name(f"{stem.name}.json"), _description(each, thickness))
    return _written(stem.with_name(f"{stem.name}.csv"), content.getvalue())


def _slices(each: Piece, stem: Path) -> Path:
    step = each.relief.step
    if step is None:
        raise ConfigError("slices need the height of a printer's layer", "give --step, such as '27 um'")
    thickness, folder = each.thickness, stem.with_name(f"{stem.name}-slices")
    count = round(float(thickness.max()) / step)
    for number in range(count):
        bitmap = (thickness > (number + 0.5) * step).astype(np.uint8) * 255
        _written(folder / f"{number:04}.png", _encoded(bitmap, "PNG"))
    return _written(folder / "slices.json", _description(each, thickness, slices=count, slice_height=step)).parent


def _slm(each: Piece, stem: Path) -> Path:
    """0..2 pi as 0..255 in the middle of the panel; the rest is 0."""
    values = np.mod(np.rint(np.mod(each.phase, 2 * np.pi) * (256 / (2 * np.pi))), 256).astype(np.uint8)
    values = np.kron(values, np.ones((each.relief.upsample, each.relief.upsample), np.uint8))
    values = np.rot90(values[:, ::-1] if each.relief.mirror else values, each.relief.turns)
    room = [wide - side for wide, side in zip(each.panel, values.shape, strict=True)]
    if min(room) < 0:
        raise ConfigError(f"{values.shape} pixels do not fit on a panel of {each.panel}", "lower --upsample")
    widths = [(free // 2, free - free // 2) for free in room]
    return _written(stem.with_name(f"{stem.name}-slm.png"), _encoded(np.pad(values, widths), "PNG"))


def _gds(each: Piece, stem: Path) -> Path:
    """One mask a bit of the level's number, each on a layer of its own; pixels of a row are joined."""
    try:
        import gdstk
    except ImportError:
        raise ConfigError("GDSII needs gdstk", "install diffract[gds]") from None
    levels = each.relief.levels
    if levels is None or levels & (levels - 1):
        raise ConfigError(f"GDSII masks need levels of a power of 2, got {levels}", "give --levels 8, for three masks")
    number = np.rint(each.height / each.material.full_wave(each.grid) * levels).astype(int) % levels
    number = np.rot90(number[:, ::-1] if each.relief.mirror else number, each.relief.turns)
    size = each.grid.pitch * 1e6
    library = gdstk.Library(unit=1e-6, precision=1e-9)
    cell = library.new_cell(stem.name)
    for bit in range(levels.bit_length() - 1):
        filled = np.pad((number >> bit) & 1, ((0, 0), (1, 1)))
        edges = np.diff(filled, axis=1)
        for (row, start), (_, stop) in zip(np.argwhere(edges == 1), np.argwhere(edges == -1), strict=True):
            bottom = (number.shape[0] - 1 - row) * size
            cell.add(gdstk.rectangle((start * size, bottom), (stop * size, bottom + size), layer=bit))
    file = stem.with_name(f"{stem.name}.gds")
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.tmp")
    library.write_gds(unfinished)
    unfinished.replace(file)
    return file


def _encoded(pixels: np.ndarray, kind: str) -> bytes:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def _written(file: Path, content: bytes | str) -> Path:
    write_atomically(file, content)
    return file


_WRITERS: Mapping[str, Callable[[Piece, Path], Path]] = {
    "stl": _stl,
    "png16": _image(".png", "PNG"),
    "tiff": _image(".tiff", "TIFF"),
    "npy": _npy,
    "csv": _csv,
    "slices": _slices,
    "gds": _gds,
    "slm": _slm,
}
