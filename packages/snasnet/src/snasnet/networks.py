"""The network around a cell, and the cell itself with feedback that arrives one step later.

    h_0(t) = x(t) + b_0(t)
    h_j(t) = sum over i < j of A_ij(h_i(t)) + b_j(t)        j = 1, 2
    h_3(t) = sum over i < 3 of A_i3(h_i(t))                 the output; no feedback reaches it
    b_j(t+1) = sum over i > j of A_ij(h_i(t))               j = 0, 1, 2; b_j(0) = 0

Feedback runs inside step t on the features of t; only its sum is delayed.

What a network remembers from one time step to the next lies in a `Memory` of the call, never in the network: the same
input gives the same output, whatever came before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from core_utils.errors import UserError
from core_utils.spiking.dynamics import Neuron
from core_utils.spiking.layout import over_time
from core_utils.spiking.networks import LIF
from core_utils.spiking.neurons import lif
from core_utils.spiking.norm import TimeBatchNorm2d
from core_utils.spiking.pooling import AvgPool2d
from core_utils.spiking.surrogates import atan
from snasnet.cells import CONVOLUTIONS, INPUT, NODES, OUTPUT, SKIP, Cell, Edge
from snasnet.specs import DatasetSpec

HEADS = ("paper", "gap")


@dataclass(eq=False)
class Memory:
    """What one call of a network remembers between time steps.

    Attributes:
        kept: by module: membrane potentials, a cell's feedback, a dropout mask.
        last: the steps to come are the call's last ones.
    """

    kept: dict[nn.Module, Any] = field(default_factory=dict)
    last: bool = True


class Neurons(LIF):
    """LIF neurons whose membrane potential goes on in a call's memory."""

    def forward(
        self,
        x_seq: Float[Tensor, "T B *shape"],
        memory: Memory | None = None,
        fired: Float[Tensor, "T B *shape"] | None = None,
    ) -> Float[Tensor, "T B *shape"]:
        """Spikes, 0 or 1; from rest without a memory. Where the like neurons of another edge have `fired`, just these."""
        if fired is not None:
            return fired
        memory = Memory() if memory is None else memory
        channels_last = x_seq.ndim == 5 and x_seq[0].is_contiguous(memory_format=torch.channels_last)
        # Neurons are alike: in the order of their memory they need no copy.
        rows = x_seq.permute(0, 1, 3, 4, 2) if channels_last else x_seq
        spikes, memory.kept[self] = lif(
            rows, **vars(self.neuron), v0=memory.kept.get(self), return_v=True, backend=self.backend
        )
        return spikes.permute(0, 1, 4, 2, 3) if channels_last else spikes


class SpikingConv(nn.Module):
    """LIF, convolution without bias, batch normalisation of each step.

    Args:
        channels: C, before and after.
        kernel_size: odd, pixels.
        neuron: dynamics.
    """

    def __init__(self, channels: int, kernel_size: int, neuron: Neuron) -> None:
        super().__init__()
        self.spike = Neurons(neuron)
        self.conv = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = TimeBatchNorm2d(channels, statistics="per_step")

    def forward(
        self,
        x_seq: Float[Tensor, "T B C H W"],
        memory: Memory,
        shared: dict[int, Tensor],
        source: int,
        *,
        spikes_only: bool = False,
    ) -> Float[Tensor, "T B C H W"]:
        """The normalised sequence, or only the spikes if nothing reads the rest.

        Edges that leave one node have like neurons with the same input: the first computes the spikes of all.
        """
        spikes = shared[source] = self.spike(x_seq, memory, shared.get(source))
        return spikes if spikes_only else self.norm(over_time(self.conv, spikes))


