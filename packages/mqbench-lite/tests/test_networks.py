"""Networks by name."""

import pytest
import torch
from nets import images

from mqbench_lite import networks
from mqbench_lite.errors import MQBenchError


@pytest.mark.parametrize(("name", "parameters"), [("residual", 77_754), ("depthwise", 28_378)])
def test_the_small_nets(name, parameters):
    net = networks.get(name)
    assert sum(value.numel() for value in net.parameters()) == parameters
    assert net.eval()(images(3)).shape == (3, 10)
    assert networks.get(name, classes=4).eval()(images(2, 1, 16, 16)).shape == (2, 4)


def test_a_function_of_the_users_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from torch import nn\n\ndef net(width=3):\n    return nn.Linear(2, width)\n\nodd = 4\n")
    assert networks.get(f"{file}:net", width=5)(torch.zeros(1, 2)).shape == (1, 5)
    for name, words in [("none", "has no function 'none'"), ("odd", "has no function 'odd'")]:
        with pytest.raises(MQBenchError, match=words):
            networks.get(f"{file}:{name}")
    with pytest.raises(MQBenchError, match="does not exist"):
        networks.get(f"{tmp_path / 'other.py'}:net")


def test_collections_by_prefix():
    pytest.importorskip("torchvision")
    assert networks.get("torchvision:squeezenet1_1", weights=None, num_classes=7).classifier[1].out_channels == 7
    with pytest.raises(MQBenchError, match="did you mean 'resnet18'"):
        networks.get("torchvision:resnet17", weights=None)


class Point:
    name, value = "theirs", "module:net"

    def load(self):
        return lambda: torch.nn.Linear(2, 3)


class Broken(Point):
    name = "broken"

    def load(self):
        raise ImportError("no module x")


def test_other_packages_networks(monkeypatch):
    monkeypatch.setattr(networks, "entry_points", lambda group: [Point(), Broken()])
    assert networks.names() == ("residual", "depthwise", "broken", "theirs")
    assert networks.get("theirs").out_features == 3
    with pytest.raises(MQBenchError, match="no module x"):
        networks.get("broken")
    with pytest.raises(MQBenchError, match="did you mean 'residual'"):
        networks.get("residuals")
