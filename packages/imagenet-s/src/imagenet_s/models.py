"""Classifiers: any callable on a float batch that returns (N, C) logits; adapters for timm, ONNX and the user's code."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from core_utils.errors import one_line
from core_utils.training import put_weights, read_weights
from core_utils.training.lite0 import lite0
from core_utils.user_code import call_named
from imagenet_s.errors import ModelError

Model = Callable[[Tensor], Any]


class TrainModeWarning(UserWarning):
    """A model came in training mode: it is measured in evaluation mode and given back as it came."""


def load_model(name: str, device: str = "cpu", *, weights: Path | None = None, download: bool = False) -> Model:
    """Loads a classifier.

    Args:
        name: `timm:NAME`; `onnx:FILE`; `module:FN` or `file.py:FN`, a function without arguments that returns the model
            (this runs that code); or `lite0`, EfficientNet-Lite0 with its ImageNet weights, whose input is
            (x - 127) / 128.
        device: where a torch or ONNX model runs.
        weights: state dictionary for a torch model that is not `lite0`, safetensors or PyTorch's.
        download: let timm fetch or find in its cache the pretrained weights.

    Returns:
        A callable on a float batch; a torch module in evaluation mode.

    Raises:
        ModelError: the name, the code behind it or the weights cannot be used; the message says what would be right.
    """
    source, colon, rest = name.partition(":")
    if download and source != "timm":
        raise ModelError(f"{name}: download is for timm: models")
    if weights is not None and (name == "lite0" or source == "onnx"):
        raise ModelError(f"{name} has its own weights", "leave weights out")
    if name == "lite0":
        model: Any = lite0(install="imagenet-s[lite0]", error=ModelError)
    elif source == "timm" and rest:
        model = _timm(rest, weights, download)
    elif source == "onnx" and rest:
        return OnnxModel(Path(rest), device)
    elif colon and source and rest:
        model = _from_factory(name)
        if weights is not None:
            _load_state(model, weights, name)
    else:
        raise ModelError(f"no model {name!r}", "use timm:NAME, onnx:FILE, module:FN, file.py:FN or lite0")
    return model.eval().to(device) if isinstance(model, nn.Module) else model


@contextlib.contextmanager
def serving(model: Model, device: str = "cpu") -> Iterator[Callable[[Tensor], Float32[np.ndarray, "n c"]]]:
    """Puts a torch model on the device in evaluation mode, and as it was when the block ends.

    Args:
        model: any callable on a float batch.
        device: where a torch model and its batches go.

    Yields:
        A function from a float batch to checked float32 logits.

    Raises:
        ModelError: in the block, when the model fails, or returns another shape, another count, NaN or infinity.

    Warns:
        TrainModeWarning: the model came in training mode.
    """
    if not isinstance(model, nn.Module):
        yield lambda batch: _logits(model, batch.to(device))
        return
    was_training = {module: module.training for module in model.modules()}
    if model.training:
        warnings.warn(
            f"{type(model).__name__} is in training mode; it is measured in evaluation mode", TrainModeWarning, 3
        )
    first = next(model.parameters(), None)
    home, dtype = (None, torch.float32) if first is None else (first.device, first.dtype)
    try:
        model.eval().to(device)
        with torch.inference_mode():
            yield lambda batch: _logits(model, batch.to(device, dtype))
    finally:
        if home is not None:
            model.to(home)
        for module, training in was_training.items():
            module.training = training


def fingerprint(model: Model) -> str:
    """Twelve digits that tell models apart: of a torch module's class and weights, an ONNX file, or a function's name."""
    if isinstance(model, OnnxModel):
        return model.digest[:12]
    whole = hashlib.sha256(_name_of(model).encode())
    if isinstance(model, nn.Module):
        for key, value in model.state_dict().items():
            if isinstance(value, Tensor):
                whole.update(key.encode())
                whole.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()[:12]


class OnnxModel:
    """An ONNX classifier in ONNX Runtime, called with torch batches.

    Attributes:
        file: where it lies.
        digest: SHA-256 of the file.
    """

    def __init__(self, file: Path, device: str = "cpu") -> None:
        runtime = _extra("onnxruntime", "onnx")
        try:
            self.digest = hashlib.sha256(file.read_bytes()).hexdigest()
        except OSError as error:
            raise ModelError(f"onnx:{file} cannot be read: {error.strerror}") from None
        self.file = file
        provider = "CUDAExecutionProvider" if device.startswith("cuda") else "CPUExecutionProvider"
        if provider not in runtime.get_available_providers():
            raise ModelError(f"onnx:{file}: this ONNX Runtime has no {provider}", "use device cpu")
        try:
            self._session = runtime.InferenceSession(str(file), providers=[provider])
        except Exception as error:  # the runtime has many
            raise ModelError(f"onnx:{file} is no model that ONNX Runtime reads: {one_line(error)}") from None
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in ("tensor(float)", "tensor(float16)"):
            found = ", ".join(f"{each.name}: {each.type}" for each in inputs)
            raise ModelError(f"onnx:{file} must take one float batch, it takes {found}")
        self._input = inputs[0].name
        self._dtype = np.float16 if inputs[0].type == "tensor(float16)" else np.float32
        self._batch = inputs[0].shape[0] if inputs[0].shape and isinstance(inputs[0].shape[0], int) else None

    def __call__(self, batch: Float[Tensor, "n ..."]) -> Tensor:
        """Logits, [N, C]; a model that was exported for a fixed batch gets parts of that size, the last one filled up."""
        images = batch.detach().cpu().numpy().astype(self._dtype, copy=False)
        size = self._batch or len(images)
        parts = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            filled = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
            parts.append(self._session.run(None, {self._input: filled})[0][: len(part)])
        return torch.from_numpy(np.concatenate(parts).astype(np.float32, copy=False))


def _logits(model: Model, batch: Tensor) -> Float32[np.ndarray, "n c"]:
    name = _name_of(model)
    try:
        returned = model(batch)
    except ModelError:
        raise
    except Exception as error:  # the user's model
        raise ModelError(f"{name} fails on a batch {list(batch.shape)}: {one_line(error)}") from error
    returned = getattr(returned, "logits", returned)  # as the models of transformers return them
    if isinstance(returned, Tensor):
        returned = returned.detach().float().cpu().numpy()
    if not hasattr(returned, "shape"):
        raise ModelError(f"{name} returns a {type(returned).__name__}", "expected (N, C) logits")
    logits = np.asarray(returned, dtype=np.float32)
    if logits.ndim != 2 or len(logits) != len(batch):
        raise ModelError(f"{name} returns {list(logits.shape)} for {len(batch)} images", "expected (N, C) logits")
    if not np.isfinite(logits).all():
        raise ModelError(f"{name} returns NaN or infinity for {int((~np.isfinite(logits)).any(axis=1).sum())} images")
    return logits


def _timm(name: str, weights: Path | None, download: bool) -> nn.Module:
    timm = _extra("timm", "timm")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=1, cutoff=0.3)
        raise ModelError(f"timm has no model {name!r}", f"did you mean {near[0]!r}?" if near else None)
    if not download and weights is None:
        raise ModelError(f"timm:{name} has random weights without a file of weights", "give weights, or download")
    try:
        model = timm.create_model(name, pretrained=download and weights is None)
    except Exception as error:  # hubs fail in many ways
        raise ModelError(f"timm:{name} cannot be built: {one_line(error)}") from None
    if weights is not None:
        _load_state(model, weights, f"timm:{name}")
    return model


def _load_state(model: Any, weights: Path, name: str) -> None:
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name} gives a {type(model).__name__}", "weights are for torch modules")
    put_weights(model, read_weights(weights, error=ModelError), f"{weights}", error=ModelError)


def _from_factory(name: str) -> Any:
    """Runs the user's own code."""
    model = call_named(name, error=ModelError)
    if not callable(model):
        raise ModelError(f"{name}() returned a {type(model).__name__}", "expected a callable model")
    return model


def _extra(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ModelError(f"{module} is not installed", f'pip install "imagenet-s[{extra}]"') from None


def _name_of(model: Model) -> str:
    named = model if hasattr(model, "__qualname__") else type(model)
    return f"{named.__module__}.{named.__qualname__}"
