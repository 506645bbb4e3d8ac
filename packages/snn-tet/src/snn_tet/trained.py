"""A finished training, read back from its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from core_utils.runs import read_finished
from core_utils.settings import from_tree
from core_utils.training import load_weights
from snn_tet.datasets import DataSets
from snn_tet.job import JobConfig, load_data, make_network

WEIGHTS = "model.safetensors"


@dataclass(frozen=True, eq=False)
class Trained:
    """What a run of `snn-tet train` left.

    Attributes:
        config: what was asked.
        folder: of the data; None for the embedded ones.
        data: the data that it was trained and is tested on.
        model: the network with its weights, on the CPU.
    """

    config: JobConfig
    folder: Path | None
    data: DataSets
    model: nn.Module


def read_trained(run: Path, data: Path | None = None) -> Trained:
    """The network of a finished run and its data.

    Args:
        run: the run's folder.
        data: where the data lie now; by default where they lay then.

    Raises:
        UserError: the folder is no such run, is not finished, its weights are damaged or of another network, or the
            data cannot be read.
    """
    asked = read_finished(run, "snn-tet train", lambda asked: asked.keys() == {"config", "data"})
    config = from_tree(JobConfig, asked["config"], str(run / "config.json"))
    folder = data or (Path(asked["data"]) if asked["data"] else None)
    sets = load_data(config, folder)
    model = make_network(config, sets)
    load_weights(model, run / WEIGHTS)
    return Trained(config, folder, sets, model)
