"""Rules that name a defect from two stacks of tensors of the same images: what happened, in which stage, by what evidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from imagenet_s.alignment import Detail, along_axes, detail, resampled, shift, turn, turns, zoom
from imagenet_s.normalisations import Normalisation, explain, known_normalisations
from imagenet_s.pipelines import Pipeline

_TURNS = {
    2: "mirrored left to right",
    3: "turned by 180 degrees",
    4: "mirrored top to bottom",
    5: "transposed",
    6: "turned by 90 degrees clockwise",
    7: "transposed over the other diagonal",
    8: "turned by 90 degrees counter-clockwise",
}
_ALIASED = 0.12
"""Fine energy that does not follow the other's, in units of the other's: Pillow's antialiased filters but box stay
below 0.09 of each other on photographs, OpenCV's linear is at 0.2 or more when it halves, cubic and nearest above 0.5."""

_ARITHMETIC = 0.01
"""Levels, root mean square: what scale and offset leave of another formula is rounding, of another decoder a tenth."""


@dataclass(frozen=True)
class Finding:
    """A defect, or a harmless difference, that the second stack shows against the first.

    Attributes:
        kind: a few words, the same for the same defect.
        stage: of the pipeline, where it happens.
        evidence: the figures that it rests on.
        expected: True for what two correct libraries do differently, False for what looks like a bug.
    """

    kind: str
    stage: str
    evidence: str
    expected: bool = False

    def __str__(self) -> str:
        note = "expected between correct libraries" if self.expected else "looks like a bug"
        return f"{self.stage}: {self.kind} ({note}): {self.evidence}"


def findings(
    a: Float[np.ndarray, "n S S 3"],
    b: Float[np.ndarray, "n S S 3"],
    pipeline: Pipeline,
    shapes: Sequence[tuple[int, int]],
    tags: Sequence[int] = (),
) -> list[Finding]:
    """Compares what two pipelines make of the same images.

    Args:
        a: tensors of `pipeline`, channels last.
        b: tensors of the other, channels last.
        pipeline: how `a` was made; `b` is read as if it were normalised alike.
        shapes: (height, width) of each source image in the orientation of `a`.
        tags: EXIF orientation of each source, if known.

    Returns:
        What was found, the coarsest first; nothing when the two are equal.
    """
    if np.array_equal(a, b):
        return []
    found = _precision(a, b)
    first, second = _levels(a, pipeline), _levels(b, pipeline)
    turned, first, upright = _turned(first, second, pipeline, tags)
    stretched, first, inside = _zoomed(first, second, shapes)
    swapped, order = _swapped(first, second, inside)
    second_as_first = second[..., ::-1] if order == "bgr" else second
    scaled, slope, offset = _scaled(first, second, inside, order, pipeline)
    found += turned + stretched + swapped + scaled
    aligned = (second_as_first - offset) / slope
    if not stretched:  # resampling the first stack smooths it, and misses the true factor by up to a hundredth
        if any(upright):  # the crop of a turned picture may be rounded to the other side, which is no shift
            found += _shifted(first[upright].mean(axis=-1), aligned[upright].mean(axis=-1))
        found += _filtered(detail(first.mean(axis=-1), aligned.mean(axis=-1)))
    return found + _colours(first, aligned, found)


def _levels(tensors: Float[np.ndarray, "n S S 3"], pipeline: Pipeline) -> Float64[np.ndarray, "n S S 3"]:
    """Tensors as 0..255 if they are normalised as `pipeline` does."""
    return (tensors.astype(np.float64) * pipeline.std + pipeline.mean) / pipeline.scale


