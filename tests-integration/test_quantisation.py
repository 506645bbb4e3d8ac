"""qdrop's algorithms in mqbench-lite's benchmark: they meet through entry points alone."""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import mqbench_lite as mqb
from core_utils.data import fashion_mnist_small
from core_utils.training import Arrays, Loader, fit, seed_everything
from mqbench_lite.host import host

BROUGHT = {"qdrop", "brecq", "qdrop-adaround"}
COMPARED = ("minmax", "lsq", "qdrop")
PROFILE = host().profile("onnxruntime")  # 7-bit weights at the ends where 8-bit products overflow
MEAN, DEVIATION = 0.286, 0.353  # of mqbench-lite's preprocessing of these images
PROGRAM = """
import importlib.util, sys
from importlib.metadata import entry_points

sys.path.append({site!r})
assert importlib.util.find_spec("qdrop") is None
sys.argv = ["mqbench-lite", *{words}]
(program,) = entry_points(group="console_scripts", name="mqbench-lite")
sys.exit(program.load()())
"""


def test_qdrops_algorithms_appear_beside_the_benchmarks_own():
    registry = mqb.algorithms.registry()
    assert {"lsq", "adaround", *BROUGHT} <= set(registry.algorithms)
    assert registry.problems == ()


@pytest.mark.parametrize("name", sorted(BROUGHT))
def test_a_model_quantised_by_qdrop_runs_on_integers_as_onnx_runtime_does(name, tmp_path):
    torch.manual_seed(0)
    images = torch.randn(32, 1, 28, 28)
    net = mqb.networks.get("residual").eval()
    qm = mqb.prepare(net, profile=PROFILE, example_inputs=(images[:2],), algorithm=name, act_bits=4, weight_bits=4)
    qm = mqb.algorithms.get(name).apply(qm, images.split(16), seed=0, steps=5, batch_size=16)
    artifact = mqb.export(qm, tmp_path / "net.onnx")
    report = mqb.verify(qm, artifact, engines=["onnxruntime"], data=[images])
    (found,) = report.engines
    assert (found.differing, found.logits, found.layers) == (0, 320, 1.0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with the residual net's weights after two passes over half of the images."""
    images = fashion_mnist_small()
    x = (torch.from_numpy(images.x_train[:4000])[:, None].float() / 255 - MEAN) / DEVIATION
    seed_everything(0)
    net = mqb.networks.get("residual")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more would round otherwise on another number of cores
    fit(
        net,
        lambda model, batch, _: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        Loader(Arrays(x, images.y_train[:4000]), 100),
        optimizer=torch.optim.Adam(net.parameters(), 5e-3),
        epochs=2,
        progress=False,
    )
    torch.set_num_threads(threads)
    file = tmp_path_factory.mktemp("weights") / "residual.safetensors"
    safetensors.torch.save_file(net.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def benchmark(weights, tmp_path_factory):
    """The run's folder of `mqbench-lite grid`: three algorithms on one net, three bits."""
    folder = tmp_path_factory.mktemp("grid")
    short = {"seeds": 1, "calibration": 128, "steps": 30, "ptq_steps": 40}
    point = {"network": "residual", "weights": str(weights), "profiles": [PROFILE], "bits": ["3/3"]}
    settings = {"algorithms": COMPARED, **point, **short}
    lines = (f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
    (folder / "grid.toml").write_text("".join(lines))
    program = Path(sys.executable).with_name("mqbench-lite")
    words = ["grid", "--config", folder / "grid.toml", "--out", folder / "run", "--workers", "2", "--quiet"]
    done = subprocess.run([program, *words], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_one_table_holds_qdrop_beside_lsq_and_minmax(benchmark):
    (table,) = json.loads((benchmark / "leaderboard.json").read_text())
    assert (table["network"], table["bits"], table["profiles"]) == ("residual", "3/3", [PROFILE])
    accuracy = {row["algorithm"]: row["scores"][PROFILE]["mean"] for row in table["rows"]}
    assert accuracy.keys() == set(COMPARED)
    assert [row["rank"] for row in table["rows"]] == [1, 2, 3]
    assert list(accuracy.values()) == sorted(accuracy.values(), reverse=True)
    # At three bits, ranges from the extremes cost more than what is learned; how much follows the processor's rounding.
    assert accuracy["minmax"] + 2 < max(accuracy["qdrop"], accuracy["lsq"])
    assert min(accuracy["qdrop"], accuracy["lsq"]) > 20  # of ten classes
    assert table["float_accuracy"] > 70


def test_every_point_of_the_table_is_onnx_runtimes_to_the_bit(benchmark):
    rows = [json.loads(line) for line in (benchmark / "results.jsonl").read_text().splitlines()]
    assert [row["algorithm"] for row in rows] == list(COMPARED)
    for row in rows:
        (found,) = row["engines"]["engines"]
        assert (found["engine"], found["differing"], found["logits"]) == ("onnxruntime", 0, 20_000)


@pytest.fixture(scope="module")
def without_qdrop(tmp_path_factory):
    """Runs mqbench-lite where everything but qdrop is installed."""
    site = tmp_path_factory.mktemp("site")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if entry.name.partition("-")[0] != "qdrop":
            (site / entry.name).symlink_to(entry)

    def run(*words):
        code = PROGRAM.format(site=str(site), words=words)
        return subprocess.run([sys.executable, "-ISc", code], capture_output=True, text=True, timeout=60, check=False)

    return run


def test_what_is_not_installed_is_not_listed(without_qdrop):
    done = without_qdrop("doctor", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert not BROUGHT & set(found["algorithms"])
    assert {"lsq", "adaround", "minmax"} <= set(found["algorithms"])
    assert found["problems"] == []


def test_what_is_not_installed_is_refused_in_one_line(without_qdrop, tmp_path):
    done = without_qdrop("grid", "--set", 'algorithms=["lsq", "qdrop"]', "--out", str(tmp_path / "run"))
    assert done.returncode == 2
    assert done.stderr.startswith("mqbench-lite: there is no algorithm 'qdrop' (use one of adaround, ")
    assert done.stderr.count("\n") == 1
