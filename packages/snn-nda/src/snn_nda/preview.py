"""What each transform does to one recording: a grid of pictures (PNG), and the same in motion (GIF).

Brighter events are blue, darker ones orange, none is white; in black and white, orange is the lighter of the two.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import torch

from snn_nda.errors import FramesError
from snn_nda.params import Cutout, HFlip, Params, Roll, Rotate, ShearX
from snn_nda.policies import Policy
from snn_nda.sampling import transform

BRIGHTER = np.array([0x00, 0x72, 0xB2])
DARKER = np.array([0xE6, 0x9F, 0x00])
"""Colours of Okabe and Ito, which colour-blind readers tell apart."""

GRID_COLUMNS = 4
"""Panels side by side."""


def examples(policy: Policy, size: tuple[int, int]) -> dict[str, Params]:
    """One sample as it is, mirrored, and moved by each operation as far as the policy goes.

    Args:
        policy: says how far.
        size: height and width of the frames, pixels.
    """
    height, width = size
    shift, side = policy.pixels("roll", width), policy.pixels("cutout", width)
    angle, slope = float(policy.limit("rotate")), float(policy.limit("shear"))
    wrap = policy.fill == "wrap"
    return {
        "original": Params(),
        "mirror": Params((HFlip(swap_polarity=policy.swap_polarity),)),
        f"roll {shift}, {shift} px": Params((Roll(dy=shift, dx=shift, wrap=wrap),)),
        f"rotate {angle:g}°": Params((Rotate(degrees=angle),)),
        f"shear {slope:g}°": Params((ShearX(degrees=slope),)),
        f"cutout {side} px": Params((Cutout(y=height // 2, x=width // 2, length=side),)),
    }


def preview_png(
    frames: np.ndarray | torch.Tensor, policy: Policy, *, title: str = "", rng: np.random.Generator | int = 0
) -> bytes:
    """A PNG with a panel for each operation, and for two lots of the policy, at the time step with the most events.

    Args:
        frames: counts [T, 2, H, W].
        policy: says how far the operations go.
        title: what the sample is.
        rng: decides the two lots.

    Raises:
        FramesError: another shape.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _panels(frames, policy, rng)
    rows = -(-len(panels) // GRID_COLUMNS)
    figure = Figure(figsize=(2.2 * GRID_COLUMNS, 2.45 * rows + 0.6), dpi=110, layout="constrained")
    axes = figure.subplots(rows, GRID_COLUMNS, squeeze=False).ravel()
    step = int(panels["original"].sum((1, 2, 3)).argmax())
    full = _full(panels["original"][step])
    for place, (name, moved) in zip(axes, panels.items(), strict=False):
        place.imshow(coloured(moved[step], full), interpolation="nearest")
        place.set_title(f"{name}\n{moved[step].sum():.0f} events", fontsize=8)
        place.tick_params(labelsize=6)
    for place in axes[len(panels) :]:
        place.set_axis_off()
    figure.supxlabel("x (pixels)", fontsize=8)
    figure.supylabel("y (pixels)", fontsize=8)
    figure.suptitle(
        f"{title + ': ' if title else ''}blue brighter, orange darker, time step {step + 1} of {len(panels['original'])}",
        fontsize=9,
    )
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


def preview_gif(
    frames: np.ndarray | torch.Tensor,
    policy: Policy,
    *,
    rng: np.random.Generator | int = 0,
    scale: int = 3,
    milliseconds: int = 200,
) -> bytes:
    """The panels of `preview_png` side by side as a GIF that runs through the time steps for ever.

    Args:
        frames: counts [T, 2, H, W].
        policy: says how far the operations go.
        rng: decides the two lots.
        scale: screen pixels for a pixel.
        milliseconds: how long a time step is shown.

    Raises:
        FramesError: another shape.
    """
    from PIL import Image, ImageDraw

    panels = _panels(frames, policy, rng)
    full = _full(panels["original"])
    time_steps, _, height, width = next(iter(panels.values())).shape
    cell_width, cell_height = max(width * scale, 84) + 6, height * scale + 20
    rows = -(-len(panels) // GRID_COLUMNS)
    images = []
    for step in range(time_steps):
        image = Image.new("RGB", (GRID_COLUMNS * cell_width, rows * cell_height), (0xDD, 0xDD, 0xDD))
        for number, (name, moved) in enumerate(panels.items()):
            row, column = divmod(number, GRID_COLUMNS)
            left, top = column * cell_width + 3, row * cell_height
            ImageDraw.Draw(image).text((left, top + 4), f"{name}  t={step}", fill="black")
            panel = Image.fromarray(coloured(moved[step], full)).resize(
                (width * scale, height * scale), Image.Resampling.NEAREST
            )
            image.paste(panel, (left, top + 18))
        images.append(image.quantize(64))
    file = io.BytesIO()
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=milliseconds, loop=0)
    return file.getvalue()


def coloured(counts: np.ndarray, full: float) -> np.ndarray:
    """Counts [2, H, W] as a picture, uint8 [H, W, 3]: white without events, a colour that deepens up to `full`."""
    darker, brighter = np.sqrt(np.clip(counts / full, 0, 1))[..., None]  # the root shows single events, too
    ink = darker * (255 - DARKER) + brighter * (255 - BRIGHTER)
    return (255 - np.clip(ink, 0, 255)).astype(np.uint8)


def _full(counts: np.ndarray) -> float:
    """The count of the deepest colour: pixels that fire without end, as real sensors have some, must not decide it."""
    fired = counts[counts > 0]
    return float(np.quantile(fired, 0.98)) if len(fired) else 1.0


def _panels(
    frames: np.ndarray | torch.Tensor, policy: Policy, rng: np.random.Generator | int
) -> Mapping[str, np.ndarray]:
    given = torch.as_tensor(frames)
    if given.ndim != 4 or given.shape[1] != 2 or 0 in given.shape:
        raise FramesError(f"a preview shows frames [T, 2, H, W], got shape {list(given.shape)}")
    height, width = given.shape[-2:]
    chosen = examples(policy, (height, width))
    rng = np.random.default_rng(rng)
    chosen |= {f"lot {number}": policy.draw(rng, (height, width)) for number in (1, 2)}
    return {name: transform(given[None], [params])[0].numpy() for name, params in chosen.items()}
