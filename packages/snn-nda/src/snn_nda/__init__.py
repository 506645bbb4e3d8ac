"""Event-data augmentation that closes the generalisation gap of spiking networks (arXiv 2203.06145)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import core_utils
from core_utils.lazy import lazy

if TYPE_CHECKING:
    from snn_nda.adapters import EventFrames, ForeignEvents
    from snn_nda.augment import Geometric, Mixed, Photometric
    from snn_nda.datasets import DataSets, event_data
    from snn_nda.eventdrop import EventDrop
    from snn_nda.events import EventNDA
    from snn_nda.folders import FolderEvents, published_parts
    from snn_nda.functional import cutmix, cutout, hflip, mixup, roll, rotate, shear_x
    from snn_nda.gap import compare_arms, gap_report, gap_summary
    from snn_nda.landscape import loss_landscape, loss_rise
    from snn_nda.miniature import posed_miniature
    from snn_nda.nda import NDA, Augment
    from snn_nda.networks import resnet19, tiny_vgg, vgg11, vgg13, vgg16
    from snn_nda.params import Params
    from snn_nda.policies import Policy, policy
    from snn_nda.preview import preview_gif, preview_png
    from snn_nda.probe import calibrate, linear_probe
    from snn_nda.simsiam import PretrainConfig, SimSiam, pretrain
    from snn_nda.synthetic import SyntheticEventDataset
    from snn_nda.training import TrainConfig, evaluate, train

if core_utils.CONTRACT != 1:
    raise ImportError("snn-nda needs core-utils with contract 1")

__all__ = [
    "NDA",
    "Augment",
    "DataSets",
    "EventDrop",
    "EventFrames",
    "EventNDA",
    "FolderEvents",
    "ForeignEvents",
    "Geometric",
    "Mixed",
    "Params",
    "Photometric",
    "Policy",
    "PretrainConfig",
    "SimSiam",
    "SyntheticEventDataset",
    "TrainConfig",
    "calibrate",
    "compare_arms",
    "cutmix",
    "cutout",
    "evaluate",
    "event_data",
    "gap_report",
    "gap_summary",
    "hflip",
    "linear_probe",
    "loss_landscape",
    "loss_rise",
    "mixup",
    "policy",
    "posed_miniature",
    "pretrain",
    "preview_gif",
    "preview_png",
    "published_parts",
    "resnet19",
    "roll",
    "rotate",
    "shear_x",
    "tiny_vgg",
    "train",
    "vgg11",
    "vgg13",
    "vgg16",
]

_HOMES = {
    "adapters": ("EventFrames", "ForeignEvents"),
    "augment": ("Geometric", "Mixed", "Photometric"),
    "datasets": ("DataSets", "event_data"),
    "eventdrop": ("EventDrop",),
    "events": ("EventNDA",),
    "folders": ("FolderEvents", "published_parts"),
    "functional": ("cutmix", "cutout", "hflip", "mixup", "roll", "rotate", "shear_x"),
    "gap": ("compare_arms", "gap_report", "gap_summary"),
    "landscape": ("loss_landscape", "loss_rise"),
    "miniature": ("posed_miniature",),
    "nda": ("NDA", "Augment"),
    "networks": ("resnet19", "tiny_vgg", "vgg11", "vgg13", "vgg16"),
    "params": ("Params",),
    "policies": ("Policy", "policy"),
    "preview": ("preview_gif", "preview_png"),
    "probe": ("calibrate", "linear_probe"),
    "simsiam": ("PretrainConfig", "SimSiam", "pretrain"),
    "synthetic": ("SyntheticEventDataset",),
    "training": ("TrainConfig", "evaluate", "train"),
}

__getattr__, __dir__ = lazy(__name__, _HOMES)
