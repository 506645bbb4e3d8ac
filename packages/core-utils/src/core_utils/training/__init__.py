"""Training on Lightning Fabric: any device, DDP under torchrun, exact resume."""

from core_utils.training.devices import resolve_device, seed_everything, world_size
from core_utils.training.evaluation import evaluate_classifier
from core_utils.training.fitting import History, cosine, fit
from core_utils.training.loading import Arrays, Loader
from core_utils.training.state import Stateful, decode, encode
from core_utils.training.weights import load_weights, put_weights, read_weights, save_weights

__all__ = [
    "Arrays",
    "History",
    "Loader",
    "Stateful",
    "cosine",
    "decode",
    "encode",
    "evaluate_classifier",
    "fit",
    "load_weights",
    "put_weights",
    "read_weights",
    "resolve_device",
    "save_weights",
    "seed_everything",
    "world_size",
]
