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
