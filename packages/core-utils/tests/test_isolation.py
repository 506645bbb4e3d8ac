import importlib.util
import os
import subprocess
import sys

import pytest

TEN = [
    "diffract",
    "dynsparse",
    "fedcl",
    "snn_nda",
    "snn_tet",
    "snasnet",
    "qdrop",
    "mqbench_lite",
    "imagenet_s",
    "jethr2",
]


def modules_after(statement):
    code = f"{statement}; import sys; print(*sys.modules)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize("package", TEN)
def test_none_of_the_ten_is_importable(package):
    assert importlib.util.find_spec(package) is None


@pytest.mark.skipif(os.environ.get("CORE_UTILS_BARE") != "1", reason="only the bare environment promises this")
@pytest.mark.parametrize("heavy", ["torch", "jax", "dask", "sklearn", "matplotlib", "numba"])
def test_bare_environment_holds_no_framework(heavy):
    assert importlib.util.find_spec(heavy) is None


@pytest.mark.parametrize(
    "module",
    ["claims", "runs", "jobs", "cli", "data", "bench", "settings", "spiking.events", "interrupts", "files", "states"],
)
def test_importing_a_module_loads_no_framework(module):
    loaded = modules_after(f"import core_utils.{module}")
    assert not {
        "torch",
        "jax",
        "lightning_fabric",
        "numba",
        "sklearn",
        "distributed",
        "matplotlib",
        "scipy.stats",
    } & set(loaded)


def test_importing_the_package_loads_none_of_its_modules():
    assert [name for name in modules_after("import core_utils") if name.startswith("core_utils.")] == []
