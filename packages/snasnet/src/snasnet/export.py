"""Trained networks for other programs: one time step as ONNX, the whole as a NIR graph.

ONNX knows no time. What a network remembers becomes inputs and outputs of one step: feed zeros first, then what the last
step gave, and average the scores over the steps. Batch normalisation has the averages of training.

NIR describes neurons in continuous time. A reader that takes forward Euler steps of `dt` gets our update,
u = v + (x - v) / tau, from a time constant of tau `dt`, and resets to 0. NIR compares with ">": ours, ">=", becomes ">"
with the next smaller number for a threshold, the same in float32. Normalisation is made part of the convolution before
it, or a scale and a bias of its own behind a sum. Feedback makes cycles, which clocked readers take for a delay of one
step. The average pool of a cell counts its padding and is written as a convolution.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from core_utils.errors import UserError
from core_utils.files import write_atomically
from core_utils.spiking.norm import TimeBatchNorm2d
from snasnet.cells import CONVOLUTIONS, INPUT, NODES, OUTPUT, SKIP
from snasnet.networks import Neurons, SNASNet, SpikingCell

if TYPE_CHECKING:
    import nir


class Step(nn.Module):
    """One time step of a network in evaluation mode, in plain operations.

    Args:
        model: unchanged.

    Attributes:
        states: names of what it remembers, in the order of inputs and outputs.
    """

    def __init__(self, model: SNASNet) -> None:
        super().__init__()
        self.model = model.eval()
        self.states: tuple[str, ...] = ()
        zeros = torch.zeros(1, model.spec.in_channels, *model.spec.shape, device=model.stem.weight.device)
        found: dict[str, Tensor] = {}
        with torch.no_grad():
            self._run(zeros, {}, found)
        self.states = tuple(found)
        self._shapes = [value.shape[1:] for value in found.values()]

    def rest(self, samples: int) -> tuple[Tensor, ...]:
        """What it remembers before the first step."""
        return tuple(torch.zeros(samples, *shape) for shape in self._shapes)

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Class scores of this step, and what it remembers."""
        after: dict[str, Tensor] = {}
        scores = self._run(x, dict(zip(self.states, states, strict=True)), after)
        return (scores, *(after[name] for name in self.states or after))

    def _run(self, x: Tensor, before: dict[str, Tensor], after: dict[str, Tensor]) -> Tensor:
        model = self.model

        def fire(name: str, neurons: Neurons, x: Tensor) -> Tensor:
            u = neurons.neuron.input_scale * x
            if name in before:
                u = neurons.neuron.decay * before[name] + u
            spikes = (u >= neurons.neuron.threshold).to(x.dtype)
            after[name] = u * (1 - spikes)
            return spikes

        x = self._cell("cell1", model.cell1, model.stem_norm.norm(model.stem(x)), before, after, fire)
        x = model.reduction_conv(fire("reduction", model.reduction_spike, model.reduction_norm.norm(x)))
        x = nn.functional.avg_pool2d(model.reduction_conv_norm.norm(x), 2)
        x = self._cell("cell2", model.cell2, x, before, after, fire)
        x = fire("vector", model.vector_spike, model.vector_norm.norm(x))
        if model.hidden is None:
            x = x.mean((2, 3))
        else:
            side = int(model.vector_pool.kernel_size)  # type: ignore[arg-type]
            x = fire("hidden", model.hidden_spike, model.hidden(nn.functional.avg_pool2d(x, side).flatten(1)))
        return model.readout(x).unflatten(-1, (-1, model.group)).mean(-1)

    def _cell(
        self,
        name: str,
        cell: SpikingCell,
        x: Tensor,
        before: dict[str, Tensor],
        after: dict[str, Tensor],
        fire: Callable[[str, Neurons, Tensor], Tensor],
    ) -> Tensor:
        fired: dict[int, Tensor] = {}
        nodes: list[Tensor] = []

        def along(edge: Any) -> Tensor:
            operation: Any = cell.edges[edge.name]
            if edge.operation not in CONVOLUTIONS:
                return operation(nodes[edge.source])
            if edge.source not in fired:
                fired[edge.source] = fire(f"{name}_node{edge.source}", operation.spike, nodes[edge.source])
            return operation.norm.norm(operation.conv(fired[edge.source]))

        for node in range(NODES):
            terms = [x] if node == INPUT else []
            terms += [along(edge) for edge in cell.cell.forward_edges if edge.target == node]
            key = f"{name}_feedback{node}"
            terms += [before[key]] if key in before else []
            nodes.append(sum(terms[1:], terms[0]) if terms else torch.zeros_like(x))
        for edge in cell.cell.backward_edges:
            key, value = f"{name}_feedback{edge.target}", along(edge)
            after[key] = after[key] + value if key in after else value
        return nodes[OUTPUT]


