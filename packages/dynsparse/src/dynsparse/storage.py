"""A finalised network in a file that does not hold its zeros.

A masked layer is stored as the values that its masks keep, in order, and the masks as bits: 4 bytes a value and a bit for
each position of each mask, one mask if the kernels share it. All else is stored as it is. The file is safetensors; its
header says in JSON which layers are packed, and for a network of the zoo how to build it.

Reference: spec section 2.6, accounting.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Bool, UInt8
from safetensors import SafetensorError
from torch import Tensor, nn

from core_utils.files import write_atomically
from dynsparse.converting import dynamic_layers, unwrapped
from dynsparse.errors import CheckpointError
from dynsparse.loading import load_weights
from dynsparse.models import build

FORMAT = "dynsparse 1"
BITS, VALUES = ".mask.bits", ".weight.values"


def save(model: nn.Module, path: str | Path) -> None:
    """Writes a finalised network, atomically.

    Args:
        model: its masks are frozen, or it has none.
        path: the file.

    Raises:
        RuntimeError: masks that still learn.
        FileError: the folder is not writable, or the disk is full.
    """
    inner = unwrapped(model)
    tensors = {name: value.detach().cpu().contiguous() for name, value in inner.state_dict().items()}
    packed: dict[str, dict[str, list[int]]] = {}
    for name, layer in dynamic_layers(model):
        if not layer.frozen:
            raise RuntimeError(f"the masks of layer {name!r} still learn; call controller.finalize() first")
        if layer.mask is None:
            continue
        key = f"{name}." if name else ""
        weight, mask = tensors.pop(f"{key}weight"), tensors.pop(f"{key}mask")
        packed[name] = {"weight": list(weight.shape), "mask": list(mask.shape)}
        tensors[f"{name}{VALUES}"] = weight[mask.expand_as(weight)]
        tensors[f"{name}{BITS}"] = pack_bits(mask)
    facts = {"format": FORMAT, "packed": json.dumps(packed), "config": json.dumps(getattr(inner, "config", None))}
    write_atomically(Path(path), safetensors.torch.save(tensors, metadata=facts))


def load(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The network that `save` wrote, in evaluation mode; its outputs are the same to the bit.

    Args:
        path: the file.
        model: a network of the same sizes and settings, which is filled and returned; None builds that of the zoo.

    Raises:
        CheckpointError: the file cannot be read, is of another program or damaged, holds a network that is not of the
            zoo while none is given, or does not fit the one that is.
    """
    facts, tensors = _read(Path(path))
    config = json.loads(facts["config"])
    if model is None:
        if config is None:
            raise CheckpointError(f"{path} holds a network that is none of the zoo", "give a model to fill")
        model = build(config)
    state = dict(tensors)
    for name, shapes in json.loads(facts["packed"]).items():
        values, bits = state.pop(f"{name}{VALUES}", None), state.pop(f"{name}{BITS}", None)
        if values is None or bits is None:
            raise CheckpointError(f"{path} is damaged: layer {name!r} has no values or no bits")
        key = f"{name}." if name else ""
        state[f"{key}weight"], state[f"{key}mask"] = _unpacked(values, bits, shapes, f"{path}, layer {name!r}")
    load_weights(model, state)
    return model.eval()


def pack_bits(mask: Bool[Tensor, " ..."]) -> UInt8[Tensor, " n"]:
    """A mask as bits, eight a byte, the first in the highest place."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy().ravel()))


def unpack_bits(bits: UInt8[Tensor, " n"], count: int) -> Bool[Tensor, " count"]:
    """The first `count` bits."""
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=count).astype(bool))


def _unpacked(values: Tensor, bits: Tensor, shapes: Mapping[str, list[int]], where: str) -> tuple[Tensor, Tensor]:
    """Weight and mask of a layer."""
    count = prod(shapes["mask"])
    if bits.dtype != torch.uint8 or len(bits) != -(-count // 8):
        raise CheckpointError(f"{where} is damaged: {len(bits)} bytes of bits for a mask of shape {shapes['mask']}")
    mask = unpack_bits(bits, count).reshape(shapes["mask"])
    everywhere = mask.expand(shapes["weight"])
    if int(everywhere.sum()) != len(values):
        raise CheckpointError(f"{where} is damaged: {len(values)} values for {int(everywhere.sum())} bits that are set")
    weight = values.new_zeros(shapes["weight"])
    weight[everywhere] = values
    return weight, mask


def _read(file: Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """The header's facts and the tensors."""
    try:
        content = file.read_bytes()
        tensors = safetensors.torch.load(content)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None
    (length,) = struct.unpack_from("<Q", content)
    facts = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    if facts.get("format") != FORMAT:
        raise CheckpointError(f"{file} is not of `dynsparse.save`", "plain weights go through `load_weights`")
    return facts, tensors
