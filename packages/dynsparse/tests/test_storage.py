"""Files without zeros: the same network to the bit, of the size that was promised, and what is wrong with a file."""

import pytest
import torch
from torch import nn

from dynsparse import CheckpointError, SDConv2d, count, dynamic_layers, load, save, sd_mobilenet_v2, sd_tiny
from dynsparse.storage import pack_bits, unpack_bits


def finalised(model, sparsity=0.9):
    for _, layer in dynamic_layers(model):
        if layer.threshold is not None:
            layer.finalize(sparsity)
    return model.eval()


@pytest.mark.parametrize("sharing", ["independent", "shared"])
@pytest.mark.parametrize("variant", ["sd", "masked", "dy", "condconv", "odconv"])
def test_a_network_of_the_zoo_comes_back_to_the_bit(tmp_path, variant, sharing):
    torch.manual_seed(0)
    model = finalised(sd_tiny(variant, mask_sharing=sharing))
    save(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    x = torch.randn(3, 1, 14, 14)
    assert torch.equal(again(x), model(x))
    assert again.config == model.config
    for (_, ours), (_, theirs) in zip(dynamic_layers(again), dynamic_layers(model), strict=True):
        assert torch.equal(ours.masks(), theirs.masks())


def test_another_network_is_filled(tmp_path):
    def network():
        return nn.Sequential(SDConv2d(3, 16, 3), nn.ReLU(), SDConv2d(16, 8, 1, mask_sharing="shared"))

    torch.manual_seed(0)
    model, other = finalised(network()), network()
    save(model, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="a network that is none of the zoo"):
        load(tmp_path / "model.safetensors")
    assert load(tmp_path / "model.safetensors", other) is other
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("sharing", ["independent", "shared"])
def test_a_file_has_the_size_that_was_counted(tmp_path, sharing):
    torch.manual_seed(0)
    model = finalised(sd_mobilenet_v2(width=0.5, num_classes=100, mask_sharing=sharing))
    save(model, tmp_path / "model.safetensors")
    counted = count(model, (3, 32, 32))
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size == pytest.approx(counted.stored_bitmap, rel=0.02)
    assert size < 0.45 * 4 * counted.total


def test_bits_are_packed_eight_a_byte():
    mask = torch.tensor([[True, False, False, False, False, False, False, True], [False] * 8])
    assert pack_bits(mask).tolist() == [0b10000001, 0]
    assert pack_bits(mask[0, :3]).tolist() == [0b10000000]
    for n in (1, 7, 8, 9, 100):
        mask = torch.rand(n, generator=torch.Generator().manual_seed(n)) < 0.5
        assert torch.equal(unpack_bits(pack_bits(mask), n), mask)


def test_masks_that_learn_are_refused(tmp_path):
    with pytest.raises(RuntimeError, match=r"masks of layer '.*' still learn; call controller.finalize\(\) first"):
        save(sd_tiny(), tmp_path / "model.safetensors")
    assert not (tmp_path / "model.safetensors").exists()


def test_files_that_do_not_fit_are_named(tmp_path):
    from core_utils.training import save_weights

    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    model = finalised(sd_tiny())
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        load(path)
    save(model, path)
    with pytest.raises(CheckpointError, match="num_kernels"):
        load(path, sd_tiny(num_kernels=2))
    content = path.read_bytes()
    path.write_bytes(content[:-7])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(path)
    path.write_bytes(save_weights(model))
    with pytest.raises(CheckpointError, match=r"is not of `dynsparse\.save`"):
        load(path)


def test_bits_and_values_that_disagree_are_damage(tmp_path):
    import json
    import struct

    import safetensors.torch

    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    save(finalised(sd_tiny()), path)
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    facts = json.loads(content[8 : 8 + length])["__metadata__"]
    tensors = safetensors.torch.load(content)
    bits = next(name for name in tensors if name.endswith(".mask.bits"))
    tensors[bits] = 255 - tensors[bits]
    path.write_bytes(safetensors.torch.save(tensors, metadata=facts))
    with pytest.raises(CheckpointError, match=r"values for \d+ bits that are set"):
        load(path)
    del tensors[bits]
    path.write_bytes(safetensors.torch.save(tensors, metadata=facts))
    with pytest.raises(CheckpointError, match="has no values or no bits"):
        load(path)
