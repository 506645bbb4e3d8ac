"""Weights from elsewhere: checks that say what does not fit, and dynamic kernels from static ones."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from dynsparse.converting import dynamic_layers, unwrapped
from dynsparse.errors import CheckpointError
from dynsparse.initialisation import spread
from dynsparse.layers import SDConvNd

PREFIX = re.compile(r"^(?:module\.|_orig_mod\.|_forward_module\.)+")


def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads a state dictionary, every key of which must fit; masks that it holds freeze the layers.

    Args:
        model: of the same sizes and settings; with DataParallel or compile around it or not.
        state: with the prefixes that DataParallel, compile or Fabric put before names, or without.

    Raises:
        CheckpointError: another number of kernels, sharing or granularity, a static or dense dynamic network's weights,
            or a key that is missing or unknown; the message names the first one.
    """
    state = without_prefixes(state)
    for name, layer in dynamic_layers(model):
        _check_layer(f"{name}." if name else "", layer, state)
    inner = unwrapped(model)
    expected = inner.state_dict()
    adopted = {f"{name}.mask".lstrip(".") for name, layer in dynamic_layers(model) if layer.threshold is not None}
    for key, tensor in expected.items():
        if key not in state and not (_is_of_threshold(key) and _mask_key(key) in state):
            raise CheckpointError(f"the weights have no {key!r}")
        if key in state and state[key].shape != tensor.shape:
            raise CheckpointError(f"{key!r} is of shape {_shape(state[key])}; the model has {_shape(tensor)}")
    unknown = [key for key in state if key not in expected and key not in adopted]
    if unknown:
        raise CheckpointError(f"the weights have {unknown[0]!r}, which the model has not")
    inner.load_state_dict(state)


def load_static(model: nn.Module, state: Mapping[str, Tensor], noise: float | int = 0.1) -> None:
    """Starts a dynamic network from the weights of the static one of the same architecture.

    Kernels become K differing copies, routers and thresholds stay as they are.

    Args:
        model: with dynamic layers, not frozen.
        state: of the static network, under the same names.
        noise: see `SDConvNd.from_conv`.

    Raises:
        CheckpointError: a key is missing, unknown or of another shape; the message names the first one.
    """
    state = dict(without_prefixes(state))
    inner = unwrapped(model)
    for name, layer in dynamic_layers(model):
        prefix = f"{name}." if name else ""
        if layer.mask is not None:
            raise CheckpointError(f"layer {name!r} is frozen; static weights start a new model")
        for part in ("weight", "bias"):
            own, key = getattr(layer, part), f"{prefix}{part}"
            if own is None:
                continue
            if key not in state or state[key].shape != own.shape[1:]:
                found = _shape(state[key]) if key in state else "nothing"
                raise CheckpointError(f"{key!r} should be of shape {list(own.shape[1:])}; the weights have {found}")
            state[key] = spread(state[key], layer.num_kernels, noise if part == "weight" else 0)
        own_parts = {f"{prefix}{key}": value for key, value in layer.state_dict().items()}
        state = {**own_parts, **state}
    load_weights(inner, state)
    for _, layer in dynamic_layers(model):
        if layer.threshold is not None:
            layer.threshold.rescale(layer.weight)


def without_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state under the model's own names."""
    return {PREFIX.sub("", key): value for key, value in state.items()}


def _check_layer(prefix: str, layer: SDConvNd, state: Mapping[str, Tensor]) -> None:
    """What only a dynamic layer can get wrong."""
    weight, own = state.get(f"{prefix}weight"), layer.weight
    if weight is not None and weight.dim() == own.dim() - 1:
        raise CheckpointError(f"'{prefix}weight' is a static kernel {_shape(weight)}", "load_static starts from it")
    if weight is not None and weight.shape[1:] == own.shape[1:] and len(weight) != len(own):
        raise CheckpointError(f"'{prefix}weight' has {len(weight)} kernels; the model has num_kernels={len(own)}")
    temperature = f"{prefix}router.temperature"
    if temperature in {f"{prefix}{key}" for key in layer.state_dict()} and temperature not in state:
        raise CheckpointError(f"the weights have no {temperature!r}", "without it the attention is not the trained one")
    mask, tau = f"{prefix}mask", f"{prefix}threshold.tau"
    if layer.threshold is not None and mask not in state:
        if tau not in state:
            raise CheckpointError(
                f"the weights have no {tau!r} and no mask: a dense dynamic network's", "use mask='none'"
            )
        if state[tau].shape != layer.threshold.tau.shape:
            found, expected = _shape(state[tau]), _shape(layer.threshold.tau)
            raise CheckpointError(
                f"{tau!r} is of shape {found}; the model has {expected}", "granularity or mask_sharing differ"
            )
    shape = own.shape[1:] if layer.mask_sharing == "shared" else own.shape
    if mask in state and (layer.threshold is not None or layer.mask is not None) and state[mask].shape != shape:
        raise CheckpointError(
            f"{mask!r} is of shape {_shape(state[mask])}; mask_sharing={layer.mask_sharing!r} has {list(shape)}"
        )


def _is_of_threshold(key: str) -> bool:
    return ".threshold." in f".{key}"


def _mask_key(key: str) -> str:
    """The mask that makes a threshold's entry needless."""
    head = f".{key}".rpartition(".threshold.")[0]
    return f"{head}.mask".lstrip(".")


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
