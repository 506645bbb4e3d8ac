"""The registry: what is built in, what plug-ins bring, and what is wrong with some of them."""

import sys
from importlib.metadata import EntryPoint

import pytest
import torch
from small_nets import loader, net, shapes

from mqbench_lite import algorithms
from mqbench_lite.algorithms import BUILT_IN, GROUP, Algorithm, get, names, registry
from mqbench_lite.built_in import MINMAX, Lsq
from mqbench_lite.calibration import quantizers_of
from mqbench_lite.errors import MQBenchError
from mqbench_lite.learned import LearnedStep
from mqbench_lite.quantizers import Quantizer
from mqbench_lite.specs import QuantSpec

PLUGINS = """
from dataclasses import dataclass

from mqbench_lite.quantizers import Quantizer


@dataclass(frozen=True)
class Plugin:
    name: str = "mine"
    kind: str = "ptq"
    api_version: int = 1

    def make_quantizer(self, spec, role):
        return Quantizer(spec, role)

    def apply(self, qmodel, calib_loader, *, seed, steps):
        return qmodel


MINE = Plugin()
TAKEN = Plugin("lsq")
OLD = Plugin("older", api_version=0)
ODD = Plugin("odd", kind="magic")
NO_APPLY = type("NoApply", (), {"name": "n", "kind": "ptq", "api_version": 1, "make_quantizer": lambda *_: None})()
NOTHING = object()
"""


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """A fake distribution `plugged` whose entry points are installed."""

    def install(**points):
        (tmp_path / "plugged_algorithms.py").write_text(PLUGINS)
        info = tmp_path / "plugged-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged\nVersion: 1.0\n")
        lines = "\n".join(f"{name} = {value}" for name, value in points.items())
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{lines}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "plugged_algorithms", raising=False)

    yield install
    sys.modules.pop("plugged_algorithms", None)


def test_all_that_is_promised_is_built_in():
    assert names()[:9] == ("lsq", "pact", "dorefa", "dsq", "ste", "qil", "apot", "minmax", "adaround")
    assert all(isinstance(each, Algorithm) and each.api_version == 1 for each in BUILT_IN)
    assert {each.name for each in BUILT_IN if each.kind == "ptq"} == {"minmax", "adaround"}


def test_a_plug_in_is_found_by_its_entry_point(distribution):
    distribution(mine="plugged_algorithms:MINE")
    assert get("mine").make_quantizer(QuantSpec(), "act").state == "idle"
    assert "mine" in names()


def test_broken_plug_ins_are_named_and_hide_no_other(distribution):
    distribution(
        broken="no_such_module:X",
        taken="plugged_algorithms:TAKEN",
        old="plugged_algorithms:OLD",
        odd="plugged_algorithms:ODD",
        lazy="plugged_algorithms:NO_APPLY",
        nothing="plugged_algorithms:NOTHING",
        mine="plugged_algorithms:MINE",
    )
    found = registry()
    assert found.algorithms["mine"].name == "mine"
    assert isinstance(found.algorithms["lsq"], Lsq)
    problems = [problem for problem in found.problems if "plugged" in problem]
    assert [problem.split(" ", 7)[2] for problem in problems] == ["broken", "taken", "old", "odd", "lazy", "nothing"]
    expected = [
        "does not load: ModuleNotFoundError: No module named 'no_such_module'",
        "takes the name 'lsq', which is taken",
        "is for api_version 0; this is 1",
        "has the kind 'magic'; it must be qat or ptq",
        "is of kind ptq and has no apply",
        "is no algorithm: it lacks name, kind, api_version, make_quantizer",
    ]
    assert [problem.endswith(end) for problem, end in zip(problems, expected, strict=True)] == [True] * 6
    assert problems[1].startswith("the plug-in taken of plugged (plugged_algorithms:TAKEN)")


def test_this_packages_own_entry_points_are_no_duplicates():
    own = [EntryPoint(each.name, f"mqbench_lite.built_in:{each.name.upper()}", GROUP) for each in BUILT_IN]
    found = registry(own)
    assert found.problems == ()
    assert tuple(found.algorithms.values()) == BUILT_IN


def test_an_unknown_name_or_option_lists_those_that_there_are():
    with pytest.raises(MQBenchError, match=r"no algorithm 'lqs' \(use one of .*lsq"):
        get("lqs")
    with pytest.raises(MQBenchError, match=r"no option 'start' \(it has init\)"):
        get("lsq", start=3)
    with pytest.raises(MQBenchError, match="no init"):
        get("lsq", init="median")
    with pytest.raises(MQBenchError, match="positive"):
        get("pact", start=-1.0)


def test_lsq_starts_at_the_least_error_unless_told_otherwise():
    assert {
        (init, role): get("lsq", init=init).make_quantizer(QuantSpec(), role).default_observer
        for init in ("mse", "mean", "std")
        for role in ("weight", "act")
    } == {
        ("mse", "weight"): "mse",
        ("mse", "act"): "mse",
        ("mean", "weight"): "mean",
        ("mean", "act"): "mean",
        ("std", "weight"): "std",
        ("std", "act"): "mse",
    }
    assert get("lsq").make_quantizer(QuantSpec(), "act").default_observer == "mse"
    assert isinstance(get("lsq").make_quantizer(QuantSpec(), "act"), LearnedStep)


def test_the_literal_form_of_dorefa_warns(caplog):
    assert not get("dorefa", paper_scale=True).make_quantizer(QuantSpec(), "weight").keeps_scale
    assert "training diverges" in caplog.text
    assert get("dorefa").make_quantizer(QuantSpec(), "weight").keeps_scale


def test_ste_is_dsq_without_the_staircase():
    soft, hard = (calibrated(name) for name in ("dsq", "ste"))
    x = shapes(16)[0]
    assert torch.equal(soft.eval()(x), hard.eval()(x))
    assert type(hard.first) is Quantizer


def calibrated(name):
    model = net(name)
    return algorithms.built_in.calibrate(model, loader())


def test_min_max_is_applied_by_calibrating_and_freezing():
    model = MINMAX.apply(net("minmax", bits=8), loader(), seed=0, steps=0, observer="mse")
    assert {quantizer.state for _, quantizer in quantizers_of(model)} == {"frozen"}
    x = shapes(64)[0]
    float_model = net("minmax", bits=8)
    assert (model.eval()(x) - float_model.eval()(x)).abs().max() < 0.05
