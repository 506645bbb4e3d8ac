"""Two processes on half batches each, before and after masks are frozen."""

import os
import subprocess
import sys
import textwrap

import pytest
import safetensors.torch
import torch

SCRIPT = textwrap.dedent("""
    import os
    import sys
    import numpy as np
    import safetensors.torch
    import torch
    from torch import nn
    from core_utils.training import Arrays, Loader
    from dynsparse import SDConv2d, TrainConfig, train

    world, file = int(sys.argv[1]), sys.argv[2]
    torch.manual_seed(0)
    convolutions = (SDConv2d(1, 8, 3, padding=1), nn.ReLU(), SDConv2d(8, 8, 3), nn.ReLU())  # no batch normalisation
    model = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    rng = np.random.default_rng(0)
    data = Arrays(rng.normal(size=(16, 1, 8, 8)).astype(np.float32), rng.integers(3, size=16))
    config = TrainConfig(epochs=4, target_sparsity=0.5, batch_size=8 // world)
    train(model, Loader(data, 8 // world, seed=4), config, progress=False)
    if os.environ.get("RANK", "0") == "0":
        safetensors.torch.save_file(model.state_dict(), file)
""")


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    torchrun = (
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "--local-addr=127.0.0.1",
    )
    for world, launcher in ((1, (sys.executable,)), (2, torchrun)):
        command = [*launcher, str(tmp_path / "train.py"), str(world), str(tmp_path / f"{world}.safetensors")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (safetensors.torch.load_file(tmp_path / f"{world}.safetensors") for world in (1, 2))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5, msg=name)
