import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from core_utils.memory import reuse_freed_memory

if sys.argv[1] == "yes" and not reuse_freed_memory():
    sys.exit("unknown")
np.ones(6_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(6_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone knows the setting")
def test_freed_arrays_are_used_again_without_page_faults():
    faults = {}
    for reuse in ("yes", "no"):
        done = subprocess.run([sys.executable, "-c", PROGRAM, reuse], capture_output=True, text=True, timeout=60)
        if "unknown" in done.stderr:
            pytest.skip("this C library does not know the setting")
        faults[reuse] = int(done.stdout)
    assert faults["no"] > 1000  # else nothing is shown
    assert faults["yes"] < faults["no"] / 10
