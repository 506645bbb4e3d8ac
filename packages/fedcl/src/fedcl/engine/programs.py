"""One training step of many equal models, whose tensors lie in a stack.

Networks of linear layers and elementwise functions are rewritten so that their weights have a dimension of clients;
plain autograd then does the rest. Everything else goes through `torch.func.vmap`, which takes seconds to load and some
milliseconds a step, and is therefore traced once a shape keeps coming.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedcl.client import Objective
from fedcl.tensors import Layout, Theta, views

UNTRACED = 20
"""Steps of one shape that are interpreted before it is traced: tracing takes as long as some fifty of them."""
ELEMENTWISE = (nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Identity)


class Rewritten:
    """Linear layers with stacked weights.

    Args:
        model: rewritten in a copy, which shares what is frozen.
        layout: of its tensors.
        gamma: weight of a student's complexity.
    """

    def __init__(self, model: nn.Module, layout: Layout, gamma: float) -> None:
        frozen = [getattr(model, name) for name in getattr(model, "frozen", ())]
        twin = copy.deepcopy(model, {id(part): part for part in frozen})
        trained = {entry.name for entry in layout.trained}
        for name, module in list(twin.named_modules()):
            if isinstance(module, nn.Linear) and f"{name}.weight" in trained:
                twin = _replaced(twin, name, StackedLinear(module))
            elif isinstance(module, nn.Flatten) and not name.startswith("backbone."):
                twin = _replaced(twin, name, nn.Flatten(2))
        self.objective = Objective(twin, gamma).train()
        named = dict(twin.named_parameters())
        self.parameters = [named[entry.name] for entry in layout.trained]
        self.layout = layout

    def bind(self, stack: Theta) -> list[Tensor]:
        """Lets the weights be views of a stack, and gives them; whoever changes them changes the stack."""
        weights = list(views(stack.trained, self.layout.trained).values())
        for parameter, view in zip(self.parameters, weights, strict=True):
            parameter.data = view
        return weights

    def release(self, stack: Theta) -> None:
        """The stack holds everything already."""

    def gradients(self, x: Tensor, y: Tensor) -> tuple[list[Tensor], Tensor]:
        """Of each tensor, [K, ...], and each client's loss, [K]."""
        losses = self.objective(x, y)
        return list(torch.autograd.grad(losses.sum(), self.parameters)), losses.detach()


class Vmapped:
    """Any model, through vmap.

    Args:
        model: called as a function of its tensors.
        layout: of them.
        gamma: weight of a student's complexity.
    """

    def __init__(self, model: nn.Module, layout: Layout, gamma: float) -> None:
        from torch.func import functional_call, grad_and_value, vmap

        objective = self.objective = Objective(model, gamma)
        self.layout = layout

        def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor) -> Any:
            named = {f"model.{name}": value for name, value in {**parameters, **buffers}.items()}
            return functional_call(objective, named, (x, y)), buffers

        self._program: Any = vmap(grad_and_value(loss, has_aux=True), randomness="different")
        self._used: Counter[tuple[int, ...]] = Counter()
        self._traced: dict[tuple[int, ...], Any] = {}
        self._parameters: dict[str, Tensor] = {}
        self._buffers: dict[str, Tensor] = {}

    def bind(self, stack: Theta) -> list[Tensor]:
        """Copies of the stack's tensors, which gradients belong to: batch normalisation writes only to whole memory."""
        self.objective.train()
        self._parameters = _whole(views(stack.trained, self.layout.trained))
        self._buffers = _whole(self._buffers_of(stack))
        return list(self._parameters.values())

    def release(self, stack: Theta) -> None:
        """Writes the tensors back."""
        held = {**views(stack.trained, self.layout.trained), **self._buffers_of(stack)}
        for name, value in {**self._parameters, **self._buffers}.items():
            held[name].copy_(value)

    def _buffers_of(self, stack: Theta) -> dict[str, Tensor]:
        return {**views(stack.averaged, self.layout.averaged), **views(stack.counted, self.layout.counted)}

    def gradients(self, x: Tensor, y: Tensor) -> tuple[list[Tensor], Tensor]:
        """Of each tensor, [K, ...], and each client's loss, [K]."""
        found, (losses, buffers) = self._run(self._parameters, self._buffers, x, y)
        for name, value in self._buffers.items():
            if buffers[name] is not value:
                value.copy_(buffers[name])
        return [found[name] for name in self._parameters], losses

    def _run(self, *arguments: Any) -> Any:
        shape = tuple(arguments[2].shape)
        if shape not in self._traced:
            self._used[shape] += 1
            if self._used[shape] <= UNTRACED:
                return self._program(*arguments)
            from torch.fx.experimental.proxy_tensor import make_fx

            # Tracing runs the program, which updates buffers: it gets copies.
            copies = torch.utils._pytree.tree_map(torch.clone, arguments)
            self._traced[shape] = make_fx(self._program)(*copies)
        with torch.no_grad():
            return self._traced[shape](*arguments)


class StackedLinear(nn.Module):
    """A linear layer of each client: weights [K, out, in], features [K, B, in]."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight.detach())
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach())

    def forward(self, x: Float[Tensor, "K B i"]) -> Float[Tensor, "K B o"]:
        """One batched product."""
        if self.bias is None:
            return x @ self.weight.mT
        return torch.baddbmm(self.bias[:, None], x, self.weight.mT)


def program(model: nn.Module, layout: Layout, gamma: float) -> Rewritten | Vmapped:
    """The faster program that the model allows."""
    return (Rewritten if rewritable(model) else Vmapped)(model, layout, gamma)


def rewritable(model: nn.Module) -> bool:
    """Whether all its trained parts are linear layers, elementwise functions, or know of stacks themselves."""
    if isinstance(model, nn.Flatten):
        return (model.start_dim, model.end_dim) == (1, -1)
    if isinstance(model, (nn.Linear, *ELEMENTWISE)):
        return True
    if hasattr(model, "stackable"):
        return bool(model.stackable)
    return isinstance(model, nn.Sequential) and all(map(rewritable, model.children()))


def _whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}


def _replaced(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    if not name:
        return module
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)
    return model
