"""Forward pass and gradient of the published network, beside torchoptics and svetlanna on the same work.

Both sides hold four phase layers on 240 x 240 pixels, images of four fields on an output plane, the same loss (minus the mean
Pearson correlation) and its gradient with respect to the phases; windows of the propagations are padded to 480 x 480 on both
sides. The process is held to one core, so that seconds are CPU-seconds. Fields start behind the diffuser. Loss and gradient
of the peers are compared with ours in `tests/test_benchmarks.py` where they are installed.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from core_utils.bench import Benchmark

if TYPE_CHECKING:
    import numpy as np

SIDE, SAMPLES, LAYERS = 240, 4, 4
PITCH, WAVELENGTH = 0.3e-3, 0.75e-3
DISTANCES = (2e-3, 2e-3, 2e-3, 2e-3, 7e-3)
"""From the diffuser to the first layer, ..., to the output, m."""

Answer = tuple[float, "np.ndarray"]
"""Loss and gradient, [M, H, W]."""


def inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fields behind a diffuser, objects, and phases."""
    import numpy as np

    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
    centres = rng.uniform(-0.2, 0.2, (SAMPLES, 2, 1, 1))
    objects = (np.hypot(y - centres[:, 0], 2 * (x - centres[:, 1])) < 0.2).astype(np.float32)
    coarse = rng.normal(size=(SAMPLES, 24, 24))
    screens = np.repeat(np.repeat(coarse, SIDE // 24, 1), SIDE // 24, 2)
    return (
        (objects * np.exp(1j * screens)).astype(np.complex64),
        objects,
        rng.normal(0, 1, (LAYERS, SIDE, SIDE)).astype(np.float32),
    )


def on_one_core() -> None:
    """Holds this process to the first core that it may use."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def ours(method: Any = "rs") -> Callable[[], Answer]:
    """Accumulated sample by sample, as in training."""
    on_one_core()
    import jax
    import numpy as np

    from diffract import Geometry, Grid
    from diffract.gradients import Batch, Weights, gradient
    from diffract.networks import stacked_transfers

    fields, objects, phases = inputs()
    grid, geometry = Grid((SIDE, SIDE), PITCH, WAVELENGTH), Geometry(1.0, 2e-3, 2e-3, 7e-3, LAYERS)
    transfers = stacked_transfers(grid, (2e-3, *geometry.distances[:2], 7e-3), method, 2)
    still = np.zeros((1, SIDE, SIDE), np.float32)
    pairs = np.stack([np.arange(SAMPLES), np.zeros(SAMPLES, int)], 1)
    batch = jax.tree.map(jax.numpy.asarray, Batch(fields, objects, still, pairs))
    step = jax.jit(functools.partial(gradient, weights=Weights(0.0, 0.0), grid=grid, pad=2, chunk=1))
    step(phases, transfers, batch)[0].block_until_ready()

    def call() -> Answer:
        found, (loss, _) = step(phases, transfers, batch)
        return float(loss), np.asarray(found)

    return call


def ours_asm() -> Callable[[], Answer]:
    """The same step; the method only changes the numbers in the transfer functions."""
    return ours("asm")


def torchoptics() -> Callable[[], Answer]:
    """Phase modulators between angular-spectrum propagations; 120 pixels of padding a side, where its default is 480."""
    on_one_core()
    import torch
    from torchoptics import Field
    from torchoptics.elements import PhaseModulator

    torch.set_num_threads(1)
    fields, objects, values = inputs()
    places = [sum(DISTANCES[: m + 1]) for m in range(len(DISTANCES))]
    phases = [torch.nn.Parameter(torch.from_numpy(value)) for value in values]
    layers = [PhaseModulator(phase, z, PITCH) for phase, z in zip(phases, places, strict=False)]
    source, wanted = torch.from_numpy(fields), torch.from_numpy(objects)
    options: Any = {"propagation_method": "ASM", "asm_pad": (SIDE // 2, SIDE // 2)}

    def image() -> Any:
        field = Field(source, WAVELENGTH, 0.0, PITCH)
        for layer, z in zip(layers, places, strict=False):
            field = layer(field.propagate_to_z(z, **options))
        return field.propagate_to_z(places[-1], **options).intensity()

    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    return lambda: _answer(image, parameters, wanted)


def svetlanna() -> Callable[[], Answer]:
    """Diffractive layers between zero-padded angular-spectrum propagations, whose padding is ours by default.

    Its convolution (`zpRSC`) is slower and gives other images here: its kernel is sampled with both ends included.
    """
    on_one_core()
    import warnings

    import torch
    from svetlanna import LinearOpticalSetup, Parameter, SimulationParameters, Wavefront
    from svetlanna.elements import DiffractiveLayer, FreeSpace

    torch.set_num_threads(1)
    fields, objects, values = inputs()
    axis = (torch.arange(SIDE) - SIDE // 2) * PITCH
    parameters = SimulationParameters({"x": axis, "y": axis.clone(), "wavelength": torch.tensor(WAVELENGTH)})
    masks = [Parameter(torch.from_numpy(value)) for value in values]
    elements: list[Any] = []
    with warnings.catch_warnings(action="ignore"):  # it warns of noise at every distance where we estimate 1 %
        for m, z in enumerate(DISTANCES):
            elements.append(FreeSpace(parameters, torch.tensor(z), "zpASM"))
            if m < LAYERS:
                elements.append(DiffractiveLayer(parameters, masks[m]))
    setup = LinearOpticalSetup(elements)
    source, wanted = Wavefront(torch.from_numpy(fields)), torch.from_numpy(objects)
    trained = [parameter for parameter in setup.net.parameters() if parameter.requires_grad]
    return lambda: _answer(lambda: torch.Tensor(setup(source).intensity), trained, wanted)


def _answer(image: Callable[[], Any], parameters: list[Any], wanted: Any) -> Answer:
    """Minus the mean correlation and its gradient, with torch."""
    import numpy as np
    import torch

    for parameter in parameters:
        parameter.grad = None
    output = image()
    o, g = (each - each.mean((-2, -1), keepdim=True) for each in (output, wanted))
    alike = (o * g).sum((-2, -1)) / torch.sqrt((o * o).sum((-2, -1)) * (g * g).sum((-2, -1)))
    loss = -alike.mean()
    loss.backward()
    return float(loss.detach()), np.stack([parameter.grad.numpy() for parameter in parameters])


WHAT = f"Loss and gradient of {LAYERS} layers of {SIDE} x {SIDE} pixels, {SAMPLES} fields, padded to twice the side, one core"

BENCHMARKS = (
    Benchmark(
        id="torchoptics",
        statement=f"{WHAT}: at least 4 times as fast as torchoptics 1.0, which makes its transfer functions in every call.",
        ours=ours,
        peer=torchoptics,
        target=4.0,
    ),
    Benchmark(
        id="svetlanna",
        statement=f"{WHAT}: at least 2 times as fast as svetlanna 2.0 with its faster method, the angular spectrum.",
        ours=ours_asm,
        peer=svetlanna,
        target=2.0,
    ),
)
