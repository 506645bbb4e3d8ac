"""Pieces as closed triangle meshes in binary STL, in mm."""

from __future__ import annotations

import itertools
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float, Int

PINCH = 1e-3
"""Pixels by which columns that touch along an edge part."""
Triangles: TypeAlias = Float[np.ndarray, "n 3 3"]
_RECORD = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


def mesh(
    thickness: Float[np.ndarray, "H W"], pixel: float | int, surface: Literal["steps", "smooth"] = "steps"
) -> Triangles:
    """A closed surface around a piece, mm, normals outwards; x to the right, y down the rows turned upwards.

    Args:
        thickness: m; pixels of 0 are holes (in "steps").
        pixel: m.
        surface: "steps" is one column a pixel: its volume is the sum of the columns' to 1e-4. Vertical edges are cut wherever one
            of the four columns around them ends, so that no facet's corner lies within another's edge. "smooth" joins the
            means of four pixels by triangles. Every edge belongs to two facets, which run along it in opposite ways.

    Returns:
        Corners of the facets, float32.
    """
    top = np.ascontiguousarray(thickness[::-1] * 1e3, np.float32)  # row 0 is at the top of an image
    side = pixel * 1e3
    facets = _steps(top, side) if surface == "steps" else _smooth(top, side)
    return facets.astype(np.float32)


def stl(facets: Triangles, name: str = "diffract") -> bytes:
    """Binary STL; normals follow from the corners."""
    normals = np.cross(facets[:, 1] - facets[:, 0], facets[:, 2] - facets[:, 0]).astype(np.float64)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    records = np.zeros(len(facets), _RECORD)
    records["normal"] = normals / np.where(length > 0, length, 1)
    records["corners"] = facets
    header = f"{name}, mm".encode()[:80].ljust(80, b" ")
    return header + np.uint32(len(facets)).tobytes() + records.tobytes()


def read_stl(content: bytes) -> Triangles:
    """Corners of the facets of a binary STL file, float32.

    Raises:
        ValueError: the length does not fit the number of facets.
    """
    count = int(np.frombuffer(content, "<u4", 1, 80)[0]) if len(content) >= 84 else -1
    if len(content) != 84 + count * _RECORD.itemsize:
        raise ValueError(f"an STL file of {count} facets has {84 + count * _RECORD.itemsize} bytes, got {len(content)}")
    return np.frombuffer(content, _RECORD, offset=84)["corners"].copy()


def _steps(top: np.ndarray, side: float | int) -> np.ndarray:
    H, W = top.shape
    rows, columns = np.nonzero(top > 0)
    corners = [(rows, columns), (rows, columns + 1), (rows + 1, columns + 1), (rows + 1, columns)]
    flat = np.zeros_like(rows, np.float32)
    upper = [_points(y, x, top[rows, columns], side) for y, x in corners]
    lower = [_points(y, x, flat, side) for y, x in corners]
    around = np.pad(top, 1)  # outside of the piece the thickness is 0
    cuts, pinches = _cuts(around)
    y, x = np.mgrid[: H + 1, :W]  # walls between a row and the next
    along_rows = _walls(around[:-1, 1:-1], around[1:, 1:-1], ((y, x), (y, x + 1)), (cuts, pinches), side)
    y, x = np.mgrid[:H, : W + 1]  # walls between a column and the next
    along_columns = _walls(around[1:-1, 1:], around[1:-1, :-1], ((y, x), (y + 1, x)), (cuts, pinches), side)
    return np.concatenate([_quads(*upper), _quads(*lower[::-1]), *along_rows, *along_columns])


def _cuts(around: np.ndarray) -> tuple[Float[np.ndarray, "h w 5"], Float[np.ndarray, "h w"]]:
    """Where the vertical edge at every lattice point is cut, ascending, and where two columns that touch there part.

    Two columns that stand diagonally and higher than the other two share a piece of this edge. Half way up it each gets a
    point of its own, a thousandth of a pixel inside, so that four facets do not meet in one edge.
    """
    a, b, c, d = around[:-1, :-1], around[:-1, 1:], around[1:, :-1], around[1:, 1:]
    rising, falling = (np.minimum(a, d), np.maximum(b, c)), (np.minimum(b, c), np.maximum(a, d))
    pinch = np.full_like(a, np.inf)
    for high, low in (rising, falling):
        pinch = np.where(high > low, (high + low) / 2, pinch)
    return np.sort(np.stack([a, b, c, d, pinch], -1), -1), pinch