class SpikingCell(nn.Module):
    """One cell of the network, with weights of its own.

    Args:
        cell: only its edges that do something have modules.
        channels: C.
        neuron: dynamics.
        compat: compute the feedback of the last step in training, as the reference does: its running averages see it.
    """

    def __init__(self, cell: Cell, channels: int, neuron: Neuron, *, compat: bool = False) -> None:
        super().__init__()
        self.cell = cell
        self.compat = compat
        self.edges = nn.ModuleDict({edge.name: _operation(edge, channels, neuron) for edge in cell.edges})

    def forward(self, x_seq: Float[Tensor, "T B C H W"], memory: Memory | None = None) -> Float[Tensor, "T B C H W"]:
        """The output node at every step; without feedback all steps are computed together."""
        memory = Memory() if memory is None else memory
        if not self.cell.n_backward:
            return self._nodes(x_seq, {}, memory, {})[OUTPUT]
        outputs, end = [], len(x_seq) - 1
        for t in range(len(x_seq)):
            shared: dict[int, Tensor] = {}
            nodes = self._nodes(x_seq[t : t + 1], memory.kept.get(self, {}), memory, shared)
            outputs.append(nodes[OUTPUT])
            memory.kept[self] = self._feedback(nodes, memory, shared, unread=memory.last and t == end)
        return torch.cat(outputs)

    def _nodes(
        self, x_seq: Tensor, feedback: dict[int, Tensor], memory: Memory, shared: dict[int, Tensor]
    ) -> list[Tensor]:
        nodes: list[Tensor] = []
        for node in range(NODES):
            terms = [x_seq] if node == INPUT else []
            terms += [
                self._along(edge, nodes, memory, shared) for edge in self.cell.forward_edges if edge.target == node
            ]
            terms += [feedback[node]] if node in feedback else []
            nodes.append(sum(terms[1:], terms[0]) if terms else torch.zeros_like(x_seq))
        return nodes

    def _feedback(
        self, nodes: list[Tensor], memory: Memory, shared: dict[int, Tensor], *, unread: bool
    ) -> dict[int, Tensor]:
        """By target, the sums for the next step; where no step follows, its neurons fire and nothing else runs."""
        wanted = not unread or (self.compat and self.training)
        sums: dict[int, Tensor] = {}
        for edge in self.cell.backward_edges:
            value = self._along(edge, nodes, memory, shared, spikes_only=not wanted)
            sums[edge.target] = sums[edge.target] + value if edge.target in sums else value
        return {} if unread else sums

    def _along(
        self, edge: Edge, nodes: list[Tensor], memory: Memory, shared: dict[int, Tensor], *, spikes_only: bool = False
    ) -> Tensor:
        operation, x_seq = self.edges[edge.name], nodes[edge.source]
        if isinstance(operation, SpikingConv):
            return operation(x_seq, memory, shared, edge.source, spikes_only=spikes_only)
        return x_seq if spikes_only or edge.operation == SKIP else over_time(operation, x_seq)


class SharedDropout(nn.Dropout):
    """Dropout with one mask for all time steps of a call."""

    def forward(self, x_seq: Float[Tensor, "T B F"], memory: Memory | None = None) -> Float[Tensor, "T B F"]:
        """The same features off at every step, in training."""
        if not self.training or self.p == 0:
            return x_seq
        memory = Memory() if memory is None else memory
        if self not in memory.kept:
            memory.kept[self] = functional.dropout(torch.ones_like(x_seq[0]), self.p)
        return x_seq * memory.kept[self]


