"""NetTailor students: a frozen backbone with gated, small, task-specific bypasses (Morgado and Vasconcelos, CVPR 2019).

With layers G_1..G_L, proxies A and at most k skips,

    o_l = a_l[0] G_l(x_{l-1}) + sum_j a_l[j] A_{l,j}(x_{l-j}),   x_l = ReLU(o_l),   a_l = softmax(s_l),   1 <= j <= min(k, l),

so the first two paths of a layer read the same features. Written from the paper; its authors' code is not used.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fedcl.errors import ConfigError
from fedcl.models.backbones import Backbone, named_backbone, resnet_backbone
from fedcl.models.complexity import Costs, counted, expected_complexity, reference_stem
from fedcl.models.proxies import StatisticsOnce, fan_in, fan_out, make_proxy, proxy_cost


@dataclass(frozen=True)
class PruneReport:
    """What a pruning removed.

    Attributes:
        main: layers whose own block was cut, from 1.
        proxies: (layer, skip) of every cut proxy.
        params: trained parameters before and after.
        flops: multiply-adds of an inference before and after.
    """

    main: tuple[int, ...]
    proxies: tuple[tuple[int, int], ...]
    params: tuple[int, int]
    flops: tuple[int, int]


class TailoredNet(nn.Module):
    """A student; made by `tailor`.

    The backbone is frozen and stays in evaluation mode, so neither its weights nor its running statistics ever change.
    """

    head = "classifier"
    frozen = ("backbone",)
    no_decay = ("scores",)

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        max_skip: int,
        input_shape: Sequence[int],
        options: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.tail = nn.Identity() if backbone.tail is None else backbone.tail
        backbone.tail = None
        self.backbone = backbone.requires_grad_(False)
        shapes, self.costs = _trace(backbone, input_shape)
        self.classifier = nn.Linear(shapes[-1][0], num_classes)
        if options["classifier"] == "zeros":
            nn.init.zeros_(self.classifier.weight)
            nn.init.zeros_(self.classifier.bias)
        self.proxies, self.scores = nn.ModuleList(), nn.ParameterList()
        for layer in range(1, len(shapes)):
            sources = [shapes[layer - j] for j in range(1, min(max_skip, layer) + 1)]
            made = [make_proxy(backbone.proxy, s, shapes[layer], (layer, j), options) for j, s in enumerate(sources, 1)]
            self.proxies.append(nn.ModuleList(made))
            self.costs.paths[layer - 1] += [proxy_cost(proxy, s) for proxy, s in zip(made, sources, strict=True)]
            main, other = options["gate_init"]
            self.scores.append(nn.Parameter(torch.tensor([main] + [other] * len(sources))))
            self.register_buffer(f"kept{layer}", torch.ones(len(sources) + 1, dtype=torch.bool))
        self.costs.head = counted(self.classifier, (shapes[-1][0],))[1]
        self.register_load_state_dict_post_hook(lambda module, _: module._note_kept())
        self._note_kept()
        self.train()

    @property
    def stackable(self) -> bool:
        """Whether trained tensors and features may have a leading dimension of clients."""
        return self.backbone.proxy == "vector" and isinstance(self.tail, nn.Identity)

    def train(self, mode: bool = True) -> TailoredNet:
        """Training mode for all but the backbone."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x: Float[Tensor, B * image]) -> Float[Tensor, "B n"]:
        """Logits of images; short batches are fine, but normalisation needs more than one value a channel."""
        return self.tailored(self.embed(x))

    def embed(self, x: Float[Tensor, B * image]) -> Float[Tensor, B * features]:
        """x_0, which no training changes: it can be computed once for each image."""
        features: Tensor = self.backbone.stem(x)
        return features

    def tailored(self, embedded: Float[Tensor, ...]) -> Float[Tensor, ...]:
        """Logits [B, n] of what `embed` gave; with stacked tensors [K, B, n] of [K, B, D]."""
        return self._classify(self._run(embedded)[-1])

    def features(
        self, x: Float[Tensor, B * image], detached: bool = True
    ) -> tuple[Float[Tensor, "B n"], list[Tensor | None]]:
        """Logits and the output of each layer, None where a layer was pruned away.

        Args:
            x: images.
            detached: each layer's output is computed from inputs through which no gradient flows, so that a loss on
                it trains this layer alone; running statistics are updated once all the same.
        """
        if not detached:
            outputs = self._run(self.embed(x))
            return self._classify(outputs[-1]), outputs[1:]
        hats: list[Tensor | None] = []
        return self._classify(self._run(self.embed(x), hats)[-1]), hats

    def gates(self) -> list[Float[Tensor, "*K _"]]:
        """a_l of each layer, [n_l + 1]: sums to 1, 0 for what was pruned."""
        return [self._gate(layer) for layer in range(1, len(self.scores) + 1)]

    def complexity(self, mode: Literal["exact", "reference"] = "exact") -> Float[Tensor, "*K"]:
        """Expected multiply-adds relative to the backbone's, as of `expected_complexity`."""
        return expected_complexity(self.gates(), self.costs, mode)

    def prune(self, n_main: int = 0, proxy_threshold: float = 0.05) -> PruneReport:
        """Cuts the blocks of the smallest gates and every proxy whose gate is below a threshold.

        Whatever then reads from an absent layer, or is read by none, is cut as well; gates are renormalised over what
        is kept. Gates are those before pruning.

        Raises:
            ConfigError: nothing would reach the classifier; the network is as before.
        """
        gates = [gate.detach().tolist() for gate in self.gates()]
        if not 0 <= n_main <= len(gates):
            raise ConfigError(f"n_main must lie in 0..{len(gates)}, got {n_main}")
        live = [index for index, kept in enumerate(self._kept) if 0 in kept]
        cut = sorted(live, key=lambda index: (gates[index][0], index))[:n_main]
        wanted = [
            {j for j in kept if (index not in cut if j == 0 else gates[index][j] >= proxy_threshold)}
            for index, kept in enumerate(self._kept)
        ]
        kept = _connected(wanted)
        if not kept[-1]:
            raise ConfigError(f"pruning {n_main} blocks and proxies below {proxy_threshold} cuts the last path")
        before, old = (self.count("params"), self.count("flops")), self._kept
        for layer, paths in enumerate(kept, start=1):
            mask: Tensor = getattr(self, f"kept{layer}")
            mask.copy_(torch.tensor([j in paths for j in range(len(mask))]))
        self._note_kept()
        after = self.count("params"), self.count("flops")
        gone = [(layer, j) for layer, paths in enumerate(kept, start=1) for j in sorted(set(old[layer - 1]) - paths)]
        return PruneReport(
            tuple(layer for layer, j in gone if j == 0),
            tuple((layer, j) for layer, j in gone if j > 0),
            (before[0], after[0]),
            (before[1], after[1]),
        )

    def count(self, what: Literal["params", "flops", "deployed"]) -> int:
        """What is not pruned: trained parameters, multiply-adds of an inference, or parameters with the backbone's."""
        live = [(layer, j) for layer, kept in enumerate(self._kept, start=1) for j in kept]
        if what == "flops":
            paths = sum(self.costs.paths[layer - 1][j] for layer, j in live)
            return self.costs.stem + paths + self.costs.head
        proxies = sum(_parameters(self.proxies[layer - 1][j - 1]) for layer, j in live if j > 0)  # type: ignore[index]
        own = sum(len(kept) for kept in self._kept) + _parameters(self.classifier) + _parameters(self.tail) + proxies
        if what == "params":
            return own
        return (
            own
            + _parameters(self.backbone.stem)
            + sum(_parameters(self.backbone.blocks[n - 1]) for n, j in live if j == 0)
        )

    def task_state(self) -> dict[str, Tensor]:
        """Everything that belongs to the task: proxies, gates, classifier, normalisation, what was pruned."""
        return {
            name: value.detach().clone()
            for name, value in self.state_dict().items()
            if not name.startswith("backbone.")
        }

    def load_task_state(self, state: Mapping[str, Tensor], strict: bool = True) -> None:
        """Takes what `task_state` gave; the backbone stays.

        Raises:
            ConfigError: keys or shapes are another network's; names the first of them.
        """
        own = self.task_state()
        wrong = [
            name
            for name in sorted({*own, *state})
            if (name not in state and strict)
            or (name in state and (name not in own or own[name].shape != state[name].shape))
        ]
        if wrong:
            raise ConfigError(f"the state belongs to another student: {', '.join(wrong[:5])}")
        self.load_state_dict(dict(state), strict=False)

    def _run(self, embedded: Tensor, hats: list[Tensor | None] | None = None) -> list[Any]:
        """x_0 to x_L; appends the detached twins of the others to `hats`."""
        outputs: list[Any] = [embedded]
        inner = self._fanned(0, embedded)
        for layer in range(1, len(self.scores) + 1):
            if not self._kept[layer - 1]:
                outputs.append(None)
                if hats is not None:
                    hats.append(None)
                continue
            gate = self._gate(layer)
            if hats is not None:
                with self._without_statistics():
                    inputs = [each if each is None else each.detach() for each in outputs]
                    hats.append(functional.relu(self._merged(layer, inputs, gate, None)))
            outputs.append(functional.relu(self._merged(layer, outputs, gate, inner)))
            inner |= self._fanned(layer, outputs[-1])
        return outputs

    def _merged(
        self, layer: int, inputs: Sequence[Any], gate: Tensor, inner: dict[tuple[int, int], Tensor] | None
    ) -> Tensor:
        """o_l; `inner` holds the inner features of vector proxies, which are computed anew without it."""
        kept, proxies = self._kept[layer - 1], self.proxies[layer - 1]
        skips = [j for j in kept if j > 0]
        paths = []
        if 0 in kept:
            paths.append(gate[..., 0, None, None] * self.backbone.blocks[layer - 1](inputs[layer - 1]))
        if self.backbone.proxy == "vector" and skips:
            used = [proxies[j - 1] for j in skips]  # type: ignore[index]
            if inner is None:
                features = [fan_out(inputs[layer - j], [proxies[j - 1]])[0] for j in skips]  # type: ignore[index, list-item]
            else:
                features = [inner[layer, j] for j in skips]
            share = gate[..., 1:] if len(skips) + 1 == gate.shape[-1] else gate[..., skips]
            paths.append(fan_in(features, share, used))  # type: ignore[arg-type]
        else:
            paths += [gate[..., j, None, None] * proxies[j - 1](inputs[layer - j]) for j in skips]  # type: ignore[index]
        return sum(paths[1:], paths[0])

    def _fanned(self, source: int, x: Tensor) -> dict[tuple[int, int], Tensor]:
        """Inner features of the vector proxies that read x_source, by layer and skip."""
        if self.backbone.proxy != "vector":
            return {}
        readers = [
            (layer, layer - source)
            for layer in range(source + 1, len(self.scores) + 1)
            if layer - source in self._kept[layer - 1]
        ]
        if not readers:
            return {}
        proxies = [self.proxies[layer - 1][j - 1] for layer, j in readers]  # type: ignore[index]
        return dict(zip(readers, fan_out(x, proxies), strict=True))  # type: ignore[arg-type]

    def _gate(self, layer: int) -> Tensor:
        scores, kept = self.scores[layer - 1], self._kept[layer - 1]
        if len(kept) == scores.shape[-1]:
            return functional.softmax(scores, -1)
        if not kept:
            return torch.zeros_like(scores)
        where = torch.tensor(kept, device=scores.device)
        return torch.zeros_like(scores).index_copy(-1, where, functional.softmax(scores[..., list(kept)], -1))

    def _classify(self, x: Tensor) -> Tensor:
        x = self.tail(x)
        return self.classifier(x.mean((-2, -1)) if self.backbone.proxy != "vector" else x)

    @contextlib.contextmanager
    def _without_statistics(self) -> Iterator[None]:
        norms = [module for module in self.proxies.modules() if isinstance(module, StatisticsOnce)]
        for norm in norms:
            norm.counts = False
        try:
            yield
        finally:
            for norm in norms:
                norm.counts = True

    def _note_kept(self) -> None:
        masks: list[Tensor] = [getattr(self, f"kept{layer}") for layer in range(1, len(self.scores) + 1)]
        self._kept = [tuple(j for j, kept in enumerate(mask.tolist()) if kept) for mask in masks]


