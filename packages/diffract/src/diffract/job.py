"""The job: what a run of `diffract train` is opened with, and what it leaves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.numpy import load, save

from core_utils.data import DataError
from core_utils.errors import UserError
from core_utils.files import write_atomically
from core_utils.runs import Run, read_finished
from core_utils.settings import from_tree
from diffract.designs import Design
from diffract.evaluation import evaluate
from diffract.networks import DiffractiveNetwork, diffused
from diffract.objects import Objects, load_objects, placed
from diffract.plots import curves_figure, montage_figure, phases_figure, picture
from diffract.streams import Stream, stream
from diffract.training import train

LAYERS, KNOWN = "layers.safetensors", "known_diffusers.npy"
TESTED, NEW, SHOWN = 100, 20, 6


@dataclass(frozen=True, eq=False)
class Trained:
    """What a finished training left.

    Attributes:
        design: what was asked.
        data: where the objects came from.
        network: with its trained layers.
        known: the last epoch's diffusers.
    """

    design: Design
    data: Path | None
    network: DiffractiveNetwork
    known: Float[np.ndarray, "n H W"]

    @property
    def objects(self) -> Objects:
        """The objects it was trained on, held out and tested with."""
        return load_objects(self.data)

    def test_objects(self, count: int = TESTED) -> Float[np.ndarray, "m H W"]:
        """The first test objects, on the grid."""
        return placed(self.objects.test[:count], self.design.grid, self.design.object_side)


def asked_of(design: Design, data: Path | None) -> dict[str, Any]:
    """What a run of `diffract train` is opened with."""
    return {"design": design, "data": None if data is None else str(data.resolve())}


def new_diffusers(design: Design, count: int) -> Float[np.ndarray, "n H W"]:
    """Diffusers of the design that no training draws; its kinds take turns."""
    kinds = design.screens
    if not kinds:
        raise UserError("the design has no diffusers", "use --diffusers none, or a file")
    drawn = [np.asarray(kind.sample(stream(design.seed, Stream.NEW, i), count)) for i, kind in enumerate(kinds)]
    return np.stack([drawn[i % len(kinds)][i // len(kinds)] for i in range(count)])


def train_job(design: Design, data: Path | None, run: Run, *, devices: int, progress: bool) -> dict[str, Any]:
    """Trains, tests once at the end, and leaves layers, diffusers and pictures in the run."""
    objects = load_objects(data)
    result = train(design, objects.train, run, validation=objects.validation, devices=devices, progress=progress)
    network = result.network
    run.write(LAYERS, save({"phases": np.asarray(network.phases[...])}))
    write_array(run.path / KNOWN, result.known)
    test = placed(objects.test[:TESTED], design.grid, design.object_side)
    figures = {"none": evaluate(network, test, None).mean}
    shown = {"object": test[:SHOWN]}
    if len(result.known):
        table = evaluate(network, test, new_diffusers(design, NEW))
        known = evaluate(network, test, result.known)
        figures |= {"new": table.mean, "new_std": table.std, "known": known.mean, "known_std": known.std}
        screen = new_diffusers(design, 1)
        shown["image"] = np.asarray(network(diffused(network.illuminated(test[:SHOWN]), screen)))[:, 0]
    run.write("figures/curves.svg", picture(curves_figure(result.history), ".svg"))
    run.write("figures/layers.svg", picture(phases_figure(np.asarray(network.phases[...]), design.grid), ".svg"))
    montage = montage_figure(shown, design.grid, title="Behind a new diffuser")
    run.write("figures/montage.svg", picture(montage, ".svg"))
    return {"pcc": figures, "epochs": len(result.history), "objects": len(test), "region": list(design.grid.shape)}


def read_trained(run: Path) -> Trained:
    """The network of a finished training.

    Raises:
        UserError: the folder is no finished training, or its layers are damaged or of another design.
    """
    asked = read_finished(run, "diffract train", lambda asked: asked.keys() == {"design", "data"})
    design = from_tree(Design, asked["design"], str(run / "config.json"))
    network = design.network()
    try:
        phases = load((run / LAYERS).read_bytes())["phases"]
    except (OSError, SafetensorError, KeyError) as error:
        raise DataError(f"{run / LAYERS} is missing or damaged: {error}") from None
    if phases.shape != network.phases.shape:
        raise DataError(f"{run / LAYERS} holds layers {phases.shape}, its design has {network.phases.shape}")
    network.phases = nnx.Param(jnp.asarray(phases))
    return Trained(design, None if asked["data"] is None else Path(asked["data"]), network, read_screens(run / KNOWN))


def read_screens(path: Path) -> Float[np.ndarray, "n H W"]:
    """Diffusers from a .npy file.

    Raises:
        DataError: it cannot be read, or holds no phases [n, H, W].
    """
    try:
        screens = np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if screens.ndim != 3 or screens.dtype.kind != "f" or not np.isfinite(screens).all():
        raise DataError(f"{path} holds {screens.dtype} of shape {screens.shape}", "finite phases [n, H, W] are needed")
    return screens


def write_array(path: Path, values: np.ndarray) -> None:
    """A .npy file, whole or absent."""
    import io

    content = io.BytesIO()
    np.save(content, values)
    write_atomically(path, content.getvalue())
