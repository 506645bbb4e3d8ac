"""Networks as NIR graphs, the exchange format of neuromorphic simulators and chips (Pedersen et al., 2024).

NIR describes neurons in continuous time, tau dv/dt = -v + r I, and leaves the step to its reader. A reader that takes
forward Euler steps of `dt`, v + dt / tau (r I - v), gets the update of `lif` for

    tau = dt / (1 - decay)    r = input_scale / (1 - decay)    v_leak = v_reset = 0

(with decay 1 an integrator without leak, r = input_scale / dt). With the paper's decay of 0.5 all of these are powers of
two times `dt`. NIR compares with ">"; ">=" becomes ">" with the next smaller number for a threshold, which is the same
in float32.

What NIR cannot say, and what becomes of it:
- the step: it is metadata of the graph, `dt`; a reader that integrates exactly wants tau = -dt / log(decay) instead;
- batch normalisation: it is made part of the convolution before it, with the averages of training;
- time: a reader shows a frame for a step of `dt`, and averages the outputs of all steps itself;
- the soft reset, and a max pool: refused;
- surrogate derivatives, and anything else that only training needs: left out.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from core_utils.errors import UserError
from core_utils.files import write_atomically
from core_utils.spiking.dynamics import Neuron
from core_utils.spiking.networks import LIF, ConvNorm, OverTime, ResidualBlock, SpikingNetwork, fuse_conv_bn

if TYPE_CHECKING:
    import nir


def export_nir(model: SpikingNetwork, path: Path, *, shape: tuple[int, int, int], dt: float = 1e-3) -> None:
    """Writes a network as a NIR graph in an HDF5 file.

    Args:
        model: as it is after training; unchanged.
        path: of the file.
        shape: of a frame, channels, height and width.
        dt: duration of a time step, s.

    Raises:
        UserError: `nir` is not installed, a part that NIR cannot say, or frames that do not fit the network.

    Reference: Pedersen et al., "Neuromorphic intermediate representation", Nature Communications 15, 8122 (2024).
    """
    try:
        import nir
    except ImportError:
        raise UserError("the export needs the package nir", "pip install 'snn-tet[nir]'") from None
    content = io.BytesIO()
    nir.write(content, to_nir(model, shape=shape, dt=dt))
    write_atomically(path, content.getvalue())


def to_nir(model: SpikingNetwork, *, shape: tuple[int, int, int], dt: float = 1e-3) -> nir.NIRGraph:
    """The graph that `export_nir` writes; its arguments and errors."""
    import nir

    if not dt > 0:
        raise UserError(f"dt must be positive, got {dt}")
    network = fuse_conv_bn(model).cpu().float()
    graph = _Graph(shape, dt)
    graph.add("blocks", network.blocks)
    graph.put("flatten", nir.Flatten({"input": np.array(graph.shape)}, start_dim=0), (math.prod(graph.shape),))
    graph.add("readout", network.readout)
    graph.put("output", nir.Output({"output": np.array(graph.shape)}), graph.shape)
    return nir.NIRGraph(graph.nodes, graph.edges, metadata={"dt": dt})


class _Graph:
    """Nodes and edges so far, and where the next node starts from.

    Attributes:
        nodes: by name.
        edges: pairs of names.
        sources: the nodes whose sum the next node takes.
        shape: of that sum, without time and batch.
    """

    def __init__(self, shape: tuple[int, ...], dt: float) -> None:
        import nir

        self.nodes: dict[str, nir.NIRNode] = {"input": nir.Input({"input": np.array(shape)})}
        self.edges: list[tuple[str, str]] = []
        self.sources: tuple[str, ...] = ("input",)
        self.shape = shape
        self.dt = dt

    def put(self, name: str, node: nir.NIRNode, shape: tuple[int, ...]) -> None:
        """Adds a node behind the sources; it is the next source."""
        self.nodes[name] = node
        self.edges += [(source, name) for source in self.sources]
        self.sources, self.shape = (name,), shape

    def add(self, name: str, module: nn.Module) -> None:
        """Adds the nodes that a module stands for."""
        match module:
            case nn.Identity():
                pass
            case ResidualBlock():
                start = self.sources, self.shape
                self.add(f"{name}_first", module.first)
                self.add(f"{name}_second", module.second)
                branch = self.sources
                self.sources, self.shape = start
                self.add(f"{name}_shortcut", module.shortcut)
                self.sources = branch + self.sources
                self.add(f"{name}_spike", module.spike)
            case nn.Sequential() | ConvNorm() | OverTime():
                for part, child in module.named_children():
                    self.add(f"{name}_{part}", child)
            case _:
                self.put(name, _node(name, module, self.shape, self.dt), _shape_after(name, module, self.shape))


def _node(name: str, module: nn.Module, shape: tuple[int, ...], dt: float) -> nir.NIRNode:
    """What NIR calls a layer that takes inputs of a shape."""
    import nir

    match module:
        case LIF():
            return _neurons(module.neuron, shape, dt)
        case nn.Linear():
            return nir.Affine(_array(module.weight), _array(module.bias))
        case nn.Conv2d():
            options = module.stride, module.padding, module.dilation, module.groups
            return nir.Conv2d(shape[1:], _array(module.weight), *options, _array(module.bias))
        case nn.AvgPool2d(kernel_size=int(size), stride=int(stride), padding=0, ceil_mode=False):
            return nir.AvgPool2d(np.array([size, size]), np.array([stride, stride]), np.array([0, 0]))
        case nn.AdaptiveAvgPool2d(output_size=1):
            return nir.AvgPool2d(np.array(shape[1:]), np.array(shape[1:]), np.array([0, 0]))
    raise UserError(f"NIR has no word for {name}, {type(module).__name__}")


def _neurons(neuron: Neuron, shape: tuple[int, ...], dt: float) -> nir.NIRNode:
    """The neuron, at every place of a shape."""
    import nir

    if neuron.reset != "hard":
        raise UserError(f"NIR has no word for the {neuron.reset} reset; it resets to a potential")

    def each(value: float) -> np.ndarray:
        return np.full(shape, value, np.float32)

    threshold = neuron.threshold
    if neuron.compare == ">=":
        threshold = float(np.nextafter(np.float32(threshold), np.float32(-np.inf)))
    rest = {"v_threshold": each(threshold), "v_reset": each(0.0)}
    if neuron.decay == 1:
        return nir.IF(r=each(neuron.input_scale / dt), **rest)
    lost = 1 - neuron.decay
    return nir.LIF(tau=each(dt / lost), r=each(neuron.input_scale / lost), v_leak=each(0.0), **rest)


def _shape_after(name: str, module: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(module, LIF):
        return shape
    try:
        return tuple(module(torch.zeros(1, *shape)).shape[1:])
    except RuntimeError:
        raise UserError(f"frames of this size do not fit the network: {name} is given {list(shape)}") from None


def _array(parameter: Tensor) -> np.ndarray:
    return parameter.detach().numpy()
