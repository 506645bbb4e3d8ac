"""Photographs in the wheels of scikit-image and scikit-learn."""

from importlib.util import find_spec
from pathlib import Path

import torch

from core_utils.data import read_image
from mqbench_lite.data import _central

PLACES = (
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/rocket.jpg"),
    ("skimage", "data/motorcycle_left.png"),
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
)


def crops(preprocessing):
    """Their central crops, as the model sees them."""
    files = [Path(find_spec(package).origin).parent / name for package, name in PLACES]
    return torch.cat([preprocessing.normalised(_central(read_image(file), preprocessing)[None]) for file in files])
