"""Profiles as data, and the schemes that cannot be."""

import dataclasses
import subprocess
import sys

import pytest

from mqbench_lite import profiles
from mqbench_lite.errors import ProfileError
from mqbench_lite.specs import HardwareProfile, QuantSpec

PAPER = {
    # the paper's table 1: weights' per channel, symmetry of weights, symmetry of activations, power of two, graph, fold
    "academic": (False, True, True, False, 1, False),
    "tensorrt": (True, True, True, False, 2, True),
    "acl": (True, False, False, False, 1, True),
    "tvm": (False, True, True, True, 3, True),
    "snpe": (False, False, False, False, 3, True),
    "fbgemm": (True, False, False, False, 3, True),
}
RUNNABLE = ("onnxruntime", "openvino", "torch-x86", "torch-qnnpack", "xnnpack")


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_six_are_as_its_table_says(name):
    p = profiles.get(name)
    found = (
        p.weight.per_channel,
        p.weight.symmetric,
        p.act.symmetric,
        p.weight.pot_scale and p.act.pot_scale,
        p.graph,
        p.fold_bn,
    )
    assert found == PAPER[name]
    assert not p.act.per_channel
    assert p.edge_bits == 8
    assert not p.executable


def test_grids_are_those_of_the_libraries():
    assert profiles.get("tensorrt").weight.grid() == (-127, 127)
    assert profiles.get("onnxruntime").weight.grid() == (-128, 127)
    assert profiles.get("onnxruntime").act.grid() == (0, 255)
    assert profiles.get("onnxruntime-avx2").weight.grid() == (-64, 63)
    assert profiles.get("xnnpack").act.grid() == (-128, 127)
    assert profiles.get("academic").act.grid(signed=False) == (0, 255)
    assert profiles.get("onnxruntime").graph == 3
    assert profiles.get("openvino").graph == 2


@pytest.mark.parametrize("name", [*RUNNABLE, "onnxruntime-avx2", "openvino-avx2", "torch-x86-avx2"])
def test_runnable_profiles_have_an_engine_and_symmetric_weights(name):
    p = profiles.get(name)
    assert p.executable
    assert p.engine
    assert p.weight.symmetric
    assert p.weight.per_channel
    assert p.bias == "int32"


def test_names_list_every_file_once():
    assert len(profiles.names()) == len(set(profiles.names())) == 15
    assert {*PAPER, *RUNNABLE, "ncnn"} < set(profiles.names())


@pytest.mark.parametrize("name", profiles.names())
def test_a_profile_survives_writing_and_reading(name, tmp_path):
    p = dataclasses.replace(profiles.get(name), edge_bits=None if name == "snpe" else 8)
    profiles.to_toml(p, tmp_path / "p.toml")
    assert profiles.from_toml(tmp_path / "p.toml") == p
    assert profiles.get(str(tmp_path / "p.toml")) == p


@pytest.mark.parametrize("name", profiles.names())
def test_no_shipped_profile_is_impossible(name):
    assert profiles.lint(profiles.get(name)) == ()
    profiles.check(profiles.get(name))


def changed(base, weight=None, act=None, **fields):
    p = profiles.get(base)
    return dataclasses.replace(
        p,
        weight=dataclasses.replace(p.weight, **(weight or {})),
        act=dataclasses.replace(p.act, **(act or {})),
        **fields,
    )


@pytest.mark.parametrize(
    ("profile", "field"),
    [
        (changed("onnxruntime", weight={"symmetric": False}), "weight.symmetric"),
        (changed("openvino-avx2", weight={"symmetric": False}), "weight.symmetric"),
        (changed("xnnpack", weight={"symmetric": False, "narrow_range": False}), "weight.symmetric"),
        (changed("tensorrt", act={"symmetric": False}), "act.symmetric"),
        (changed("tensorrt", weight={"narrow_range": False}), "weight.narrow_range"),
        (changed("onnxruntime", storage="s8"), "storage"),
        (changed("xnnpack", storage="u8"), "storage"),
        (changed("onnxruntime", act={"signed": "auto"}), "act.signed"),
        (changed("tvm", weight={"signed": False}), "weight.signed"),
        (changed("snpe", weight={"signed": "auto"}), "weight.signed"),
        (changed("snpe", fold_bn=False), "fold_bn"),
        (changed("onnxruntime", engine=None, name="mine"), "engine"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_impossible_schemes_are_found_by_field(profile, field):
    assert [finding.field for finding in profiles.lint(profile) if finding.level == "error"] == [field]
    with pytest.raises(ProfileError, match=field):
        profiles.check(profile)


@pytest.mark.parametrize(
    ("profile", "field"),
    [
        (changed("openvino", graph=3), "graph"),
        (changed("onnxruntime", graph=1), "graph"),
        (changed("tvm", weight={"pot_scale": False}), "weight.pot_scale"),
        (changed("snpe", act={"reduce_range": True}), "act.reduce_range"),
        (changed("tvm", act={"signed": False}), "act.signed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_doubtful_schemes_are_warned_of(profile, field):
    (finding,) = profiles.lint(profile)
    assert (finding.field, finding.level) == (field, "warning")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name = 'x'\nweigth = 1", "did you mean 'weight'"),
        ("name = 'x'\n[weight]\nbits = 9\n[act]", "bits is 9"),
        ("name = 'x'\n[weight]\n[act]\nper_channel = true", "per tensor"),
        ("name = 'x'\n[act]", "lacks weight"),
        ("name = 'x'\ngraph = 4\n[weight]\n[act]", "graph"),
        ("name = ", "not TOML"),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_its_name_and_key(text, words, tmp_path):
    file = tmp_path / "p.toml"
    file.write_text(text)
    with pytest.raises(ProfileError, match=words) as raised:
        profiles.from_toml(file)
    assert "p.toml" in str(raised.value)
    with pytest.raises(ProfileError, match="cannot be read"):
        profiles.from_toml(tmp_path / "none.toml")


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(ProfileError, match="did you mean 'tensorrt'"):
        profiles.get("tensort")


class Point:
    def __init__(self, name, value, error=None):
        self.name, self.value, self.given, self.error = name, "module:THING", value, error

    def load(self):
        if self.error:
            raise self.error
        return self.given


def test_other_packages_add_profiles_and_broken_ones_are_named(monkeypatch, tmp_path):
    mine = HardwareProfile(name="mine", weight=QuantSpec(), act=QuantSpec())
    profiles.to_toml(mine, tmp_path / "mine.toml")
    points = [
        Point("mine", mine),
        Point("file", tmp_path / "mine.toml"),
        Point("broken", None, ImportError("no module x")),
        Point("odd", 3),
        Point("tvm", mine),
    ]
    monkeypatch.setattr(profiles, "entry_points", lambda group: points)
    assert profiles.get("mine") == profiles.get("file") == mine
    assert set(profiles.names()) >= {"mine", "file", "tvm"}
    problems = profiles.problems()
    assert [p.split()[1] for p in problems] == ["broken", "odd", "tvm"]
    assert "no module x" in problems[0]
    assert profiles.get("tvm").graph == 3  # this package's own


def test_profiles_need_no_torch():
    code = "import sys, mqbench_lite.profiles as p; p.get('tvm'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
