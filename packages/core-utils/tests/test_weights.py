import pytest

from core_utils.errors import UserError

torch = pytest.importorskip("torch")


def network(width=3, seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.BatchNorm1d(width))


@pytest.fixture
def file(tmp_path):
    from core_utils.training import save_weights

    path = tmp_path / "model.safetensors"
    path.write_bytes(save_weights(network()))
    return path


def test_weights_come_back_to_the_bit(file):
    from core_utils.training import load_weights

    other = network(seed=1)
    load_weights(other, file)
    expected = network().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in other.state_dict().items())


def test_weights_of_another_network_are_named_and_change_nothing(file):
    from core_utils.training import load_weights

    wider = network(width=4)
    before = {name: value.clone() for name, value in wider.state_dict().items()}
    with pytest.raises(UserError, match=r"model\.safetensors belongs to another network: 0\.bias, 0\.weight, 1\.bias"):
        load_weights(wider, file)
    with pytest.raises(UserError, match=r"belongs to another network: 2\.weight"):
        load_weights(network().append(torch.nn.Linear(3, 1, bias=False)), file)
    assert all(torch.equal(value, before[name]) for name, value in wider.state_dict().items())


@pytest.mark.parametrize("content", [b"", b"no weights at all", None])
def test_files_that_cannot_be_read_are_named(tmp_path, content):
    from core_utils.training import load_weights

    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        load_weights(network(), path)


def test_other_people_s_files_give_their_tensors_by_name(tmp_path):
    from core_utils.training import read_weights

    state = network().state_dict()
    wrapped = {"module." + name: value for name, value in state.items()}
    for index, content in enumerate((state, wrapped, {"state_dict": wrapped, "epoch": 3}, {"model": state})):
        torch.save(content, tmp_path / f"{index}.pt")
        found = read_weights(tmp_path / f"{index}.pt")
        assert found.keys() == state.keys()
        assert all(torch.equal(value, found[name]) for name, value in state.items())


def test_a_file_that_holds_more_than_tensors_is_refused_and_runs_nothing(tmp_path):
    from core_utils.training import read_weights

    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    contents = {"cannot be read": [{"state_dict": Harm()}], "holds no state dictionary": [[1, 2], {"epoch": 3}, {}]}
    for complaint, examples in contents.items():
        for content in examples:
            torch.save(content, tmp_path / "bad.pt")
            with pytest.raises(UserError, match=rf"bad\.pt {complaint}"):
                read_weights(tmp_path / "bad.pt")
    assert not (tmp_path / "made").exists()


def test_efficientnet_lite0_says_what_brings_it(monkeypatch):
    from core_utils.training.lite0 import lite0

    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(UserError, match=r'timm is not installed \(pip install "qdrop\[lite0\]"\)'):
        lite0(install="qdrop[lite0]")
