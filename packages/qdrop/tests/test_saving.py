"""A quantised model is read back bit for bit, or not at all."""

import pytest
import torch
from nets import images, net
from torch import nn

import qdrop
from core_utils.states import unpack
from qdrop import QDropConfig, load, quantize, save
from qdrop.config import LayerOverride
from qdrop.errors import QDropError

CALIB = images(32, seed=1)


def quantised(**options):
    settings = {"w_bits": 2, "a_bits": 3, "iters": 2, "batch_size": 16, **options}
    return quantize(net(), [CALIB], QDropConfig(**settings), progress=False)


@pytest.mark.parametrize(
    "options", [{}, {"w_symmetric": True, "a_symmetric": True}, {"overrides": {"layer1.*": LayerOverride(w_bits=5)}}]
)
def test_a_model_comes_back_bit_for_bit(tmp_path, options):
    qm = quantised(**options)
    save(qm, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors", net(seed=1))
    x = images(16, seed=2)
    with torch.no_grad():
        assert torch.equal(again(x), qm(x))
    assert again.config == qm.config
    assert again.state_dict().keys() == qm.state_dict().keys()
    assert str(again.plan) == str(qm.plan)
    assert [row.name for row in again.report] == [row.name for row in qm.report]
    assert again.report[1].sqnr_db == qm.report[1].sqnr_db
    save(again, tmp_path / "again.safetensors")
    facts = [unpack((tmp_path / f"{name}.safetensors").read_bytes())[1] for name in ("model", "again")]
    assert facts[0] == facts[1]


def test_the_file_holds_codes_and_nothing_that_was_only_needed_to_learn(tmp_path):
    from safetensors import safe_open

    qm = quantised()
    save(qm, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = list(file.keys())
        codes = file.get_tensor("_weights.layer1/conv1.codes")
    assert torch.equal(codes, qm.integer_state()["layer1.conv1"].codes)
    assert codes.dtype == torch.uint8
    assert not any("alpha" in name or name == "model.layer1.conv1.weight" for name in names)


def test_dictionary_inputs_are_remembered(tmp_path):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x, scale=None):
            return self.second(torch.relu(self.first(x * scale)))

    torch.manual_seed(0)
    model, batch = Pair(), {"x": torch.randn(32, 4), "scale": torch.rand(32, 1)}
    qm = quantize(model, [batch], QDropConfig(method="nearest"), progress=False)
    save(qm, tmp_path / "model.safetensors")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "model.safetensors", Pair())(**batch), qm(**batch))


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "foreign", "empty"])
def test_a_damaged_file_is_named_in_one_line(tmp_path, damage):
    path = tmp_path / "model.safetensors"
    save(quantised(), path)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "missing":
        path.unlink()
    elif damage == "foreign":
        from safetensors.torch import save_file

        save_file({"w": torch.zeros(2)}, path)
    else:
        path.write_bytes(b"")
    with pytest.raises(QDropError) as caught:
        load(path, net())
    assert "model.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_architecture_is_refused(tmp_path):
    save(quantised(), tmp_path / "model.safetensors")
    smaller = net()
    smaller.layer1.conv2 = nn.Conv2d(8, 8, 5, padding=2, bias=False)
    with pytest.raises(QDropError, match=r"another architecture.*layer1\.conv2"):
        load(tmp_path / "model.safetensors", smaller)
    with pytest.raises(QDropError, match="another architecture"):
        load(tmp_path / "model.safetensors", nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(392, 2)))


def test_a_full_disk_loses_no_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save(quantised(), path)
    before = path.read_bytes()
    monkeypatch.setattr(qdrop.saving, "pack", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space"):
        save(quantised(), path)
    assert path.read_bytes() == before
