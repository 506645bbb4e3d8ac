"""A trace says what ran, and leaves no trace itself."""

import pytest
import torch
from example_networks import IMAGES, Lambda, ResidualNet
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from qdrop.passes import OPAQUE
from qdrop.placement import locate
from qdrop.sites import function_name
from qdrop.tracing import trace

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def names(traced):
    return [function.name for function in traced.functions]


class FunctionsOf(TorchFunctionMode):
    """Records each function's output by name and ordinal, as the contract of `Site.ordinal` counts."""

    def __init__(self):
        super().__init__()
        self.outputs = {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        self.outputs.setdefault(function_name(function), []).append(output)
        return output


def outputs_within(model, path, inputs):
    """Outputs of all functions between entry and exit of each call of a module, seen by a mode of its own."""
    calls, module = [], model.get_submodule(path)

    def enter(*_):
        calls.append(FunctionsOf())
        calls[-1].__enter__()

    handles = [
        module.register_forward_pre_hook(enter),
        module.register_forward_hook(lambda *_: calls[-1].__exit__(None, None, None)),
    ]
    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return [call.outputs for call in calls]


def test_functions_are_counted_by_name_within_the_innermost_module_including_its_submodules():
    inner = Lambda(lambda self, x: torch.relu(torch.relu(x) - 1))
    outer = Lambda(lambda self, x: torch.relu(self.inner(torch.relu(x)) + 2), inner=inner)
    traced = trace(nn.Sequential(outer, nn.ReLU()), X)
    relus = [(traced.calls[f.call].path, f.ordinal) for f in traced.functions if f.name == "relu"]
    assert relus == [("0", 0), ("0.inner", 0), ("0.inner", 1), ("0", 3), ("1", 0)]


@pytest.mark.parametrize("functional_relu", [False, True])
def test_an_ordinal_finds_the_same_tensor_for_whoever_counts_within_that_module(functional_relu):
    model = ResidualNet(functional_relu).eval()
    traced = trace(model, IMAGES)
    checked = 0
    for function in traced.functions:
        call = traced.calls[function.call]
        shape = traced.values[function.outputs[0]].shape
        output = outputs_within(model, call.path, IMAGES)[call.call][function.name][function.ordinal]
        assert tuple(output.shape) == shape
        checked += 1
    assert checked == len(traced.functions) > 20


def test_an_in_place_write_makes_a_new_value_whose_maker_is_the_write():
    def forward(self, x):
        y = x + 1
        y += 2
        return torch.relu_(y)

    traced = trace(Lambda(forward), X)
    made = [function.made for function in traced.functions if function.made]
    assert len(made) == 3
    assert len(set(made)) == 3
    assert traced.outputs == made[-1]


def test_reading_a_tensor_after_a_write_through_a_view_depends_on_both():
    def forward(self, x):
        y = x * 2
        y[0] = 0
        part = y[:, :2]
        part += 1
        return y + 0

    traced = trace(Lambda(forward), X)
    assert traced.active[traced.outputs[0]]
    assert names(traced)[-1] == "add"


def test_dropout_in_eval_mode_makes_nothing():
    traced = trace(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).eval(), X)
    assert names(traced) == ["linear", "dropout"]
    assert traced.functions[1].made == ()
    assert traced.consumers[traced.functions[0].made[0]] == ()


def test_shapes_and_sizes_are_no_readers_of_a_tensor():
    traced = trace(Lambda(lambda self, x: x.sin().view(x.shape[0], x.size(1)) if x.sin().dim() else x), X)
    assert names(traced) == ["sin", "sin", "view"]


def test_module_calls_know_their_parent_their_number_and_keyword_inputs():
    relu = nn.ReLU()
    inner = Lambda(lambda self, x, *, scale: relu(x) * scale)
    model = Lambda(lambda self, x: self.inner(self.relu(x), scale=self.relu(x)), inner=inner, relu=relu)
    traced = trace(model, X)
    assert [(call.path, call.call) for call in traced.calls] == [
        ("", 0),
        ("relu", 0),
        ("relu", 1),
        ("inner", 0),
        ("relu", 2),
    ]
    inner_call = traced.calls_of["inner"][0]
    assert len(inner_call.inputs) == 2
    assert traced.calls[inner_call.parent].path == ""


def test_what_no_torch_function_made_comes_from_the_inputs_of_the_module_around_it():
    model = nn.Sequential(nn.Linear(4, 4), Lambda(lambda self, x: torch.from_numpy(2 * x.numpy())), nn.Linear(4, 4))
    traced = trace(model, X)
    opaque = [function for function in traced.functions if function.name == OPAQUE]
    assert len(opaque) == 1
    assert opaque[0].inputs == traced.calls_of["0"][0].outputs
    assert locate(traced, opaque[0].made[0]).name == "1"


def test_tensors_inside_an_object_that_torch_cannot_open_count_as_inputs():
    class Batch:
        def __init__(self, x):
            self.x = x

    traced = trace(Lambda(lambda self, batch: self.linear(batch.x), linear=nn.Linear(4, 4)), Batch(X))
    assert traced.active[traced.outputs[0]]
    assert traced.values[traced.functions[0].inputs[0]].origin == "input"


def test_a_function_of_one_tensor_can_be_called_again_with_another():
    traced = trace(Lambda(lambda self, x: functional.leaky_relu(x, negative_slope=0.3)), X)
    replay = traced.functions[0].replay()
    assert torch.equal(replay(-torch.ones(3)), torch.full((3,), -0.3))


def test_lists_go_to_the_model_as_one_argument_and_dicts_and_tuples_as_several():
    takes_list = Lambda(lambda self, images: [image + 1 for image in images])
    assert len(trace(takes_list, [X, X[0]]).inputs) == 2
    takes_two = Lambda(lambda self, x, y: x + y)
    assert names(trace(takes_two, (X, X.clone()))) == ["add"]
    assert names(trace(takes_two, {"y": X, "x": X.clone()})) == ["add"]
    assert names(trace(takes_two, X, lambda model, inputs: model(inputs, inputs))) == ["add"]


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        torch.rand(1)
        self.linear(x)
        raise RuntimeError("no further")


def hooks_of(model):
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


@pytest.mark.parametrize("fails", [False, True])
def test_tracing_leaves_hooks_modes_fast_path_gradients_and_random_state_alone(fails):
    model = Failing() if fails else nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train()
    state, hooks = torch.get_rng_state(), hooks_of(model)
    if fails:
        with pytest.raises(RuntimeError, match="no further"):
            trace(model, X)
    else:
        trace(model, X)
    assert torch.equal(torch.get_rng_state(), state)
    assert hooks_of(model) == hooks
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.is_grad_enabled()
    assert torch.overrides._get_current_function_mode_stack() == []
    assert model.training


def test_layers_of_an_encoder_in_eval_mode_are_seen_although_torch_would_fuse_them():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    traced = trace(layer, torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)))
    assert {"linear1", "linear2", "self_attn"} <= set(traced.calls_of)