def _precision(a: Float[np.ndarray, "n S S 3"], b: Float[np.ndarray, "n S S 3"]) -> list[Finding]:
    """Values that a narrower type holds exactly, where the others are no such values."""
    for kind, rounded in (("float16", _to_float16), ("bfloat16", _to_bfloat16)):
        alike = [
            bool((rounded(each) == each).all())
            for each in (a.astype(np.float32, order="C"), b.astype(np.float32, order="C"))
        ]
        if alike[0] != alike[1]:
            which = "b" if alike[1] else "a"
            evidence = f"every value of {which} is a {kind} number, and of the other not"
            return [Finding(f"{kind} precision", "precision", evidence, expected=True)]
    return []


def _to_float16(values: Float[np.ndarray, ...]) -> Float[np.ndarray, ...]:
    with np.errstate(over="ignore"):  # what is too large for it is not such a number
        return values.astype(np.float16).astype(np.float32)


def _to_bfloat16(values: Float[np.ndarray, ...]) -> Float[np.ndarray, ...]:
    """Cut, not rounded: the values that stay are the same."""
    return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)


def _turned(
    first: Float64[np.ndarray, "n S S 3"],
    second: Float64[np.ndarray, "n S S 3"],
    pipeline: Pipeline,
    tags: Sequence[int],
) -> tuple[list[Finding], Float64[np.ndarray, "n S S 3"], list[bool]]:
    """Findings, the first stack turned as the second is, and which images needed no turn."""
    best = [k for k, _ in turns(first.mean(axis=-1), second.mean(axis=-1))]
    if all(k == 1 for k in best):
        return [], first, [True] * len(best)
    first = np.stack([turn(image, k) for image, k in zip(first, best, strict=True)])
    counts = Counter(k for k in best if k != 1)
    what = ", ".join(f"{count} of {len(best)} are {_TURNS[k]}" for k, count in counts.most_common())
    if tags:
        asked = [tag if pipeline.orientation == "ignore" else turn_back(tag) for tag in tags]
        told = sum(tag == k for tag, k in zip(asked, best, strict=True) if k != 1)
        who = (
            "b applies the EXIF orientation, a does not" if pipeline.orientation == "ignore" else "a applies it, b not"
        )
        what += f"; {told} of these as their EXIF tag asks: {who}" if told else "; not as their EXIF tags ask"
    return [Finding("rotation", "orientation", what)], first, [k == 1 for k in best]


def turn_back(orientation: int) -> int:
    """The orientation that undoes another; all but the two quarter turns undo themselves."""
    return {6: 8, 8: 6}.get(orientation, orientation)


def _zoomed(
    first: Float64[np.ndarray, "n S S 3"], second: Float64[np.ndarray, "n S S 3"], shapes: Sequence[tuple[int, int]]
) -> tuple[list[Finding], Float64[np.ndarray, "n S S 3"], np.ndarray]:
    """Findings, the first stack as the second shows it, and where all of it is known."""
    best = zoom(first.mean(axis=-1), second.mean(axis=-1), shapes)
    whole = np.ones(first.shape[1:3], bool)
    if best.kind == "none":
        return [], first, whole
    moved = []
    for image, shape in zip(first, shapes, strict=True):
        # the factors were found for the mean aspect ratio; each image has its own
        power = np.log(max(shape) / min(shape)) / np.log(best.aspect) if best.kind == "stretch" else 1.0
        long, short = _of_image(best.long, best.short, float(power), best.kind)
        image, inside = resampled(image, *along_axes(shape, long, short))
        whole &= inside
        moved.append(image)
    evidence = f"correlation {best.before:.3f} as they are, {best.after:.3f}"
    if best.kind == "zoom":
        what = f"{evidence} when a is enlarged {best.long:.2f} times: another resize size before the crop"
        return [Finding("zoom", "resize", what)], np.stack(moved), whole
    ratio = best.long / best.short
    what = (
        f"{evidence} when a's longer side is stretched {ratio:.2f} times against the shorter, {best.aspect:.2f} being "
    )
    what += "the mean aspect ratio: " + (
        "a squashes, b keeps the ratio" if ratio > 1 else "a keeps the ratio, b squashes"
    )
    return [Finding("aspect ratio", "resize", what)], np.stack(moved), whole


