"""A state is one safetensors file: arrays, JSON facts in the header, and a SHA-256 over both."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

FORMAT = 1
"""Version of the header."""


class DamagedState(Exception):  # noqa: N818 -- what is damaged, not who erred
    """The content is torn, altered or no state at all."""


def pack(tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any], *, owner: str) -> bytes:
    """The content of a state file.

    Args:
        tensors: arrays by name, any shape and any dtype that safetensors knows.
        facts: JSON data.
        owner: digest of the configuration that the state belongs to.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    header = {"format": str(FORMAT), "owner": owner, "facts": json.dumps(facts, allow_nan=False)}
    return save(arrays, metadata={**header, "sha256": _digest(arrays, header)})


def unpack(content: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any], str]:
    """The tensors, facts and owner of a state file's content.

    Raises:
        DamagedState: the content is torn, altered, or of another format.
    """
    try:
        (length,) = struct.unpack_from("<Q", content)
        header = json.loads(content[8 : 8 + length])["__metadata__"]
        tensors = load(content)
        if header["format"] != str(FORMAT):
            raise DamagedState(f"has format {header['format']}, this version reads {FORMAT}")
        if header["sha256"] != _digest(tensors, header):
            raise DamagedState("does not match its checksum")
        return tensors, json.loads(header["facts"]), header["owner"]
    except (struct.error, ValueError, KeyError, TypeError, SafetensorError):
        raise DamagedState("is torn or no state file") from None


def _digest(tensors: Mapping[str, np.ndarray], header: Mapping[str, str]) -> str:
    digest = hashlib.sha256("\0".join((header["format"], header["owner"], header["facts"])).encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"\0{name}\0{array.dtype.name}\0{array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
