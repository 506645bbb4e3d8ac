"""From a finalised model to one whose zeros pay: `compile_sparse`.

Reference: spec sections 6, 8 and 9.
"""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynsparse.converting import dynamic_layers, unwrapped
from dynsparse.errors import check_choice
from dynsparse.layers import SDConvNd
from dynsparse.routers import ODConvRouter
from dynsparse.runtime import native
from dynsparse.runtime.folding import FOLDING, Follower, absorb, followers
from dynsparse.runtime.layer import SPARSE, Choice, SparseConv
from dynsparse.runtime.pattern import sparse_kernels

BACKENDS = ("auto", *SPARSE, "dense")
"""What `compile_sparse` takes."""


@dataclass(frozen=True)
class LayerReport:
    """How a layer of a compiled model runs.

    Attributes:
        name: of the layer.
        union: density of the pattern that an inference walks over; None for a layer that was left as it was.
        weight_bytes: of its values and indices; None likewise.
        folded: names of the modules that the layer does, too.
        choices: one for each input shape that came by.
        reason: why the layer was left as it was, or None.
    """

    name: str
    union: float | None
    weight_bytes: int | None
    folded: tuple[str, ...]
    choices: tuple[Choice, ...]
    reason: str | None = None

    def __str__(self) -> str:
        if self.union is None or self.weight_bytes is None:
            return f"{self.name}: left as it was, {self.reason}"
        text = f"{self.name}: union density {self.union:.3f}, {self.weight_bytes} B"
        return "\n".join([text, *(f"  {list(each.shape)}: {each.backend} ({each.reason})" for each in self.choices)])


class CompiledModel(nn.Module):
    """A model for inference on CPUs, with the sparse runtime in place of its dynamic layers.

    Attributes:
        model: the copy that runs.
        untraced: why nothing was folded into the layers, or None.
    """

    def __init__(self, model: nn.Module, folded: dict[str, Follower], untraced: str | None) -> None:
        super().__init__()
        self.model, self.untraced = model, untraced
        self._folded = folded
        self.eval()

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """As the model's."""
        return self.model(*inputs, **named)

    def train(self, mode: bool = True) -> CompiledModel:
        """Refuses: a compiled model only infers.

        Raises:
            RuntimeError: for mode=True.
        """
        if mode:
            raise RuntimeError("a compiled model cannot train; train the model that it was made of")
        super().train(False)
        return self

    def report(self) -> list[LayerReport]:
        """Which back-end each layer runs on, and why; choices are there once inputs have come by."""
        reports = []
        for name, module in self.model.named_modules():
            if isinstance(module, SparseConv):
                names = self._folded[name].names if name in self._folded else ()
                kernels = module.kernels
                choices = tuple(module.choices.values())
                reports.append(LayerReport(name, kernels.union, kernels.nbytes, names, choices))
            elif isinstance(module, SDConvNd):
                reports.append(LayerReport(name, None, None, (), (), refusal(module)))
        return reports


def compile_sparse(
    model: nn.Module, backend: str = "auto", min_gain: float | int = 1.1, example: Tensor | None = None
) -> CompiledModel:
    """An eval-only copy whose dynamic layers walk over nonzeros.

    The back-end of a layer is chosen when the first input of a shape comes: by "auto" the first that is installed of
    the compiled kernel, torch's CSR matrices (MKL) and SciPy's is timed beside all exact dense forms, and stays if it is
    at least `min_gain` times as fast as the best of them. Batch norms and ReLUs that only see a layer's output are done
    by the layer; static convolutions take their batch norms. Layers with ODConv's router, or in another precision than
    float32, stay as they are.

    Args:
        model: finalised and in eval mode.
        backend: "auto", or "native", "mkl", "torch", "scipy" or "dense" for every layer; "torch" is "mkl" without
            asking whether torch has MKL.
        min_gain: what a sparse back-end must gain over the best dense form under "auto".
        example: an input to choose back-ends for now.

    Raises:
        RuntimeError: the model is in training mode or has masks that still learn; or the back-end is not installed.
        ConfigError: no such back-end.
    """
    check_choice("backend", backend, BACKENDS)
    layers = dynamic_layers(model)
    if model.training:
        raise RuntimeError("the model is in training mode; call model.eval() first")
    for name, layer in layers:
        if not layer.frozen:
            raise RuntimeError(f"the masks of layer {name!r} still learn; call controller.finalize() first")
    check_installed(backend)
    made = copy.deepcopy(unwrapped(model)).cpu().requires_grad_(False)
    found, untraced = followers(made)
    folded: dict[str, Follower] = {}
    swaps: dict[nn.Module, nn.Module] = {}
    for name, layer in dynamic_layers(made):
        if refusal(layer) is None:
            follower = found.get(name, Follower())
            folded[name] = follower
            packed = sparse_kernels(layer, follower.scale, follower.shift, follower.low, follower.high)
            swaps[layer] = SparseConv(layer, packed, backend, float(min_gain))
            swaps |= {made.get_submodule(other): nn.Identity() for other in follower.names}
    for name, follower in found.items():
        conv: Any = made.get_submodule(name)
        plain = type(conv) in FOLDING and "weight" in conv._parameters  # no weight that is computed in each call
        if plain and follower.scale is not None and follower.shift is not None:
            absorb(conv, follower.scale, follower.shift)
            swaps[made.get_submodule(follower.names[0])] = nn.Identity()
    compiled = CompiledModel(swapped(made, swaps), folded, untraced)
    if example is not None:
        compiled(example)
    return compiled


def refusal(layer: SDConvNd) -> str | None:
    """Why a layer cannot be packed, or None."""
    if isinstance(layer.router, ODConvRouter):
        return "ODConv scales positions and channels for each sample"
    if layer.weight.dtype != torch.float32:
        return f"its weights are {layer.weight.dtype}, and the runtime computes in torch.float32"
    return None


def check_installed(backend: str) -> None:
    """That a back-end which was asked for by name can run at all.

    Raises:
        RuntimeError: it cannot; the message says what is missing.
    """
    missing = {
        "native": None if native.instruction_sets() else "dynsparse was installed without its compiled kernel",
        "mkl": None if torch.backends.mkl.is_available() else "this torch has no MKL",
        "scipy": None if importlib.util.find_spec("scipy") else "SciPy is not installed",
    }.get(backend)
    if missing is not None:
        raise RuntimeError(f"backend {backend!r} cannot run: {missing}")


def swapped(model: nn.Module, swaps: dict[nn.Module, nn.Module]) -> nn.Module:
    """The model with some modules replaced, wherever they stand."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module not in swaps:
            continue
        if not name:
            return swaps[module]
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, swaps[module])
    return model
