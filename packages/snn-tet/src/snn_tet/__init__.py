"""Temporal efficient training of spiking networks: the loss on every time step (arXiv 2202.11946)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import core_utils
from core_utils.lazy import lazy

if TYPE_CHECKING:
    from snn_tet.checkpoints import load_reference_checkpoint
    from snn_tet.datasets import DataSets, cifar, cifar10_dvs, imagenet, prepare
    from snn_tet.encoding import sequence
    from snn_tet.evaluation import accuracy_vs_steps, early_exit
    from snn_tet.export import export_nir
    from snn_tet.landscape import loss_landscape, loss_rise
    from snn_tet.losses import TETLoss, sdt_loss, step_gradients, tet_loss
    from snn_tet.miniature import posed_miniature
    from snn_tet.networks import resnet19, sew_resnet34, spiking_resnet34, tiny_vgg, vggsnn, vggsnn_woap
    from snn_tet.robustness import accuracy_under
    from snn_tet.training import Loaders, Stage, TrainConfig, time_inheritance, train

if core_utils.CONTRACT != 1:
    raise ImportError("snn-tet needs core-utils with contract 1")

__all__ = [
    "DataSets",
    "Loaders",
    "Stage",
    "TETLoss",
    "TrainConfig",
    "accuracy_under",
    "accuracy_vs_steps",
    "cifar",
    "cifar10_dvs",
    "early_exit",
    "export_nir",
    "imagenet",
    "load_reference_checkpoint",
    "loss_landscape",
    "loss_rise",
    "posed_miniature",
    "prepare",
    "resnet19",
    "sdt_loss",
    "sequence",
    "sew_resnet34",
    "spiking_resnet34",
    "step_gradients",
    "tet_loss",
    "time_inheritance",
    "tiny_vgg",
    "train",
    "vggsnn",
    "vggsnn_woap",
]

_HOMES = {
    "checkpoints": ("load_reference_checkpoint",),
    "datasets": (
        "DataSets",
        "cifar",
        "cifar10_dvs",
        "imagenet",
        "prepare",
    ),
    "encoding": ("sequence",),
    "evaluation": (
        "accuracy_vs_steps",
        "early_exit",
    ),
    "export": ("export_nir",),
    "landscape": (
        "loss_landscape",
        "loss_rise",
    ),
    "losses": (
        "TETLoss",
        "sdt_loss",
        "step_gradients",
        "tet_loss",
    ),
    "miniature": ("posed_miniature",),
    "networks": (
        "resnet19",
        "sew_resnet34",
        "spiking_resnet34",
        "tiny_vgg",
        "vggsnn",
        "vggsnn_woap",
    ),
    "robustness": ("accuracy_under",),
    "training": (
        "Loaders",
        "Stage",
        "TrainConfig",
        "time_inheritance",
        "train",
    ),
}

__getattr__, __dir__ = lazy(__name__, _HOMES)