def tailor(
    backbone: nn.Module,
    *,
    num_classes: int,
    max_skip: int = 3,
    input_shape: Sequence[int] = (3, 224, 224),
    blocks: Sequence[str] | None = None,
    gate_init: tuple[float, float] = (2.0, -2.0),
    bottleneck_divisor: int = 32,
    hidden: int = 16,
    classifier: Literal["linear", "zeros"] = "linear",
) -> TailoredNet:
    """A student of a pretrained network.

    Args:
        backbone: a `Backbone`, a torchvision or timm ResNet, or any network whose blocks are named.
        num_classes: of the task.
        max_skip: k; proxies of a layer, at most as many as there are features before it.
        input_shape: of one image: [C, H, W], or what the backbone's stem takes.
        blocks: names of the modules that are G_1 to G_L, in the order in which they run.
        gate_init: initial s_l[0] and s_l[j > 0]. The paper's leave the proxies about 5 % of the signal.
        bottleneck_divisor: output channels over this are a bottleneck proxy's inner ones, at least 16; 32 as released.
        hidden: inner width of a vector proxy.
        classifier: "linear" starts as torch's layers do, "zeros" with zeros.

    Raises:
        ConfigError: a structure that is not understood, or features whose size is no multiple of the next; names the
            layer and both shapes.
    """
    if num_classes < 2 or max_skip < 0:
        raise ConfigError(f"num_classes must be at least 2 and max_skip not negative, got {num_classes} and {max_skip}")
    if not isinstance(backbone, Backbone):
        backbone = resnet_backbone(backbone) if blocks is None else named_backbone(backbone, blocks)
    options = {"gate_init": gate_init, "divisor": bottleneck_divisor, "hidden": hidden, "classifier": classifier}
    return TailoredNet(backbone, num_classes, max_skip, input_shape, options)


