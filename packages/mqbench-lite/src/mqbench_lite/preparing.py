"""From a float model and a target to a model with quantisers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from mqbench_lite.bn_folding import fold
from mqbench_lite.building import build, container_of, put
from mqbench_lite.capture import Captured, capture
from mqbench_lite.errors import ProfileError
from mqbench_lite.graph import Graph
from mqbench_lite.model import QuantModel
from mqbench_lite.placement import Placed, grid_sources, home_of, place
from mqbench_lite.profiles import check, get
from mqbench_lite.specs import HardwareProfile, QuantSpec


def prepare(
    model: nn.Module,
    *,
    profile: HardwareProfile | str,
    example_inputs: Sequence[Any],
    weight_bits: int | None = None,
    act_bits: int | None = None,
    algorithm: Any = "lsq",
    bn_fold: int | None = None,
    edge_bits: int | None = 8,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    init: str | None = None,
    fallback: Literal["error", "float"] = "error",
    leaves: Sequence[str] = (),
) -> QuantModel:
    """Puts quantisers where a device wants them; the model is copied and stays as it is.

    Args:
        model: any model that can be captured.
        profile: of the device, or its name.
        example_inputs: a tuple of the model's arguments, the batch on the first axis.
        weight_bits: 2 to 8; None: the profile's.
        act_bits: likewise.
        algorithm: a name of `mqbench_lite.algorithms`, or such an object.
        bn_fold: strategy of `mqbench_lite.bn_folding`; None: 4 where the profile folds (0 if the algorithm does not train)
            and -1 where it does not.
        edge_bits: of the first and last layers; None: as all others.
        overrides: by patterns of layers' names: `weight_bits` and `act_bits`, None for float.
        init: the algorithm's option of that name, such as `mean` for lsq.
        fallback: `float` lets functions that cannot be quantised run in float.
        leaves: patterns of modules that are not looked into; they run in float.

    Returns:
        A model to be calibrated, then trained or frozen.

    Raises:
        ProfileError: a width, a strategy or an override that cannot be, or a scheme that the engine cannot run.
        TraceError: the model cannot be captured.
        UnsupportedOpError: a function that cannot be quantised, without `fallback="float"`.
    """
    profile = _wished(get(profile) if isinstance(profile, str) else profile, weight_bits, act_bits, edge_bits)
    method = _algorithm(algorithm, init)
    strategy = _strategy(bn_fold, profile, method)
    captured = capture(model, example_inputs, leaves=leaves)
    folding = fold(captured.graph, captured.sizes, strategy)
    fallback = "float" if leaves and fallback == "error" and _only_leaves(folding.graph) else fallback
    placed = place(folding.graph, profile, overrides, fallback=fallback)
    made = QuantModel()
    _set_facts(made, model, captured, placed, profile, method.name)
    _put_constants(made, captured, placed.graph)
    _put_activation_quantizers(made, placed, profile, method)
    build(made.net, captured, placed.graph, folding.norms, strategy=strategy, rounds_bias=profile.bias == "int32")
    _put_weight_quantizers(made, profile, method)
    return made.train(model.training)


def _wished(
    profile: HardwareProfile, weight_bits: int | None, act_bits: int | None, edge_bits: int | None
) -> HardwareProfile:
    """The profile with the widths that were asked for."""
    check(profile)
    weight, act = (
        spec if bits is None else replace(spec, bits=bits)
        for spec, bits in ((profile.weight, weight_bits), (profile.act, act_bits))
    )
    if edge_bits is not None:
        replace(weight, bits=edge_bits)  # refuses what is no width
    return replace(profile, weight=weight, act=act, edge_bits=edge_bits)


def _algorithm(algorithm: Any, init: str | None) -> Any:
    if isinstance(algorithm, str):
        from mqbench_lite import algorithms

        return algorithms.get(algorithm, **({} if init is None else {"init": init}))
    if init is not None:
        raise ProfileError("init is an option of an algorithm by name", "set it on the algorithm itself")
    return algorithm


def _strategy(bn_fold: int | None, profile: HardwareProfile, method: Any) -> int:
    if bn_fold is None:
        return -1 if not profile.fold_bn else 0 if method.kind == "ptq" else 4
    if bn_fold == -1 and profile.fold_bn:
        raise ProfileError(f"profile {profile.name} folds batch normalisation", "give bn_fold 0 to 4")
    if method.kind == "ptq" and bn_fold > 0:
        return 0  # the same in evaluation, and nothing is trained
    return bn_fold


def _only_leaves(graph: Graph) -> bool:
    """Whether all that runs in float was named by the user."""
    return all(isinstance(node.attributes["target"].function, nn.Module) for node in graph if node.op == "call")


def _set_facts(
    made: QuantModel, model: nn.Module, captured: Captured, placed: Placed, profile: HardwareProfile, algorithm: str
) -> None:
    made.graph, made.profile, made.algorithm = placed.graph, profile, algorithm
    made.shared, made.weight_bits = dict(placed.shared), dict(placed.weight_bits)
    made.shapes = dict(captured.shapes)
    made.arguments = tuple(inspect.signature(model.forward).parameters)
    made.inputs, made.outputs = captured.inputs, captured.outputs
    made.sources = grid_sources(placed.graph, placed.shared)
    made.modules_of, made.constants = {}, {}
    net = made.net
    net._modules_of, net._sources = made.modules_of, made.sources
    net._reads = tuple(node.name for node in placed.graph if node.op in ("input", "constant"))
    net._gives = tuple(dict.fromkeys(name for name in placed.graph.outputs if name not in net._reads))


def _put_constants(made: QuantModel, captured: Captured, graph: Graph) -> None:
    """Constants as parameters or buffers."""
    for node in graph:
        if node.op != "constant":
            continue
        tensor, name = captured.tensors[node.name], node.name.replace(".", "_")
        while hasattr(made.held, name):
            name += "_"
        if isinstance(tensor, nn.Parameter):
            made.held.register_parameter(name, tensor)
        else:
            made.held.register_buffer(name, tensor.detach().clone())
        made.constants[node.name] = name


def _put_activation_quantizers(made: QuantModel, placed: Placed, profile: HardwareProfile, method: Any) -> None:
    for node in placed.graph:
        if node.op != "quantize":
            continue
        leader = placed.shared[node.name]
        if leader == node.name:
            quantizer = method.make_quantizer(replace(profile.act, bits=node.attributes["bits"]), "act")
            _label(quantizer, node.name)
            made.modules_of[node.name] = quantizer
            place_name = container_of(node)
            leaf = (
                node.name.removeprefix(place_name and f"Q:{place_name}.")
                if place_name
                else node.name.removeprefix("Q:")
            )
            put(made.net, f"{place_name}.Q:{leaf}" if place_name else f"Q:{leaf}", quantizer)
        else:
            made.modules_of[node.name] = made.modules_of[leader]


def _put_weight_quantizers(made: QuantModel, profile: HardwareProfile, method: Any) -> None:
    for name, layer in made.layers.items():
        bits = made.weight_bits[home_of(name)]
        if bits is None or layer.weight_quantizer is not None:
            continue
        quantizer = method.make_quantizer(_weight_spec(profile.weight, bits), "weight")
        _label(quantizer, f"the weight of {home_of(name)}")
        if hasattr(quantizer, "attach"):
            quantizer.attach(tuple(layer.weight.shape), layer.axis)
        else:
            quantizer.axis = layer.axis
        del layer.weight_quantizer
        layer.weight_quantizer = quantizer


def _weight_spec(spec: QuantSpec, bits: int) -> QuantSpec:
    return replace(spec, bits=bits)


def _label(quantizer: Any, name: str) -> None:
    """Tells a quantiser of this package what to call itself in messages."""
    if hasattr(quantizer, "label"):
        quantizer.label = name
