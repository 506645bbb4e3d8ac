"""Spiking architectures with feedback, found without training them (arXiv 2201.10355)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import core_utils
from core_utils.lazy import lazy

if TYPE_CHECKING:
    from snasnet.cells import Cell
    from snasnet.correlations import correlate
    from snasnet.costs import Constraints, most_sops, parameters
    from snasnet.datasets import DataSets, load_data
    from snasnet.kernels import KernelAccumulator, hd_kernel, logdet_score, sahd_kernel
    from snasnet.miniature import miniature_images
    from snasnet.networks import SNASNet
    from snasnet.released import load_released, preset
    from snasnet.scoring import ScoreResult, cell_scores, score_cell, score_model
    from snasnet.searching import SearchResult, search
    from snasnet.spaces import SearchSpace
    from snasnet.specs import DatasetSpec
    from snasnet.training import TrainConfig, accuracy, profile, train

if core_utils.CONTRACT != 1:
    raise ImportError("snasnet needs core-utils with contract 1")

__all__ = [
    "Cell",
    "Constraints",
    "DataSets",
    "DatasetSpec",
    "KernelAccumulator",
    "SNASNet",
    "ScoreResult",
    "SearchResult",
    "SearchSpace",
    "TrainConfig",
    "accuracy",
    "cell_scores",
    "correlate",
    "hd_kernel",
    "load_data",
    "load_released",
    "logdet_score",
    "miniature_images",
    "most_sops",
    "parameters",
    "preset",
    "profile",
    "sahd_kernel",
    "score_cell",
    "score_model",
    "search",
    "train",
]

_HOMES = {
    "cells": ("Cell",),
    "correlations": ("correlate",),
    "costs": ("Constraints", "most_sops", "parameters"),
    "kernels": ("KernelAccumulator", "hd_kernel", "logdet_score", "sahd_kernel"),
    "miniature": ("miniature_images",),
    "networks": ("SNASNet",),
    "datasets": ("DataSets", "load_data"),
    "released": ("load_released", "preset"),
    "scoring": ("ScoreResult", "cell_scores", "score_cell", "score_model"),
    "searching": ("SearchResult", "search"),
    "spaces": ("SearchSpace",),
    "specs": ("DatasetSpec",),
    "training": ("TrainConfig", "accuracy", "profile", "train"),
}

__getattr__, __dir__ = lazy(__name__, _HOMES)