def _trace(backbone: Backbone, input_shape: Sequence[int]) -> tuple[list[tuple[int, ...]], Costs]:
    """Shapes of x_0 to x_L and what stem and blocks cost; nothing is computed."""
    shape, stem = counted(backbone.stem, tuple(input_shape), "the stem")
    shapes, costs = [shape], Costs(stem, reference_stem(input_shape, shape), [])
    for number, block in enumerate(backbone.blocks, start=1):
        shape, cost = counted(block, shapes[-1], f"block {number}")
        shapes.append(shape)
        costs.paths.append([cost])
    rank = 1 if backbone.proxy == "vector" else 3
    for number, shape in enumerate(shapes):
        if len(shape) != rank:
            raise ConfigError(f"x_{number} has shape {list(shape)}, {backbone.proxy} proxies need {rank} dimensions")
    return shapes, costs


def _connected(kept: Sequence[set[int]]) -> list[set[int]]:
    """The paths on a way from the stem to the last layer."""
    alive, forward = {0}, []
    for layer, paths in enumerate(kept, start=1):
        forward.append({j for j in paths if (layer - max(j, 1)) in alive})
        if forward[-1]:
            alive.add(layer)
    read, result = {len(kept)}, copy.deepcopy(forward)
    for layer in range(len(kept), 0, -1):
        if layer not in read:
            result[layer - 1] = set()
        read |= {layer - max(j, 1) for j in result[layer - 1]}
    return result


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
