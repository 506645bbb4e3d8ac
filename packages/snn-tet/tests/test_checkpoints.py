"""Checkpoints of the released code, imitated: the same keys, every path to a layer, small networks behind them."""

import re

import pytest
import torch

from core_utils.errors import UserError
from snn_tet import load_reference_checkpoint, resnet19, tiny_vgg, vggsnn, vggsnn_woap


def as_released(model):
    """The state dict as the released code would save it: each tensor under every path that leads to it there."""
    state = {}
    for name, tensor in model.state_dict().items():
        for path in released_paths(name):
            state[path] = tensor
    return state


def released_paths(name):
    parts = name.split(".")
    leaf = parts[-1]
    if parts[0] == "readout":
        layer = {"0": "fc1", "2": "fc2"}[parts[1]]
        return [f"{layer}.{leaf}", f"{layer}_s.layer.module.{leaf}"]
    index = int(parts[1])
    if index == 0:
        prefix, role = "", "first"
        parts.insert(2, role)
    else:
        stage, place = divmod(index - 1, 3)
        prefix, role = f"layer{stage + 1}.{place}.", parts[2]
    kind = parts[3]
    if role == "shortcut":
        paths = ["downsample.layer.module"] if kind == "conv" else ["downsample.bn.bn", "downsample.bn.seqbn.module"]
    else:
        number = {"first": 1, "second": 2}[role]
        paths = (
            [f"conv{number}", f"conv{number}_s.layer.module"]
            if kind == "conv"
            else [
                f"{owner}.{path}" for owner in (f"bn{number}", f"conv{number}_s.bn") for path in ("bn", "seqbn.module")
            ]
        )
    return [f"{prefix}{path}.{leaf}" for path in paths]


def as_released_vgg(model, *, pools):
    positions = [0, 1, 3, 4, 6, 7, 9, 10] if pools else range(8)
    state = {}
    for name, tensor in model.state_dict().items():
        name = re.sub(r"^readout\.", "classifier.module.", name)
        name = re.sub(r"^blocks\.(\d+)\.", lambda match: f"features.{positions[int(match[1])]}.", name)
        state[name.replace(".conv.", ".fwd.module.0.").replace(".norm.norm.", ".fwd.module.1.")] = tensor
    return state


def randomised(model):
    for tensor in model.state_dict().values():
        tensor.copy_(torch.randint(100, tensor.shape) if tensor.dtype == torch.int64 else torch.rand(tensor.shape))
    return model


@pytest.fixture(scope="module")
def released():
    torch.manual_seed(0)
    model = randomised(resnet19())
    return model, as_released(model)


def assert_same(model, other):
    for name, tensor in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_every_path_to_a_layer_leads_to_ours(released):
    origin, state = released
    assert len(state) == 415  # the released ResNet-19
    model = resnet19()
    load_reference_checkpoint(model, state)
    assert_same(model, origin)


def test_a_file_is_read_without_running_what_it_holds(tmp_path, released):
    origin, state = released
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "released.pt")
    model = resnet19()
    load_reference_checkpoint(model, tmp_path / "released.pt")
    assert_same(model, origin)


@pytest.mark.parametrize(("network", "pools"), [(vggsnn, True), (vggsnn_woap, False)])
def test_vggsnn_counts_its_pools_among_its_layers(network, pools):
    origin, model = randomised(network(size=16)), network(size=16)
    load_reference_checkpoint(model, as_released_vgg(origin, pools=pools))
    assert_same(model, origin)


def test_our_own_keys_are_taken():
    origin, model = randomised(tiny_vgg()), tiny_vgg()
    load_reference_checkpoint(model, origin.state_dict())
    assert_same(model, origin)


def test_copies_that_differ_are_refused(released):
    _, state = released
    state = {**state, "layer2.1.conv1_s.bn.bn.running_mean": torch.zeros(256)}
    message = r"layer2\.1\.bn1\.bn\.running_mean and layer2\.1\.conv1_s\.bn\.bn\.running_mean are one tensor"
    with pytest.raises(UserError, match=message):
        load_reference_checkpoint(resnet19(), state)


def test_another_network_is_refused_with_the_first_five_keys():
    model = tiny_vgg()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_reference_checkpoint(model, tiny_vgg(3, widths=(16, 32, 64, 64)).state_dict())
    assert str(caught.value) == (
        "the checkpoint belongs to another network: blocks.0.conv.weight, blocks.3.conv.weight, "
        "blocks.3.norm.norm.bias, blocks.3.norm.norm.num_batches_tracked, blocks.3.norm.norm.running_mean"
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Code:
    def __reduce__(self):
        return print, ("executed",)


def test_anything_but_tensors_is_refused(tmp_path, capsys):
    torch.save({"weight": Code()}, tmp_path / "code.pt")
    torch.save({"epoch": 3}, tmp_path / "facts.pt")
    (tmp_path / "noise.pt").write_bytes(b"no checkpoint")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "facts.pt").read_bytes()[:200])
    for name in ("code", "noise", "empty", "cut", "absent"):
        with pytest.raises(UserError, match=rf"{name}\.pt cannot be read"):
            load_reference_checkpoint(tiny_vgg(), tmp_path / f"{name}.pt")
    with pytest.raises(UserError, match=r"facts\.pt holds no state dictionary"):
        load_reference_checkpoint(tiny_vgg(), tmp_path / "facts.pt")
    assert "executed" not in capsys.readouterr().out
