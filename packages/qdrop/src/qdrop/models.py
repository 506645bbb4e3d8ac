"""Float models by name: from timm or torchvision, from the user's own code, and two that need nothing else."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from core_utils.errors import one_line
from core_utils.training import read_weights
from core_utils.training.lite0 import lite0
from core_utils.user_code import call_named
from qdrop.errors import QDropError
from qdrop.preprocessing import FASHION_MNIST, IMAGENET, Preprocessing


class ModelError(QDropError):
    """A model or its weights cannot be had as named."""


@dataclass(frozen=True, eq=False)
class FloatModel:
    """A model to quantise.

    Attributes:
        model: float, in evaluation mode, on the CPU.
        preprocessing: of the images that it was trained on, as far as the source says.
        trained: whether it has weights that mean something.
    """

    model: nn.Module
    preprocessing: Preprocessing
    trained: bool


def float_model(
    name: str, weights: Path | None = None, *, download: bool = False, cache: Path | None = None
) -> FloatModel:
    """Builds the model of that name.

    Args:
        name: `timm:NAME`, `torchvision:NAME`, `package.module:factory` or `file.py:factory` (runs that code; the
            factory takes no arguments), `miniature` (trains for some seconds when first asked for) or `lite0`
            (EfficientNet-Lite0 with its ImageNet weights, from the extra `lite0`).
        weights: file of a state dictionary, safetensors or PyTorch's; every key must fit.
        download: let timm or torchvision fetch their pretrained weights.
        cache: where the miniature is kept; the user's cache folder by default.

    Returns:
        The model with what is known of it.

    Raises:
        ModelError: the name, the code behind it, or the weights cannot be used; the message says what would be right.
    """
    source, colon, rest = name.partition(":")
    if download and (source not in ("timm", "torchvision") or weights is not None):
        raise ModelError("--download fetches pretrained weights of timm: and torchvision: models, without --weights")
    if name == "miniature":
        found = _miniature(weights, cache)
    elif name == "lite0":
        found = _lite0()
    elif source == "timm" and rest:
        found = _timm(rest, download)
    elif source == "torchvision" and rest:
        found = _torchvision(rest, download)
    elif colon and source and rest:
        found = _from_factory(name)
    else:
        raise ModelError(
            f"no model {name!r}", "use timm:NAME, torchvision:NAME, package.module:factory, miniature or lite0"
        )
    if weights is not None:
        load_weights(found.model, weights)
        found = FloatModel(found.model, found.preprocessing, trained=True)
    found.model.eval()
    return found


def load_weights(model: nn.Module, file: Path) -> None:
    """Loads a state dictionary whose keys and shapes must be those of the model.

    Args:
        model: changed in place.
        file: `.safetensors`, or PyTorch's own format, of which nothing but tensors and plain containers is read; in it
            the dictionary may lie under `state_dict` or `model`, and every key may begin with `module.`.

    Raises:
        ModelError: the file cannot be read, or belongs to another architecture; names the first key that does not fit.
    """
    given = read_weights(file, error=ModelError)
    expected = model.state_dict()
    tied = {value.data_ptr() for key, value in expected.items() if key in given}
    needed = [key for key, value in expected.items() if key in given or value.data_ptr() not in tied]
    for key in [*needed, *given]:
        if key not in given:
            raise ModelError(f"{file} belongs to another architecture: it has no {key!r}")
        if key not in expected:
            raise ModelError(f"{file} belongs to another architecture: the model has no {key!r}")
        if given[key].shape != expected[key].shape:
            shapes = f"{list(given[key].shape)} there, {list(expected[key].shape)} in the model"
            raise ModelError(f"{file} belongs to another architecture: {key!r} is {shapes}")
    model.load_state_dict(given, strict=False)


def _miniature(weights: Path | None, cache: Path | None) -> FloatModel:
    from qdrop.miniature import ResidualNet, float_net, user_cache

    net = ResidualNet() if weights is not None else float_net(cache or user_cache())
    return FloatModel(net, FASHION_MNIST, trained=True)


def _lite0() -> FloatModel:
    model = lite0(install="qdrop[lite0]", error=ModelError)
    return FloatModel(model, Preprocessing(mean=(127 / 255,) * 3, deviation=(128 / 255,) * 3), trained=True)


def _timm(name: str, download: bool) -> FloatModel:
    timm = _extra("timm", "timm")
    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    model = _pretrained(f"timm:{name}", download, lambda: timm.create_model(name, pretrained=download))
    facts: Any = model.pretrained_cfg
    size = facts["input_size"][-1]
    return FloatModel(
        model,
        Preprocessing(size, int(size / facts["crop_pct"]), tuple(facts["mean"]), tuple(facts["std"])),
        trained=download,
    )


def _torchvision(name: str, download: bool) -> FloatModel:
    models = _extra("torchvision", "torchvision").models
    if name not in models.list_models():
        raise _unknown("torchvision", name, models.list_models())
    weights = next(iter(models.get_model_weights(name)))
    offline = {"weights": None} | ({} if download else {"weights_backbone": None} if _has_backbone(name) else {})
    settings = {"weights": weights} if download else offline
    model = _pretrained(f"torchvision:{name}", download, lambda: models.get_model(name, **settings))
    known = weights.transforms()
    if not hasattr(known, "crop_size"):
        return FloatModel(model, IMAGENET, trained=download)
    size, resize = known.crop_size[0], known.resize_size[0]
    return FloatModel(model, Preprocessing(size, resize, tuple(known.mean), tuple(known.std)), trained=download)


def _has_backbone(name: str) -> bool:
    """Detectors and segmenters would fetch their backbone's weights."""
    import inspect

    from torchvision.models import get_model_builder

    return "weights_backbone" in inspect.signature(get_model_builder(name)).parameters


def _pretrained(name: str, download: bool, make: Callable[[], nn.Module]) -> nn.Module:
    try:
        return make()
    except Exception as error:  # hubs fail in many ways
        why = "its weights cannot be downloaded" if download else "it cannot be built"
        raise ModelError(f"{name}: {why}: {one_line(error)}") from None


def _from_factory(name: str) -> FloatModel:
    """Runs the user's own code."""
    model = call_named(name, error=ModelError)
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name}() returned a {type(model).__name__}, not a torch.nn.Module")
    return FloatModel(model, IMAGENET, trained=True)


def _extra(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ModelError(f"{module} is not installed", f'pip install "qdrop[{extra}]"') from None


def _unknown(source: str, name: str, names: Iterable[str]) -> ModelError:
    return ModelError(f"{source} has no model {name!r}", _nearest(name, names))


def _nearest(name: str, names: Iterable[str]) -> str | None:
    nearest = difflib.get_close_matches(name, list(names), n=1, cutoff=0.3)
    return f"did you mean {nearest[0]!r}?" if nearest else None