class SNASNet(nn.Module):
    """Stem, cell, reduction, the same cell at twice the width, and a classifier that votes.

    Args:
        cell: the architecture; both cells have it, each with weights of its own. Parts off every path are left out.
        spec: of the data.
        width: C of the first cell; None is the paper's 128.
        T: time steps for which a still image is shown.
        tau: membrane time constant, steps; u = v + (x - v) / tau.
        threshold: membrane potential that a spike needs.
        p2: side of the pooled squares before the classifier, pixels.
        hidden: neurons of the classifier.
        group: outputs that vote for each class; None is 10 up to 10 classes and 5 above, as the paper has it.
        head: "paper"; or "gap", which averages over the whole image and has no hidden layer.
        stem_stride: of the first convolution; 2 for TinyImageNet.
        compat: do what only the reference does: running averages see the feedback of the last step, and scores are
            taken with dropout.

    Raises:
        UserError: a cell without a direct edge from input to output, an image whose size does not divide, an unknown
            head, or a number that must be positive and is not.

    Reference: arXiv 2201.10355 and its released code.
    """

    def __init__(
        self,
        cell: Cell | str,
        spec: DatasetSpec,
        width: int | None = None,
        T: int = 5,
        tau: float | int = 4 / 3,
        threshold: float | int = 1.0,
        p2: int = 2,
        hidden: int = 1024,
        group: int | None = None,
        head: str = "paper",
        *,
        stem_stride: int = 1,
        compat: bool = False,
    ) -> None:
        super().__init__()
        cell = Cell(cell) if isinstance(cell, str) else cell
        width = 128 if width is None else width
        group = (10 if spec.num_classes <= 10 else 5) if group is None else group
        sizes = {"width": width, "T": T, "p2": p2, "hidden": hidden, "group": group, "stem_stride": stem_stride}
        _check(cell, spec, head, tau, sizes)
        self.cell, self.spec, self.T, self.group, self.compat = cell.pruned(), spec, T, group, compat
        neuron = lif_neuron(tau, threshold)
        self.stem = nn.Conv2d(spec.in_channels, width, 3, stem_stride, 1, bias=False)
        self.stem_norm = TimeBatchNorm2d(width, statistics="per_step")
        self.cell1 = SpikingCell(self.cell, width, neuron, compat=compat)
        self.reduction_norm = TimeBatchNorm2d(width, statistics="per_step")
        self.reduction_spike = Neurons(neuron)
        self.reduction_conv = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.reduction_conv_norm = TimeBatchNorm2d(2 * width, statistics="per_step")
        self.reduction_pool = AvgPool2d(2)
        self.cell2 = SpikingCell(self.cell, 2 * width, neuron, compat=compat)
        self.vector_norm = TimeBatchNorm2d(2 * width, statistics="per_step")
        self.vector_spike = Neurons(neuron)
        height, breadth = (side // (2 * stem_stride) for side in spec.shape)
        outputs = group * spec.num_classes
        self.hidden: nn.Linear | None = None
        if head == "paper":
            self.vector_pool: nn.Module = AvgPool2d(p2)
            features = 2 * width * (height // p2) * (breadth // p2)
            self.hidden = nn.Linear(features, hidden, bias=False)
            self.hidden_spike = Neurons(neuron)
            self.readout = nn.Linear(hidden, outputs)
        else:
            self.vector_pool = nn.AdaptiveAvgPool2d(1)
            self.readout = nn.Linear(2 * width, outputs)
        self.dropout = SharedDropout(0.5)
        self.initialise()

    def initialise(self) -> None:
        """Draws all weights anew from torch's global generator; normalisation starts at its neutral values."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=2)  # the reference's slope
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()

    def forward(self, x: Float[Tensor, "B C H W"] | Float[Tensor, "T B C H W"]) -> Float[Tensor, "B K"]:
        """Class scores: the votes, averaged over time.

        Args:
            x: images, shown for `T` steps, or a sequence of frames of any length.
        """
        return self.forward_sequence(x).mean(0)

    def forward_sequence(
        self, x: Float[Tensor, "B C H W"] | Float[Tensor, "T B C H W"], *, step_by_step: bool = False
    ) -> Float[Tensor, "T B K"]:
        """Class scores of every step.

        Args:
            x: as of `forward`.
            step_by_step: run the whole network for one step after the other, which holds the features of one step only;
                by default each layer runs over all steps where it can. Both give the same but for rounding.
        """
        still = x.ndim == 4
        self._check_input(x)
        x_seq = self.stem_norm(over_time(self.stem, x[None] if still else x))
        steps = self.T if still else len(x)
        if still:
            x_seq = x_seq.expand(steps, *x_seq.shape[1:])
        memory = Memory()
        if not step_by_step:
            return self._after_stem(x_seq, memory)
        outputs = []
        for t in range(steps):
            memory.last = t == steps - 1
            outputs.append(self._after_stem(x_seq[t : t + 1], memory))
        return torch.cat(outputs)

    def _after_stem(self, x_seq: Tensor, memory: Memory) -> Tensor:
        x_seq = self.reduction_spike(self.reduction_norm(self.cell1(x_seq, memory)), memory)
        x_seq = self.reduction_conv_norm(over_time(self.reduction_conv, x_seq))
        x_seq = self.cell2(over_time(self.reduction_pool, x_seq), memory)
        x_seq = self.vector_spike(self.vector_norm(x_seq), memory)
        features = self.dropout(over_time(self.vector_pool, x_seq).flatten(2), memory)
        if self.hidden is not None:
            features = self.hidden_spike(self.hidden(features), memory)
        return self.readout(features).unflatten(-1, (-1, self.group)).mean(-1)

    def _check_input(self, x: Tensor) -> None:
        wanted = (self.spec.in_channels, *self.spec.shape)
        if x.ndim not in (4, 5) or tuple(x.shape[-3:]) != wanted:
            raise UserError(
                f"the network takes images of {wanted[0]} channels and {wanted[1]} x {wanted[2]} pixels, "
                f"got shape {list(x.shape)}"
            )
        if len(x) == 0:
            raise UserError("a network needs at least one time step and one image")


def lif_neuron(tau: float | int = 4 / 3, threshold: float | int = 1.0) -> Neuron:
    """The paper's neuron: u = v + (x - v) / tau, a spike from the threshold on, hard reset without gradient."""
    return Neuron(
        decay=1 - 1 / tau,
        threshold=float(threshold),
        input_scale=1 / tau,
        compare=">=",
        reset="hard",
        detach_reset=True,
        surrogate=atan(2.0),
    )


def _operation(edge: Edge, channels: int, neuron: Neuron) -> nn.Module:
    if edge.operation in CONVOLUTIONS:
        return SpikingConv(channels, CONVOLUTIONS[edge.operation], neuron)
    return nn.Identity() if edge.operation == SKIP else nn.AvgPool2d(3, 1, 1)


def _check(cell: Cell, spec: DatasetSpec, head: str, tau: float | int, sizes: dict[str, int]) -> None:
    if not cell.is_valid():
        raise UserError(
            f"cell {cell} has no direct edge from input to output or joins a pair twice", "set row 0, column 3"
        )
    if head not in HEADS:
        raise UserError(f"head must be one of {', '.join(HEADS)}, got {head!r}")
    if not tau > 1 or not math.isfinite(tau):
        raise UserError(f"tau must be a finite number of steps above 1, got {tau}")
    for name, value in sizes.items():
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    divisor = 2 * sizes["stem_stride"] * (sizes["p2"] if head == "paper" else 1)
    if any(side % divisor for side in spec.shape):
        nearest = [max(divisor, round(side / divisor) * divisor) for side in spec.shape]
        raise UserError(
            f"images of {spec.shape[0]} x {spec.shape[1]} pixels do not divide by {divisor}",
            f"the nearest size that does is {nearest[0]} x {nearest[1]}",
        )
