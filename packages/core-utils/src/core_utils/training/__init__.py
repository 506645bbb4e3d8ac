"""Training on Lightning Fabric: any device, DDP under torchrun, exact resume."""

from core_utils.training.devices import resolve_device, seed_everything
from core_utils.training.fitting import History, cosine, fit
from core_utils.training.loading import Arrays, Loader
from core_utils.training.state import Stateful, decode, encode

__all__ = [
    "Arrays",
    "History",
    "Loader",
    "Stateful",
    "cosine",
    "decode",
    "encode",
    "fit",
    "resolve_device",
    "seed_everything",
]
