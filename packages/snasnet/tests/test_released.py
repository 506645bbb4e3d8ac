"""Released weights: taken by name, by shape and order with a warning, or refused."""

import pytest
import torch

from snasnet import released
from snasnet.networks import SNASNet
from snasnet.released import SPECS, load_released, preset
from snasnet.specs import DatasetSpec


@pytest.fixture
def narrow(monkeypatch):
    """CIFAR-10's preset, an eighth as wide, so that files are small."""
    whole = preset("cifar10")
    monkeypatch.setattr(released, "preset", lambda name: {**whole, "width": 8, "hidden": 16})
    torch.manual_seed(0)
    return SNASNet(**released.preset("cifar10"))


def test_presets_are_the_paper_s():
    found = preset("cifar10")
    assert (found["width"], found["p2"], found["hidden"], found["group"], found["T"]) == (256, 4, 1024, 10, 5)
    assert found["cell"] == "0303 0030 2002 0200"
    assert preset("tinyimagenet")["stem_stride"] == 2
    assert SPECS["tinyimagenet"] == DatasetSpec(3, 64, 200)
    for name, parameters in (("cifar10", 19_520_356), ("cifar100", 20_624_500), ("tinyimagenet", 74_540_648)):
        with torch.device("meta"):
            assert sum(each.numel() for each in SNASNet(**preset(name)).parameters()) == parameters
    with pytest.raises(ValueError, match="preset must be one of cifar10, cifar100, tinyimagenet"):
        preset("mnist")


def same(model, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_weights_of_our_names_go_back_in(narrow, tmp_path):
    file = tmp_path / "weights.pth.tar"
    torch.save({f"module.{name}": value for name, value in narrow.state_dict().items()}, file)
    assert same(narrow, load_released(file, "cifar10"))


def test_weights_of_other_names_go_in_by_shape_and_order_with_a_warning(narrow, tmp_path):
    file = tmp_path / "weights.pth.tar"
    state = narrow.state_dict()
    # Theirs may list layers in another order, as long as those of one shape keep theirs.
    large_first = sorted(state.items(), key=lambda item: -item[1].numel())
    torch.save({"state_dict": {f"their.{name}": value for name, value in large_first}}, file)
    with pytest.warns(UserWarning, match="matched by shape and order"):
        assert same(narrow, load_released(file, "cifar10"))
    names = {name: f"their.{name}" for name in state}
    assert same(narrow, load_released(file, "cifar10", names))
    names["stem.weight"] = "their.reduction_conv.weight"
    with pytest.raises(ValueError, match=r"has shape \[16, 8, 3, 3\] for stem.weight, shape \[8, 3, 3, 3\]"):
        load_released(file, "cifar10", names)


def test_weights_of_another_network_are_refused_by_shape(narrow, tmp_path):
    file = tmp_path / "weights.pt"
    state = {f"their.{name}": value for name, value in narrow.state_dict().items()}
    del state["their.cell1.edges.1to2.conv.weight"]
    torch.save(state, file)
    with pytest.raises(ValueError, match=r"has 2 tensors of shape \[8, 8, 3, 3\], the network 3 .*its keys: their"):
        load_released(file, "cifar10")


def test_weights_pooled_otherwise_name_the_p2_that_fits(tmp_path):
    file = tmp_path / "weights.pt"
    torch.save({"hidden.weight": torch.zeros(1024, 2 * 256 * 8 * 8)}, file)  # p2 = 2
    with pytest.raises(ValueError, match=r"Linear of 32768 inputs, p2=4 makes 8192 .p2=2 fits"):
        load_released(file, "cifar10")


@pytest.mark.parametrize(
    ("content", "complaint"), [(b"no weights", "cannot be read"), (None, "holds no state dictionary")]
)
def test_files_without_weights_are_refused(tmp_path, content, complaint):
    file = tmp_path / "weights.pt"
    torch.save([1, 2], file) if content is None else file.write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        load_released(file, "cifar10")