def _of_image(long: float, short: float, power: float, kind: str) -> tuple[float, float]:
    """Of the two factors, the one that is far from a zoom of both belongs to the aspect ratio."""
    if kind == "zoom":
        return long, short
    ratio = (long / short) ** power
    return (short * ratio, short) if abs(np.log(short)) <= abs(np.log(long)) else (long, long / ratio)


def _swapped(
    first: Float64[np.ndarray, "n S S 3"], second: Float64[np.ndarray, "n S S 3"], inside: np.ndarray
) -> tuple[list[Finding], str]:
    """Red for blue, if that leaves less than half of what a scale and offset a channel cannot explain."""
    left = {}
    for order, each in (("rgb", second), ("bgr", second[..., ::-1])):
        slope, offset = _fit(first, each, inside)
        rest = _small(each, inside) - slope * _small(first, inside) - offset
        left[order] = float((rest**2).mean() / max(_small(each, inside).var(axis=(0, 1)).mean(), 1e-12))
    if left["bgr"] >= 0.5 * left["rgb"]:
        return [], "rgb"
    evidence = f"read as BGR, b differs from a by {left['bgr']:.2g} of its variance, read as RGB by {left['rgb']:.2g}"
    return [Finding("channel swap", "normalise", evidence)], "bgr"


def _scaled(
    first: Float64[np.ndarray, "n S S 3"],
    second: Float64[np.ndarray, "n S S 3"],
    inside: np.ndarray,
    order: str,
    pipeline: Pipeline,
) -> tuple[list[Finding], Float64[np.ndarray, 3], Float64[np.ndarray, 3]]:
    """Findings, slope and offset of b's levels over a's, by least squares, in the order of a's channels."""
    turned = slice(None, None, -1) if order == "bgr" else slice(None)
    slope, offset = _fit(first, second[..., turned], inside)
    small, other = _small(first, inside), _small(second[..., turned], inside)
    before, after = ((other - small) ** 2).mean(), ((other - slope * small - offset) ** 2).mean()
    plain = np.abs(slope - 1).max() < 0.01 and np.abs(offset).max() < 1
    if plain or after >= 0.5 * before:
        return [], np.ones(3), np.zeros(3)
    figures = f"slope {_triple(slope)}, offset {_triple(offset)} levels"
    for kind, factor, shift_by in (("limited range", 219 / 255, 16.0), ("expanded range", 255 / 219, -16 * 255 / 219)):
        if np.abs(slope / factor - 1).max() < 0.015 and np.abs(offset - shift_by).max() < 2:
            what = (
                "b holds 16 to 235 where a holds 0 to 255" if factor < 1 else "a holds 16 to 235 where b holds 0 to 255"
            )
            return [Finding(kind, "colour", f"{figures}: {what}")], slope, offset
    own = Normalisation(pipeline.scale, pipeline.mean, pipeline.std)
    # b at the place of a's channel c was read with the mean and std of its own place
    mean, std = np.array(pipeline.mean)[turned], np.array(pipeline.std)[turned]
    gain, bias = slope * pipeline.scale / std, (offset * pipeline.scale - mean) / std
    if order == "bgr" and own.explains(gain, bias):  # normalised first and swapped then: but a swap
        return [], slope, offset
    if own.explains(gain, bias) and after > _ARITHMETIC**2:  # no formula, but a picture that is a little brighter
        what = f"{figures}: a fast inverse DCT rounds so"
        return [Finding("level offset", "decode", what, expected=True)], slope, offset
    kind, text = explain(gain, bias, known_normalisations(own))
    return [Finding(kind, "normalise", f"{figures}: {text}")], slope, offset


