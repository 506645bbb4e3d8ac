"""Calibration batches as the model takes them: a tensor, a tuple, a dictionary, or a list of images."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qdrop.errors import CalibrationError

Forward = Callable[[nn.Module, Any], Any]

FEW_SAMPLES = 16
UNSCALED = 20.0
"""Inputs of float models are normalised; values above this look like raw pixels."""


@dataclass(frozen=True)
class Calibration:
    """All calibration batches of one rank, each as the model takes it.

    Args:
        batches: inputs of one forward pass each.
        sizes: samples in each.
    """

    batches: list[Any]
    sizes: list[int]

    @property
    def samples(self) -> int:
        """Samples in all batches."""
        return sum(self.sizes)

    def first(self, samples: int) -> Iterator[tuple[Any, int]]:
        """Batches, the last one cut, that hold the first so many samples together; with the samples in each."""
        for batch, size in zip(self.batches, self.sizes, strict=True):
            if samples <= 0:
                return
            yield (batch, size) if size <= samples else (head(batch, size, samples), samples)
            samples -= size


def run(model: nn.Module, inputs: Any) -> Any:
    """One forward pass: keywords of a dictionary, arguments of a tuple, else the one argument."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def read(
    batches: Iterable[Any], model: nn.Module, example_inputs: Any, forward: Forward | None, device: torch.device
) -> Calibration:
    """Reads and checks all batches.

    Args:
        batches: what a data loader yields; of (inputs, labels) the labels are left out.
        model: decides by its signature whether a dictionary can be given to it.
        example_inputs: how many elements of a tuple are inputs, if it is one.
        forward: runs the model on inputs, where the default does not.
        device: where inputs go.

    Raises:
        CalibrationError: no batch, a batch without samples, values that are not finite, or a batch that the model cannot
            take; the message holds the batch's index.
    """
    found = Calibration([], [])
    for index, batch in enumerate(batches):
        inputs = pytree.tree_map(
            lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, inputs_of(batch, example_inputs)
        )
        _check(inputs, index)
        if isinstance(inputs, Mapping) and forward is None:
            _check_keywords(model, inputs)
        found.batches.append(inputs)
        found.sizes.append(batch_size(inputs, index))
    if not found.samples:
        raise CalibrationError("the calibration data is empty", "give at least one batch of samples")
    if found.samples < FEW_SAMPLES:
        warnings.warn(f"only {found.samples} calibration samples; a few hundred are usual", stacklevel=3)
    return found


def inputs_of(batch: Any, example_inputs: Any = None) -> Any:
    """What of a loader's batch the model is given.

    A tensor, a dictionary, or a list of images as it is; of another tuple or list the first element, or as many as
    `example_inputs` has where that is a tuple.
    """
    if isinstance(batch, (Tensor, Mapping)) or (isinstance(batch, list) and _images(batch)):
        return batch
    if isinstance(batch, (tuple, list)) and batch:
        if isinstance(example_inputs, tuple) and len(example_inputs) > 1:
            return tuple(batch[: len(example_inputs)])
        return batch[0]
    raise CalibrationError(
        f"a batch is {type(batch).__name__}", "yield tensors, tuples, dictionaries or lists of images"
    )


def batch_size(inputs: Any, index: int = 0) -> int:
    """Samples of one batch: the length of a list of images, else of the first tensor.

    Raises:
        CalibrationError: there is no tensor with a batch dimension.
    """
    if isinstance(inputs, list) and _images(inputs):
        return len(inputs)
    for leaf in pytree.tree_leaves(inputs):
        if isinstance(leaf, Tensor) and leaf.dim() > 0:
            return leaf.shape[0]
    raise CalibrationError(f"batch {index} holds no tensor with a batch dimension")


def head(inputs: Any, size: int, samples: int) -> Any:
    """The first samples of a batch."""
    if isinstance(inputs, list):
        return inputs[:samples]

    def cut(leaf: Any) -> Any:
        return leaf[:samples] if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == size else leaf

    return pytree.tree_map(cut, inputs)


def _images(batch: list[Any]) -> bool:
    return len(batch) > 0 and all(isinstance(image, Tensor) and image.dim() == 3 for image in batch)


def _check(inputs: Any, index: int) -> None:
    for leaf in pytree.tree_leaves(inputs):
        if not isinstance(leaf, Tensor):
            continue
        if leaf.is_floating_point() and not torch.isfinite(leaf).all():
            raise CalibrationError(f"calibration batch {index} holds values that are not finite (NaN or infinity)")
        if leaf.dtype == torch.uint8:
            raise CalibrationError(
                f"calibration batch {index} is uint8", "scale pixels as in training, for example (x / 255 - mean) / std"
            )
        if index == 0 and leaf.is_floating_point() and leaf.numel() and leaf.abs().max() > UNSCALED:
            text = f"calibration inputs reach {leaf.abs().max():.0f}; were they scaled as in training?"
            warnings.warn(text, stacklevel=4)


def _check_keywords(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    parameters = inspect.signature(model.forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    unknown = [name for name in inputs if name not in parameters]
    if unknown:
        text = f"the model takes no {', '.join(map(repr, unknown))} that the calibration dictionaries hold"
        raise CalibrationError(text, "leave them out, or say how to run the model by forward=")
