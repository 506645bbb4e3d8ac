"""Groups of parameters for an optimiser: what decays, what does not, and how fast kernels and thresholds learn.

References: spec section 4, traps 4 and 16, and section 7 on the learning rate of kernels.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from dynsparse.errors import ConfigError
from dynsparse.layers import SDConvNd
from dynsparse.thresholds import Threshold


def param_groups(
    model: nn.Module,
    lr: float | int,
    weight_decay: float | int,
    threshold_lr: float | int | None = None,
    kernel_lr_scale: float | int | str = 1.0,
    threshold_weight_decay: float | int = 0.0,
) -> list[dict[str, Any]]:
    """Parameter groups that any optimiser of torch takes; each trainable parameter is in exactly one.

    Under near-uniform attention each of K kernels gets 1/K of the gradient and enters the mean with weight 1/K, so that
    under SGD the kernel in effect moves K times slower than a static one. `kernel_lr_scale="auto"` makes up for it:
    learning rate times K, decay by K less. Adam and its kin scale gradients themselves and want 1.

    Args:
        model: with dynamic layers or without.
        lr: learning rate.
        weight_decay: of weights of two axes or more; biases, norms and thresholds do not decay.
        threshold_lr: of the thresholds; `lr` by default.
        kernel_lr_scale: factor on the kernels' learning rate, or "auto" for each layer's K.
        threshold_weight_decay: of the thresholds; STR sets its sparsity by it alone.

    Returns:
        Dictionaries with `params`, `lr`, `weight_decay` and a `name`.

    Raises:
        ConfigError: a factor that is not positive.
    """
    if kernel_lr_scale != "auto" and (isinstance(kernel_lr_scale, str) or not kernel_lr_scale > 0):
        raise ConfigError(f"kernel_lr_scale is a positive number or 'auto'; got {kernel_lr_scale!r}")
    tau_lr = lr if threshold_lr is None else threshold_lr
    groups: dict[str, dict[str, Any]] = {}
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.requires_grad:
                continue
            seen.add(id(parameter))
            scale = _scale(module, kernel_lr_scale)
            decays = parameter.dim() > 1 and not (isinstance(module, SDConvNd) and name == "bias")
            if isinstance(module, Threshold):
                key, rate, decay = "thresholds", tau_lr, threshold_weight_decay
            else:
                key, rate, decay = ("decay" if decays else "no_decay"), lr * scale, weight_decay / scale * decays
                key += f"_x{scale:g}" if scale != 1 else ""
            group = groups.setdefault(key, {"name": key, "params": [], "lr": rate, "weight_decay": decay})
            group["params"].append(parameter)
    return list(groups.values())


def _scale(module: nn.Module, kernel_lr_scale: float | int | str) -> float:
    if not isinstance(module, SDConvNd):
        return 1.0
    return float(module.num_kernels if kernel_lr_scale == "auto" else kernel_lr_scale)