def _shifted(first: Float64[np.ndarray, "n S S"], second: Float64[np.ndarray, "n S S"]) -> list[Finding]:
    moved = shift(first, second)
    if moved.length < 0.1 or moved.agreement < 0.97:
        return []
    evidence = f"b shows a's content {moved.down:+.2f} pixels down and {moved.right:+.2f} right (phase correlation)"
    whole = max(abs(moved.down - round(moved.down)), abs(moved.right - round(moved.right))) < 0.05
    if whole:
        return [Finding("shift", "crop", f"{evidence}: another offset of the crop")]
    return [Finding("half-pixel shift", "resize", f"{evidence}: pixel centres are placed differently")]


def _filtered(fine: Detail) -> list[Finding]:
    """How the two filters differ."""
    ratio, incoherent = fine.ratio, 1 - fine.coherence**2
    figures = (
        f"energy above 0.25 cycles a pixel {ratio:.2f} times a's, of which {100 * incoherent:.0f} % do not follow it"
    )
    if ratio > 1.25 and ratio * incoherent > _ALIASED:
        return [Finding("no antialias", "resize", f"{figures}: b shrinks without antialias")]
    if ratio < 0.8 and incoherent / ratio > _ALIASED:
        return [Finding("antialias", "resize", f"{figures}: a shrinks without antialias, b with it")]
    if ratio > 1.25 or ratio < 0.8:
        kind = "sharper filter" if ratio > 1 else "smoother filter"
        return [Finding(kind, "resize", figures, expected=True)]
    return []


def _colours(
    first: Float64[np.ndarray, "n S S 3"], second: Float64[np.ndarray, "n S S 3"], others: list[Finding]
) -> list[Finding]:
    """Small differences that are mostly colour: chroma was thinned out or filled in another way."""
    if any(finding.stage in ("orientation", "resize", "crop") for finding in others):
        return []
    rest = second - first
    luma = rest @ np.array([0.299, 0.587, 0.114])
    colour = rest - luma[..., None]
    size = float(np.abs(rest).mean())
    energy = float((colour**2).mean()), float((luma**2).mean())
    if size < 0.02 or energy[0] < 2 * energy[1]:
        return []
    ratio = energy[0] / max(energy[1], 1e-12)
    evidence = f"{size:.2f} levels on average, {ratio:.1f} times more energy in colour than in brightness"
    return [Finding("chroma", "decode", f"{evidence}: chroma is upsampled in another way", expected=True)]


def _fit(
    first: Float64[np.ndarray, "n S S 3"], second: Float64[np.ndarray, "n S S 3"], inside: np.ndarray
) -> tuple[Float64[np.ndarray, 3], Float64[np.ndarray, 3]]:
    """Slope and offset of each channel, by least squares over all images."""
    x, y = _small(first, inside).reshape(-1, 3), _small(second, inside).reshape(-1, 3)
    centred = x - x.mean(axis=0)
    slope = (centred * (y - y.mean(axis=0))).sum(axis=0) / np.maximum((centred**2).sum(axis=0), 1e-12)
    slope = np.where(slope == 0, 1.0, slope)  # a constant channel says nothing
    return slope, y.mean(axis=0) - slope * x.mean(axis=0)


def _small(stack: Float64[np.ndarray, "n S S 3"], inside: np.ndarray) -> Float64[np.ndarray, "n p 3"]:
    """What is inside as means of blocks, which filters leave alone."""
    part = _window(stack, inside)
    block = max(1, part.shape[1] // 32)
    height, width = (side // block for side in part.shape[1:3])
    part = part[:, : height * block, : width * block]
    return part.reshape(len(part), height, block, width, block, 3).mean(axis=(2, 4)).reshape(len(part), -1, 3)


def _window(stack: Float64[np.ndarray, "n S S 3"], inside: np.ndarray) -> Float64[np.ndarray, "n p q 3"]:
    """The centred square in which everything is known."""
    side = int(min(inside.any(axis=0).sum(), inside.any(axis=1).sum()))
    start = (stack.shape[1] - side) // 2
    return stack[:, start : start + side, start : start + side]


def _triple(values: Float64[np.ndarray, 3]) -> str:
    return "/".join(f"{value:.4g}" for value in values)