def export_onnx(model: SNASNet, path: Path) -> None:
    """Writes one time step as an ONNX file; inputs are `x` and the states, outputs `scores` and the states after it.

    Args:
        model: as it is after training; put into evaluation mode.
        path: of the file.

    Raises:
        UserError: `onnx` is not installed.
    """
    try:
        import onnxscript  # noqa: F401 -- torch's exporter needs it, and onnx with it
    except ImportError:
        raise UserError("the export needs the packages onnx and onnxscript", "pip install 'snasnet[onnx]'") from None
    step = Step(model.cpu())
    x = torch.zeros(2, model.spec.in_channels, *model.spec.shape)
    names = [f"{state}_after" for state in step.states]
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's exporter warns of its own internals
        program = torch.onnx.export(
            step,
            (x, *step.rest(2)),
            input_names=["x", *step.states],
            output_names=["scores", *names],
            dynamic_shapes={"x": {0: batch}, "states": tuple({0: batch} for _ in step.states)},
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise UserError("torch gave no ONNX program")
    write_atomically(path, program.model_proto.SerializeToString())


def export_nir(model: SNASNet, path: Path, *, dt: float = 1e-3) -> None:
    """Writes a network as a NIR graph in an HDF5 file; arguments and errors as of `to_nir`."""
    graph = to_nir(model, dt=dt)
    import nir

    content = io.BytesIO()
    nir.write(content, graph)
    write_atomically(path, content.getvalue())


def to_nir(model: SNASNet, dt: float = 1e-3) -> nir.NIRGraph:
    """A network as a NIR graph.

    Args:
        model: as it is after training; unchanged.
        dt: duration of a time step, s.

    Raises:
        UserError: `nir` is not installed, or `dt` is not positive.

    Reference: Pedersen et al., "Neuromorphic intermediate representation", Nature Communications 15, 8122 (2024).
    """
    try:
        import nir
    except ImportError:
        raise UserError("the export needs the package nir", "pip install 'snasnet[nir]'") from None
    if not dt > 0:
        raise UserError(f"dt must be positive, got {dt}")
    graph = _Graph(dt)
    graph.network(model)
    return nir.NIRGraph(graph.nodes, graph.edges, metadata={"dt": dt})


class _Graph:
    """Nodes and edges so far."""

    def __init__(self, dt: float) -> None:
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.dt = dt

    def network(self, model: SNASNet) -> None:
        import nir

        height, breadth = model.spec.shape
        width = model.stem.out_channels
        self.put("input", nir.Input({"input": np.array([model.spec.in_channels, height, breadth])}), [])
        self.conv("stem", model.stem, model.stem_norm, (height, breadth), ["input"])
        image = (height // model.stem.stride[0], breadth // model.stem.stride[1])
        behind = self.cell("cell1", model.cell1, width, image, ["stem"])
        self.norm("reduction_norm", model.reduction_norm, image, behind)
        self.neurons("reduction", model.reduction_spike, (width, *image), ["reduction_norm"])
        self.conv("reduction_conv", model.reduction_conv, model.reduction_conv_norm, image, ["reduction"])
        self.pool("reduction_pool", (2, 2), ["reduction_conv"])
        image = (image[0] // 2, image[1] // 2)
        behind = self.cell("cell2", model.cell2, 2 * width, image, ["reduction_pool"])
        self.norm("vector_norm", model.vector_norm, image, behind)
        self.neurons("vector", model.vector_spike, (2 * width, *image), ["vector_norm"])
        side = image if model.hidden is None else (int(model.vector_pool.kernel_size),) * 2  # type: ignore[arg-type]
        self.pool("vector_pool", side, ["vector"])
        pooled = np.array([2 * width, image[0] // side[0], image[1] // side[1]])
        self.put("flatten", nir.Flatten({"input": pooled}, start_dim=0), ["vector_pool"])
        behind = ["flatten"]
        if model.hidden is not None:
            self.put("hidden_weight", nir.Linear(_array(model.hidden.weight)), behind)
            self.neurons("hidden", model.hidden_spike, (model.hidden.out_features,), ["hidden_weight"])
            behind = ["hidden"]
        # The vote of a class is the mean of its group: of weights and biases.
        weight = model.readout.weight.unflatten(0, (-1, model.group)).mean(1)
        bias = model.readout.bias.unflatten(0, (-1, model.group)).mean(1)
        self.put("readout", nir.Affine(_array(weight), _array(bias)), behind)
        self.put("output", nir.Output({"output": np.array([len(bias)])}), ["readout"])

    def cell(self, name: str, cell: SpikingCell, channels: int, image: tuple[int, int], behind: list[str]) -> list[str]:
        """Adds a cell; every node is a sum, a scale of 1. Gives what its output is read from."""
        import nir

        shape = (channels, *image)
        for node in range(NODES):
            sources = behind if node == INPUT else []
            self.put(f"{name}_node{node}", nir.Scale(np.ones(shape, np.float32)), sources)
        for edge in cell.cell.edges:
            operation: Any = cell.edges[edge.name]
            source, target, own = f"{name}_node{edge.source}", f"{name}_node{edge.target}", f"{name}_{edge.name}"
            if edge.operation == SKIP:
                # Feedback passes a node of its own: two nodes that are joined both ways would be one edge to a reader.
                self.put(own, nir.Scale(np.ones(shape, np.float32)), [source])
            elif edge.operation in CONVOLUTIONS:
                self.neurons(f"{own}_spike", operation.spike, shape, [source])
                self.conv(own, operation.conv, operation.norm, image, [f"{own}_spike"])
            else:
                none = np.zeros(channels, np.float32)
                weight = _alone(np.full((channels, 3, 3), 1 / 9, np.float32))
                self.put(own, nir.Conv2d(image, weight, 1, 1, 1, 1, none), [source])
            self.edges.append((own, target))
        return [f"{name}_node{OUTPUT}"]

    def put(self, name: str, node: Any, sources: list[str]) -> None:
        self.nodes[name] = node
        self.edges += [(source, name) for source in sources]

    def conv(
        self, name: str, conv: nn.Conv2d, norm: TimeBatchNorm2d, image: tuple[int, int], sources: list[str]
    ) -> None:
        import nir

        own = norm.norm
        weight, bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, own.running_mean, own.running_var, own.eps, own.weight, own.bias
        )
        options = (conv.stride, conv.padding, conv.dilation, conv.groups)
        self.put(name, nir.Conv2d(image, _array(weight), *options, _array(bias)), sources)

    def norm(self, name: str, norm: TimeBatchNorm2d, image: tuple[int, int], sources: list[str]) -> None:
        """Normalisation behind a sum, as a convolution of one pixel."""
        import nir

        own: Any = norm.norm
        scale = own.weight / torch.sqrt(own.running_var + own.eps)
        weight, bias = _alone(_array(scale)[:, None, None]), own.bias - scale * own.running_mean
        self.put(name, nir.Conv2d(image, weight, 1, 0, 1, 1, _array(bias)), sources)

    def neurons(self, name: str, neurons: Neurons, shape: tuple[int, ...], sources: list[str]) -> None:
        import nir

        own = neurons.neuron
        threshold = float(np.nextafter(np.float32(own.threshold), np.float32(-np.inf)))
        tau, one = self.dt / (1 - own.decay), own.input_scale / (1 - own.decay)
        values = {"tau": tau, "r": one, "v_leak": 0.0, "v_threshold": threshold, "v_reset": 0.0}
        self.put(name, nir.LIF(**{key: np.full(shape, value, np.float32) for key, value in values.items()}), sources)

    def pool(self, name: str, side: tuple[int, int], sources: list[str]) -> None:
        import nir

        self.put(name, nir.AvgPool2d(np.array(side), np.array(side), np.array([0, 0])), sources)


def _alone(kernels: np.ndarray) -> np.ndarray:
    """Weights [C, C, k, k] of a convolution that keeps channels apart; NIR gets the shapes of grouped ones wrong."""
    channels = len(kernels)
    weight = np.zeros((channels, *kernels.shape), np.float32)
    weight[np.arange(channels), np.arange(channels)] = kernels
    return weight


def _array(parameter: Tensor) -> np.ndarray:
    return parameter.detach().cpu().numpy()
