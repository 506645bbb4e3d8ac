"""What engines do exactly on this processor.

Without VNNI an engine adds pairs of 8-bit products in int16, where they overflow; 7-bit weights are exact everywhere. Tests
take the profiles that `doctor` advises, so that they hold on either kind of processor.
"""

from mqbench_lite.host import host

HERE = host()
ONNXRUNTIME, OPENVINO = HERE.profile("onnxruntime"), HERE.profile("openvino")
REDUCED = ONNXRUNTIME != "onnxruntime"
"""Weights have 7 bits here."""