def _walls(
    before: np.ndarray,
    behind: np.ndarray,
    ends: tuple[Any, Any],
    cuts: tuple[np.ndarray, np.ndarray],
    side: float | int,
) -> list[np.ndarray]:
    """Walls from lattice points to lattice points, each between the heights of the columns on its two sides."""
    low, high = np.minimum(before, behind), np.maximum(before, behind)
    standing = high > low
    low, high, flipped = low[standing], high[standing], (before > behind)[standing]
    left, right = (np.stack([axis[standing] for axis in point], -1) for point in ends)
    along = right - left
    across = np.where(flipped, -1, 1)[:, None] * (along[:, ::-1] * np.array([1, -1]))  # towards the higher column
    chains = []
    for points, inwards in ((left, along + across), (right, across - along)):
        place = tuple(points.T)
        heights = _chain(cuts[0][place], low, high)
        shift = np.where((heights == cuts[1][place][:, None])[..., None], PINCH * inwards[:, None], 0.0)
        x, y = (side * (points[:, None, axis] + shift[..., axis]) for axis in (1, 0))
        chains.append(np.stack([x, y, heights], -1).astype(np.float32))
    counts = [(~np.isnan(chain[..., 2])).sum(1) for chain in chains]
    parts = []
    for numbers in itertools.product(range(2, 6), repeat=2):
        chosen = (counts[0] == numbers[0]) & (counts[1] == numbers[1])
        if chosen.any():
            strips = [[chain[chosen, i] for i in range(n)] for chain, n in zip(chains, numbers, strict=True)]
            parts.append(_between(strips[0], strips[1], flipped[chosen]))
    return parts


def _chain(cuts: np.ndarray, low: np.ndarray, high: np.ndarray) -> Float[np.ndarray, "n 5"]:
    """The heights from low to high at which an edge is cut, ascending, then NaN."""
    inside = (cuts > low[:, None]) & (cuts < high[:, None])
    inside[:, 1:] &= cuts[:, 1:] != cuts[:, :-1]
    values = np.sort(np.where(inside, cuts, np.inf), 1)
    count = inside.sum(1)
    chain = np.full((len(low), 5), np.nan, np.float32)
    chain[:, 0] = low
    for i in range(3):  # two of the four columns, and where two part
        chain[:, i + 1] = np.where(count > i, values[:, i], np.nan)
    chain[np.arange(len(low)), count + 1] = high
    return chain


def _between(left: list[Any], right: list[Any], flipped: np.ndarray) -> np.ndarray:
    """Triangles between two vertical chains with the same lower and upper ends."""
    facets, i, j = [], 0, 0
    while i < len(left) - 1 or j < len(right) - 1:
        if j == len(right) - 1 or (i < len(left) - 1 and i <= j):
            facets.append((left[i], right[j], left[i + 1]))
            i += 1
        else:
            facets.append((left[i], right[j], right[j + 1]))
            j += 1
    stacked = np.stack([np.stack(facet, 1) for facet in facets], 1)
    stacked[flipped] = stacked[flipped][:, :, ::-1]
    return stacked.reshape(-1, 3, 3)


def _smooth(top: np.ndarray, side: float | int) -> np.ndarray:
    H, W = top.shape
    edged = np.pad(top, 1, mode="edge")
    corner = (edged[:-1, :-1] + edged[:-1, 1:] + edged[1:, :-1] + edged[1:, 1:]) / 4
    y, x = np.mgrid[:H, :W]
    cells = [(y, x), (y, x + 1), (y + 1, x + 1), (y + 1, x)]
    upper = [_points(a.ravel(), b.ravel(), corner[a, b].ravel(), side) for a, b in cells]
    lower = [_points(a.ravel(), b.ravel(), np.zeros(a.size, np.float32), side) for a, b in cells]
    parts = [_quads(*upper), _quads(*lower[::-1])]
    rim = [(0, i) for i in range(W)] + [(i, W) for i in range(H)] + [(H, i) for i in range(W, 0, -1)]
    rim += [(i, 0) for i in range(H, 0, -1)]
    points = np.array([*rim, rim[0]])
    high = _points(points[:, 0], points[:, 1], corner[points[:, 0], points[:, 1]], side)
    low = _points(points[:, 0], points[:, 1], np.zeros(len(points), np.float32), side)
    parts.append(_quads(low[:-1], low[1:], high[1:], high[:-1]))
    return np.concatenate(parts)


def _points(
    row: Int[np.ndarray, " n"], column: Int[np.ndarray, " n"], height: Float[np.ndarray, " n"], side: float | int
) -> Float[np.ndarray, "n 3"]:
    return np.stack([column * side, row * side, height], -1).astype(np.float32)


def _quads(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Two triangles of every quadrilateral, anticlockwise as seen from outside."""
    return np.stack([np.stack([a, b, c], 1), np.stack([a, c, d], 1)], 1).reshape(-1, 3, 3)
