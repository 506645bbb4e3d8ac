import functools
import importlib
import importlib.util
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from core_utils.spiking import backends
from core_utils.spiking.backends import fastest, load
from core_utils.spiking.neurons import lif
from core_utils.spiking.surrogates import sigmoid

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")


@pytest.fixture
def kernels_not_loaded(monkeypatch):
    monkeypatch.delitem(sys.modules, f"{backends.__name__}.on_cpu", raising=False)
    monkeypatch.setattr(backends, "_FASTEST", {})


def numba_is_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)


def numba_does_not_compile(monkeypatch):
    def njit(*options, **more):
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(importlib.import_module("numba"), "njit", njit)


@pytest.mark.usefixtures("kernels_not_loaded")
@pytest.mark.parametrize(
    ("trouble", "reason"), [(numba_is_absent, "import of numba halted"), (numba_does_not_compile, "no locator")]
)
def test_fused_takes_the_place_of_what_cannot_be_loaded_and_says_so_once(trouble, reason, monkeypatch, caplog):
    trouble(monkeypatch)
    x_seq = torch.full((3, 2), 0.75).requires_grad_()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            spikes = lif(x_seq, decay=0.5)
    (line,) = caplog.messages
    assert line.startswith("numba is not usable, fused takes its place:")
    assert reason in line
    assert spikes.grad_fn.next_functions[0][0].name() == "_FusedBackward"
    with pytest.raises((ImportError, RuntimeError), match=reason):  # who asks for numba by name must hear of it
        lif(x_seq, decay=0.5, backend="numba")


def test_other_devices_take_fused():
    assert fastest("mps") is backends.fused


@pytest.mark.slow
def test_torch_compile_takes_it_without_a_warning_about_us():
    """In a process of its own: the tests' shape checks are more than torch.compile can follow."""
    code = """
import warnings
import torch
from core_utils.spiking.neurons import lif

def network(x_seq):
    return lif(2 * x_seq, decay=0.5) * 3

gradients = []
with warnings.catch_warnings(record=True) as caught:
    for function in (torch.compile(network, backend="eager"), network):
        x_seq = torch.linspace(0, 1, 12).reshape(4, 3).requires_grad_()
        function(x_seq).sum().backward()
        gradients.append(x_seq.grad)
print(torch.equal(*gradients), gradients[0].any().item(), [w for w in caught if "lif" in str(w.message)])
"""
    assert run(sys.executable, "-c", code).stdout == "True True []\n"


def test_importing_the_neuron_compiles_nothing():
    code = """
import sys
import core_utils.spiking.neurons
print(sorted({"numba", "triton", "torch._dynamo"} & set(sys.modules)))
"""
    assert run(sys.executable, "-c", code).stdout == "[]\n"


def test_the_number_of_threads_changes_no_bit(request):
    request.addfinalizer(functools.partial(torch.set_num_threads, torch.get_num_threads()))
    x_seq = torch.rand(4, 2, 140_001, generator=torch.Generator().manual_seed(0))
    assert x_seq.numel() > load("on_cpu").PARALLEL_FROM
    outcomes = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        leaf = x_seq.clone().requires_grad_()
        spikes, v = lif(leaf, decay=0.9, surrogate=sigmoid(), return_v=True, backend="numba")
        (spikes.sum() + v.sum()).backward()
        outcomes.append((spikes.detach(), v.detach(), leaf.grad))
    for outcome in outcomes[1:]:
        assert all(map(torch.equal, outcome, outcomes[0]))


@needs_triton
def test_triton_passes_the_tests_of_the_neuron_in_its_interpreter(request, monkeypatch):
    """Its arithmetic, on tensors of the CPU; the interpreter must be chosen before Triton is imported."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    config, tests = request.config, Path(__file__).with_name("test_neurons.py")
    flags = (
        "-c",
        config.inipath,
        "--rootdir",
        config.rootpath,
        "-p",
        "no:cacheprovider",
        "-q",
        "-k",
        "triton and not gpu",
    )
    checks = config.getoption("jaxtyping_packages", None)
    shapes = () if checks is None else (f"--jaxtyping-packages={checks}",)
    result = run(sys.executable, "-m", "pytest", *flags, *shapes, tests)
    assert re.search(r"^\d\d passed", result.stdout.splitlines()[-1])


@needs_triton
@pytest.mark.parametrize("precision", ["fp64", "fp32", "fp16", "bf16"])
def test_triton_kernels_compile_for_a_gpu_and_contract_nothing(precision, monkeypatch, tmp_path):
    """To machine code of compute capability 8.0, which needs no GPU; an `fma` would round once where the loop does twice."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiler = importlib.import_module("triton.compiler")
    target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", 80, 32)
    on_gpu = load("on_gpu")
    scalars = {"decay": 0.9, "input_scale": 0.7, "threshold": 0.8, "at_threshold": True, "hard": True, "BLOCK": 1024}
    surrogate = {"from_rest": False, "detach_reset": False, "surrogate": "atan", "a": 3.1, "b": 1.0}
    for kernel, constants in [(on_gpu._forward, scalars), (on_gpu._backward, {**scalars, **surrogate})]:
        full = "fp64" if precision == "fp64" else "fp32"
        types = dict.fromkeys(kernel.arg_names, f"*{precision}")
        types |= dict.fromkeys({"v0", "v_all", "gv_all", "u_seq"} & set(types), f"*{full}")
        types |= {"stride": "i32", "T": "i32", "N": "i32", **dict.fromkeys(constants, "constexpr")}
        source = compiler.ASTSource(kernel, types, {(kernel.arg_names.index(k),): v for k, v in constants.items()})
        code = compiler.compile(source, target=target, options={"enable_fp_fusion": False}).asm
        assert len(code["cubin"]) > 0
        assert not re.findall(r"\bfma\b", code["ptx"])


def run(*command):
    """Runs a command to its end and returns what it said; a failure shows both streams."""
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result
