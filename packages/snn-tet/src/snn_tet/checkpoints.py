"""Weights of the paper's released code for our networks.

That code reaches most layers by several paths, and a checkpoint of it holds each path: a convolution of ResNet-19 twice
(`conv1`, `conv1_s.layer.module`), its batch normalisation four times (`bn1.bn`, `bn1.seqbn.module`, `conv1_s.bn.bn`,
`conv1_s.bn.seqbn.module`), 415 keys in all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from core_utils.errors import UserError
from core_utils.training import put_weights, read_weights

RENAMES = (
    (r"^module\.", ""),  # of nn.DataParallel
    # One path of several.
    (r"_s\.layer\.module\.", "."),
    (r"\bconv(\d)_s\.bn\.", r"bn\1."),
    (r"\bseqbn\.module\.", "bn."),
    # ResNet-19.
    (r"^conv1\.", "blocks.0.conv."),
    (r"^bn1\.bn\.", "blocks.0.norm.norm."),
    (r"\bconv1\.", "first.conv."),
    (r"\bbn1\.bn\.", "first.norm.norm."),
    (r"\bconv2\.", "second.conv."),
    (r"\bbn2\.bn\.", "second.norm.norm."),
    (r"\bdownsample\.layer\.module\.", "shortcut.conv."),
    (r"\bdownsample\.bn\.bn\.", "shortcut.norm.norm."),
    (r"^fc1\.", "readout.0."),
    (r"^fc2\.", "readout.2."),
    # VGGSNN.
    (r"\bfwd\.module\.0\.", "conv."),
    (r"\bfwd\.module\.1\.", "norm.norm."),
    (r"^classifier\.module\.", "readout."),
)
"""Patterns in the released code's keys and what takes their place, one after the other."""
BLOCK = re.compile(r"^(?:layer(\d+)|features)\.(\d+)\.")
"""A block of ResNet-19 by stage and place in it, or of VGGSNN by its place among convolutions and pools."""


def load_reference_checkpoint(model: nn.Module, source: Path | Mapping[str, Tensor]) -> None:
    """Takes over weights and running averages from a checkpoint of the released code.

    Args:
        model: `vggsnn()`, `vggsnn_woap()` or `resnet19()` with as many classes; it changes only if all fits.
        source: a `.pt` file, from which nothing but tensors is read, or its state dict. Our own keys are taken, too.

    Raises:
        UserError: a file that cannot be read or holds anything else; copies of one tensor that differ; a checkpoint
            of another network, with the first 5 keys that are missing, superfluous or of another shape.
    """
    state = read_weights(source) if isinstance(source, Path) else source
    put_weights(model, _by_our_names(state), "the checkpoint")


def _by_our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by our networks' keys, each once."""
    tensors: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for key, tensor in state.items():
        name = key
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        if not torch.equal(tensors.setdefault(name, tensor), tensor):
            raise UserError(
                f"{origin[name]} and {key} are one tensor in the released code, but differ in the checkpoint"
            )
        origin.setdefault(name, key)
    places = sorted({_place(match) for match in map(BLOCK.match, tensors) if match})
    stem = any(name.startswith("blocks.0.") for name in tensors)
    blocks = {place: f"blocks.{index}." for index, place in enumerate(places, start=int(stem))}
    return {BLOCK.sub(lambda match: blocks[_place(match)], name): tensor for name, tensor in tensors.items()}


def _place(match: re.Match[str]) -> tuple[int, int]:
    """Stage, and block in it."""
    return int(match[1] or 0), int(match[2])
