"""Quantisers and whole nets beside torch's native operations, ONNX Runtime's own quantisation and torchao's."""

from mqbench_lite.benchmarks import deployment, quantisers

BENCHMARKS = (*quantisers.BENCHMARKS, *deployment.BENCHMARKS)
