"""qdrop's algorithms in mqbench-lite's benchmark: they meet through entry points alone."""

import importlib.metadata

import pytest
import torch

pytestmark = pytest.mark.skipif(
    not {"qdrop", "mqbench-lite"} <= {each.name for each in importlib.metadata.distributions()},
    reason="both packages are needed",
)


def test_qdrops_algorithms_appear_beside_the_benchmarks_own():
    from mqbench_lite import algorithms

    registry = algorithms.registry()
    assert {"lsq", "adaround", "qdrop", "brecq", "qdrop-adaround"} <= set(registry.algorithms)
    assert registry.problems == ()


@pytest.mark.parametrize("name", ["qdrop", "brecq", "qdrop-adaround"])
def test_a_model_quantised_by_qdrop_runs_on_integers_as_onnx_runtime_does(name, tmp_path):
    import mqbench_lite as mqb
    from mqbench_lite.host import host

    torch.manual_seed(0)
    images = torch.randn(32, 1, 28, 28)
    net = mqb.networks.get("residual").eval()
    profile = host().profile("onnxruntime")  # 7-bit weights at the ends where 8-bit products overflow
    qm = mqb.prepare(net, profile=profile, example_inputs=(images[:2],), algorithm=name, act_bits=4, weight_bits=4)
    qm = mqb.algorithms.get(name).apply(qm, images.split(16), seed=0, steps=5, batch_size=16)
    artifact = mqb.export(qm, tmp_path / "net.onnx")
    report = mqb.verify(qm, artifact, engines=["onnxruntime"], data=[images])
    (found,) = report.engines
    assert (found.differing, found.logits, found.layers) == (0, 320, 1.0)
