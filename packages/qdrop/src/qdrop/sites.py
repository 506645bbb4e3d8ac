"""Where in a model a tensor is quantised: at a module's output, at a function's output, or at a function's operand.

Eager models have no graph, so a place is told by what is called: the n-th call of a module, or, within it, the n-th
function of that name. Both are counted in the same way when a model is planned and when it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

PROBABILITIES = 3
"""Index of the operand that `scaled_dot_product_attention` makes itself: the attention probabilities."""


@dataclass(frozen=True)
class Site:
    """One tensor of a model's forward pass.

    Args:
        kind: `module`: what a module returns; `function`: what a function called within that module returns;
            `operand`: what that function is given.
        path: the module's name in `named_modules()`; the innermost one that is running where the function is called.
        call: which call of that module in one forward pass, from 0.
        function: the function's name (`function_name`), or None for `module`.
        ordinal: which call of a function of that name between the module's entry and its exit, from 0; functions called
            by its submodules count, those inside other functions do not.
        index: which tensor among the outputs' tensors in pytree order, or, for `operand`, among the function's
            positional tensors; 3 for `scaled_dot_product_attention` means the attention probabilities within.
    """

    kind: Literal["module", "function", "operand"]
    path: str
    call: int = 0
    function: str | None = None
    ordinal: int = 0
    index: int = 0

    @property
    def name(self) -> str:
        """One word that tells this site from all others of the model, for example `layer1.0.relu#1`."""
        name = self.path + (f"#{self.call}" if self.call else "")
        if self.function is not None:
            name += f":{self.function}" + (f"#{self.ordinal}" if self.ordinal else "")
        if self.kind == "operand":
            return f"{name}<{self.index}"
        return name + (f">{self.index}" if self.index else "")


def function_name(function: Callable[..., Any]) -> str:
    """The name by which a torch function is counted; `x + y`, `x += y`, `torch.add` and `x.add_` differ."""
    return getattr(function, "__name__", type(function).__name__)
