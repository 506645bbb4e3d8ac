"""Models by name, and weights from files."""

import sys

import pytest
import torch
from torch import nn

from qdrop import miniature
from qdrop.data import photographs
from qdrop.models import ModelError, float_model, load_weights
from qdrop.preprocessing import IMAGENET

CODE = """
import torch
from torch import nn

def small():
    torch.manual_seed(0)
    return nn.Linear(2, 3)

def broken():
    raise RuntimeError("no such thing\\nand more")

def number():
    return 3
"""


@pytest.fixture
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    (tmp_path / "mine_of_tests.py").write_text(CODE)
    yield tmp_path
    sys.modules.pop("mine_of_tests", None)


@pytest.mark.parametrize("name", ["mine_of_tests:small", "mine_of_tests.py:small"])
def test_a_factory_of_the_users_code_is_called(here, name):
    found = float_model(name)
    torch.manual_seed(0)
    assert torch.equal(found.model.weight, nn.Linear(2, 3).weight)
    assert (found.trained, found.preprocessing, found.model.training) == (True, IMAGENET, False)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("resnet18", "no model 'resnet18' (use timm:NAME"),
        ("timm:resnet81", "timm has no model 'resnet81' (did you mean 'resnet"),
        ("torchvision:resnet81", "torchvision has no model 'resnet81' (did you mean 'resnet"),
        ("nowhere.at_all:make", "no module 'nowhere'"),
        ("mine_of_tests:broken", "mine_of_tests:broken() failed: RuntimeError: no such thing"),
        ("mine_of_tests:number", "mine_of_tests:number() returned a int, not a torch.nn.Module"),
        ("none.py:make", "none.py does not exist"),
    ],
)
def test_a_name_that_cannot_be_used_is_one_line(here, name, complaint):
    with pytest.raises(ModelError) as caught:
        float_model(name)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("timm:resnet18", "timm", "timm"), ("torchvision:resnet18", "torchvision", "torchvision")],
)
def test_a_missing_extra_is_named(monkeypatch, name, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModelError, match=rf'{module} is not installed \(pip install "qdrop\[{extra}\]"\)'):
        float_model(name)


@pytest.mark.parametrize("name", ["timm:resnet10t", "torchvision:resnet18"])
def test_a_model_of_a_library_has_its_preprocessing_and_no_weights(name):
    found = float_model(name)
    assert not found.trained
    assert found.preprocessing.size == (176 if "timm" in name else 224)
    assert found.preprocessing.mean == (0.485, 0.456, 0.406)


def test_a_detector_is_built_without_fetching_its_backbone():
    assert not float_model("torchvision:ssdlite320_mobilenet_v3_large").trained


def test_download_is_for_libraries_alone(tmp_path):
    for name, weights in (("miniature", None), ("timm:resnet18", tmp_path / "x.pt")):
        with pytest.raises(ModelError, match="--download"):
            float_model(name, weights, download=True)


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch):
    import torchvision.models

    def unreachable(*_, **__):
        raise OSError("no route\nto the hub")

    monkeypatch.setattr(torchvision.models, "get_model", unreachable)
    with pytest.raises(ModelError, match=r"torchvision:resnet18: its weights cannot be downloaded: OSError: no route$"):
        float_model("torchvision:resnet18", download=True)


@pytest.mark.parametrize("kind", ["safetensors", "pt", "nested", "parallel"])
def test_weights_are_read_from_a_file(tmp_path, kind):
    import safetensors.torch

    state = {key: torch.full_like(value, 0.5) for key, value in miniature.ResidualNet().state_dict().items()}
    if kind == "safetensors":
        file = tmp_path / "w.safetensors"
        safetensors.torch.save_file(state, file)
    else:
        file = tmp_path / "w.pt"
        parallel = {f"module.{key}": value for key, value in state.items()}
        torch.save({"pt": state, "nested": {"state_dict": state, "epoch": 3}, "parallel": parallel}[kind], file)
    found = float_model("miniature", file)
    assert found.trained
    assert all((value == value.new_tensor(0.5)).all() for value in found.model.state_dict().values())


def test_the_first_key_that_does_not_fit_is_named(tmp_path):
    model, file = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), tmp_path / "w.pt"
    state = model.state_dict()
    for wrong, complaint in (
        ({key: value for key, value in state.items() if key != "1.weight"}, "it has no '1.weight'"),
        ({**state, "2.bias": torch.zeros(1)}, "the model has no '2.bias'"),
        ({**state, "0.weight": torch.zeros(3, 4)}, r"'0.weight' is \[3, 4\] there, \[3, 2\] in the model"),
    ):
        torch.save(wrong, file)
        with pytest.raises(ModelError, match=f"w.pt belongs to another architecture: {complaint}"):
            load_weights(model, file)


def test_tied_weights_may_be_stored_once(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    state = {key: torch.ones_like(value) for key, value in model.state_dict().items() if key != "1.weight"}
    torch.save(state, tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    assert torch.equal(model[1].weight, torch.ones(2, 2))


class Harmful:
    def __reduce__(self):
        return (sys.exit, (7,))


def test_a_damaged_or_harmful_file_is_refused(tmp_path):
    import safetensors.torch

    whole = tmp_path / "whole.safetensors"
    safetensors.torch.save_file(nn.Linear(2, 3).state_dict(), whole)
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:-4])
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:200])
    torch.save(Harmful(), tmp_path / "harmful.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("cut.safetensors", "cut.pt", "harmful.pt", "list.pt", "none.pt", "none.safetensors"):
        with pytest.raises(ModelError, match=rf"{name} (cannot be read|holds no state)") as caught:
            load_weights(nn.Linear(2, 3), tmp_path / name)
        assert "\n" not in str(caught.value)


def test_lite0_knows_a_cat_and_an_espresso():
    found = float_model("lite0")
    assert found.trained
    with torch.no_grad():
        cat, espresso = found.model(photographs()[:2]).argmax(-1).tolist()
    assert cat in range(281, 286)  # ImageNet's cats, tabby to Egyptian
    assert espresso == 967


def test_lite0_refuses_a_file_of_other_tensors(monkeypatch):
    from core_utils.training import lite0

    real = lite0.read_weights
    monkeypatch.setattr(lite0, "read_weights", lambda file, error: dict(list(real(file, error=error).items())[1:]))
    with pytest.raises(ModelError, match="does not hold the tensors of timm's tf_efficientnet_lite0"):
        float_model("lite0")
