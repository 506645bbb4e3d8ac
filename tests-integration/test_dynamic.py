"""dynsparse's networks, their masks final, on the grids of mqbench-lite."""

from mqbench_lite.host import host

PROFILE = host().profile("onnxruntime")  # 7-bit weights at the ends where 8-bit products overflow
