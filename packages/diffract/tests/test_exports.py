"""Files for making: closed meshes, heights that come back, masks, bitmaps."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from core_utils.data import DataError
from diffract import ConfigError, Grid
from diffract.exports import export_layers, load_height_map, load_slices
from diffract.meshes import mesh, read_stl, stl
from diffract.reliefs import Material, Relief, body_of, heights, phase_of, piece, transmittance

GRID = Grid((12, 15), 0.3e-3, 0.75e-3)
RESIN = Material(1.72, 0.03)
FULL = 0.75e-3 / 0.72
PHASES = np.random.default_rng(0).uniform(-7, 7, (2, 12, 15))


def edges(facets):
    """How often each edge is run along in each direction."""
    _, corners = np.unique(facets.reshape(-1, 3), axis=0, return_inverse=True)
    triangles = corners.reshape(-1, 3)
    runs = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    return {tuple(run): count for run, count in zip(*np.unique(runs, axis=0, return_counts=True), strict=True)}


@settings(max_examples=15)
@given(
    shape=st.tuples(st.integers(1, 7), st.integers(1, 7)), levels=st.integers(1, 4), seed=st.integers(0, 999),
    surface=st.sampled_from(["steps", "smooth"]), holes=st.booleans(),
)  # fmt: skip
def test_meshes_are_closed_and_hold_the_volume_of_their_columns(shape, levels, seed, surface, holes):
    rng = np.random.default_rng(seed)
    thickness = (rng.integers(0, levels + 1, shape) * 0.2 + 0.3) * 1e-3
    if holes and surface == "steps":
        thickness[rng.random(shape) < 0.2] = 0.0
    if not thickness.any():
        return
    facets = mesh(thickness, 0.3e-3, surface)
    counts = edges(facets)
    assert all(count == 1 and counts.get(run[::-1]) == 1 for run, count in counts.items())
    solid = trimesh.load(io.BytesIO(stl(facets)), file_type="stl")
    assert solid.is_watertight
    assert solid.is_winding_consistent
    if surface == "steps":
        assert solid.volume == pytest.approx(1e9 * thickness.sum() * 0.3e-3**2, rel=2e-3)


def test_a_mesh_has_the_size_of_the_layer_and_normals_outwards():
    thickness = heights(PHASES[0], GRID, RESIN) + 0.5e-3
    facets = read_stl(stl(mesh(thickness, GRID.pitch)))
    np.testing.assert_allclose(facets.min((0, 1)), 0, atol=1e-6)
    np.testing.assert_allclose(facets.max((0, 1)), [15 * 0.3, 12 * 0.3, 1e3 * thickness.max()], rtol=1e-6)
    top = facets[(facets[:, :, 2] == facets[:, :1, 2]).all(1) & (facets[:, 0, 2] > 0)]
    assert (np.cross(top[:, 1] - top[:, 0], top[:, 2] - top[:, 0])[:, 2] > 0).all()
    # The first row of an image is the upper one, the first column the left one.
    corner = top[(top[:, :, 0].max(1) <= 0.31) & (top[:, :, 1].min(1) >= 11 * 0.3 - 0.01)]
    np.testing.assert_allclose(corner[:, :, 2], 1e3 * thickness[0, 0], rtol=1e-6)
    with pytest.raises(ValueError, match="facets has"):
        read_stl(stl(facets)[:-7])


def test_phases_become_heights_and_come_back():
    height = heights(PHASES[0], GRID, RESIN)
    assert (height >= 0).all()
    assert (height < FULL).all()
    np.testing.assert_allclose(np.exp(1j * phase_of(height, GRID, RESIN)), np.exp(1j * PHASES[0]), atol=1e-12)
    quantised = heights(PHASES[0], GRID, RESIN, Relief(levels=8))
    assert set(np.rint(quantised / FULL * 8).astype(int).ravel()) <= set(range(8))
    error = np.angle(np.exp(1j * (phase_of(quantised, GRID, RESIN) - PHASES[0])))
    assert np.abs(error).max() <= np.pi / 8 + 1e-9
    light = transmittance(height, GRID, RESIN, base=0.5e-3)
    np.testing.assert_allclose(np.abs(light), np.exp(-2 * np.pi * 0.03 * (height + 0.5e-3) / 0.75e-3))


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("mirror", [False, True])
def test_pieces_are_mirrored_turned_upsampled_and_framed_and_back(turns, mirror):
    relief = Relief(base=0.4e-3, upsample=3, mirror=mirror, turns=turns, frame=0.9e-3, holes=0.6e-3)
    height = heights(PHASES[0], GRID, RESIN)
    made = piece(height, GRID, RESIN, relief)
    rows, columns = (15, 12) if turns % 2 else (12, 15)
    assert made.shape == (3 * rows + 18, 3 * columns + 18)
    assert made[0, 9] == pytest.approx(0.4e-3 + FULL)
    assert (made == 0).sum() > 4 * 20  # four holes of six pixels across
    np.testing.assert_allclose(body_of(made, GRID.pitch, relief), height, atol=1e-12)


@pytest.mark.parametrize(("form", "suffix"), [("png16", ".png"), ("tiff", ".tiff"), ("npy", ".npy"), ("csv", ".csv")])
def test_height_maps_come_back_as_the_phase_to_half_a_level(tmp_path, form, suffix):
    relief = Relief(upsample=2, turns=1, mirror=True, frame=0.6e-3)
    files = export_layers(PHASES, GRID, tmp_path, RESIN, [form], relief)
    assert [file.name for file in files] == [f"layer-1{suffix}", f"layer-2{suffix}"]
    half_a_count = np.pi / FULL * (0.5e-3 + FULL) / 65535
    for file, phase in zip(files, PHASES, strict=True):
        error = np.angle(np.exp(1j * (load_height_map(file) - phase)))
        assert np.abs(error).max() <= 1.01 * half_a_count + 1e-7
    facts = json.loads((tmp_path / "layer-1.json").read_text())
    assert facts["printed_pixel"] == pytest.approx(0.15e-3)
    assert facts["maximum"] <= 0.5e-3 + FULL + 1e-12


def test_slices_add_up_to_the_rounded_thickness(tmp_path):
    relief = Relief(base=0.3e-3, step=0.05e-3)
    (folder,) = export_layers(PHASES[:1], GRID, tmp_path, RESIN, ["slices"], relief)
    np.testing.assert_allclose(load_slices(folder), heights(PHASES[0], GRID, RESIN, relief) + 0.3e-3, atol=1e-9)


def test_light_modulators_get_the_phase_in_the_middle_of_their_panel(tmp_path):
    (file,) = export_layers(PHASES[:1], GRID, tmp_path, RESIN, ["slm"], Relief(upsample=4), panel=(100, 120))
    with Image.open(file) as picture:
        values = np.asarray(picture)
    assert values.shape == (100, 120)
    shown = values[26 : 26 + 48 : 4, 30 : 30 + 60 : 4]
    error = np.angle(np.exp(1j * (shown * (2 * np.pi / 256) - PHASES[0])))
    assert np.abs(error).max() <= np.pi / 256 + 1e-9
    assert values[:26].max() == 0
    with pytest.raises(ConfigError, match=r"\(48, 60\) pixels do not fit on a panel of \(40, 40\)"):
        export_layers(PHASES[:1], GRID, tmp_path, RESIN, ["slm"], Relief(upsample=4), panel=(40, 40))


def test_masks_hold_the_bits_of_the_levels(tmp_path):
    import gdstk

    (file,) = export_layers(PHASES[:1], GRID, tmp_path, RESIN, ["gds"], Relief(levels=8))
    (cell,) = gdstk.read_gds(file).cells
    levels = np.rint(heights(PHASES[0], GRID, RESIN, Relief(levels=8)) / FULL * 8).astype(int)
    for bit in range(3):
        area = sum(polygon.area() for polygon in cell.polygons if polygon.layer == bit)
        assert area == pytest.approx(((levels >> bit) & 1).sum() * 300.0**2)
        middles = [((column + 0.5) * 300.0, (11.5 - row) * 300.0) for row in range(12) for column in range(15)]
        inside = gdstk.inside(middles, [polygon for polygon in cell.polygons if polygon.layer == bit])
        np.testing.assert_array_equal(np.array(inside).reshape(12, 15), (levels >> bit) & 1 == 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Material(float("nan")), "n > 0 and k >= 0"),
        (lambda: heights(PHASES[0], GRID, Material(1.0)), "above the medium's 1.0, got 1.0"),
        (lambda: Relief(levels=1), "levels must be at least 2"),
        (lambda: Relief(base=-1e-3), "base must not be negative"),
        (lambda: Relief(step=0.0), "step must be positive"),
        (lambda: Relief(holes=1e-3), "need a frame"),
        (lambda: heights(PHASES[0], GRID, RESIN, Relief(step=2e-3)), "higher than a full wave"),
        (lambda: export_layers(PHASES, GRID, Path(), RESIN, ["obj"]), "format must be one of stl, png16"),
    ],
)
def test_what_cannot_be_made_is_refused(make, message):
    with pytest.raises(Exception, match=message):
        make()


def test_what_needs_more_says_so(tmp_path):
    for form, relief, message in (
        ("slices", Relief(), "need the height of a printer's layer"),
        ("gds", Relief(levels=6), "power of 2, got 6"),
        ("stl", Relief(base=0.0), "base must be positive for a mesh"),
    ):
        phases = np.zeros((1, 12, 15))
        with pytest.raises(ConfigError, match=message):
            export_layers(phases, GRID, tmp_path, RESIN, [form], relief)
    assert not list(tmp_path.iterdir())


def test_damaged_height_maps_are_named(tmp_path):
    (file,) = export_layers(PHASES[:1], GRID, tmp_path, RESIN, ["png16"])
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"layer-1\.png is damaged"):
        load_height_map(file)
    file.with_suffix(".json").unlink()
    with pytest.raises(DataError, match=r"layer-1\.json, which describes layer-1\.png"):
        load_height_map(file)
