"""Where a training runs: device, processes, random states."""

from __future__ import annotations

import atexit
import os
import random
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy

from core_utils.errors import UserError


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 -- third parties draw from the global state
    torch.manual_seed(seed)


def resolve_device(name: str) -> torch.device:
    """The device of that name; "auto" takes CUDA, then MPS, then the CPU.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name} is unknown", "use cpu, cuda, cuda:1, mps or auto") from None
    available = {"cpu": True, "mps": torch.backends.mps.is_available()}.get(device.type, False)
    if device.type == "cuda":
        available = torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    if not available:
        raise UserError(f"--device {name} is not available here", "use --device cpu or auto")
    return device


def world_size() -> int:
    """Processes of this torchrun group, among which `fit` shares out batches; 1 without a group."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class RandomState:
    """The global random states of Python, NumPy and PyTorch on the CPU and on the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def state_dict(self) -> dict[str, Any]:
        """The states as they are now."""
        states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}  # noqa: NPY002
        return {**states, "cuda": torch.cuda.get_rng_state(self._device)} if self._device.type == "cuda" else states

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Makes the next draws those that followed when the states were taken."""
        random.setstate(state_dict["python"])
        np.random.set_state(state_dict["numpy"])  # noqa: NPY002
        torch.set_rng_state(state_dict["torch"])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state_dict["cuda"], self._device)


def make_fabric(device: str, precision: Any, *, unused_parameters: bool = False) -> Fabric:
    """One process on the device, or this process's share of a torchrun group.

    Args:
        device: by name.
        precision: Fabric's.
        unused_parameters: processes of a group do not wait for gradients of parameters that a loss does not reach.
    """
    where = resolve_device(device)
    world, local = world_size(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if world > 1:
        strategy = DDPStrategy(find_unused_parameters=unused_parameters)
        fabric = Fabric(
            accelerator=where.type, devices=local, num_nodes=world // local, strategy=strategy, precision=precision
        )
    else:
        devices = [where.index or 0] if where.type == "cuda" else 1
        fabric = Fabric(accelerator=where.type, devices=devices, precision=precision)
    fabric.launch()
    if world > 1:
        atexit.register(_leave_group)
    return fabric


def _leave_group() -> None:
    """Ends the group's threads; a process that exits over Gloo's running ones aborts now and then."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
