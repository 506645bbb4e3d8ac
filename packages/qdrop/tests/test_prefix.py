"""The network is taken from unit to unit, each run once."""

from collections import Counter

import torch
from torch import nn

import qdrop
from qdrop import QDropConfig, quantize
from qdrop.cache import Store

CONFIG = QDropConfig(iters=1, batch_size=8, method="case2")


class Block(nn.Module):
    """Two linear layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


class Branching(nn.Module):
    """Five blocks; the last reads the sum of the first and the fourth, and functions stand between."""

    def __init__(self, depth=5):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.head = nn.Linear(8, 3)
        self.calls = Counter()
        for number, each in enumerate(self.blocks):
            each.register_forward_pre_hook(lambda *_, number=number: self.calls.update([number]))

    def forward(self, x):
        first = torch.tanh(self.blocks[0](x))
        y = first
        for block in self.blocks[1:-1]:
            y = torch.tanh(block(y))
        y += first
        return self.head(torch.tanh(self.blocks[-1](y * 2)))


def seen_inputs(model, config=CONFIG, batches=4):
    """Inputs of every unit as `reconstruct_unit` gets them, by the unit's name."""
    found = {}
    reconstruct = qdrop.quantization.reconstruct_unit

    def look(unit, teacher, cache, *rest):
        found[unit.name] = [cache.fp_inputs[i] for i in range(len(cache.fp_inputs))]
        return reconstruct(unit, teacher, cache, *rest)

    calib = torch.randn(8 * batches, 8, generator=torch.Generator().manual_seed(0))
    qdrop.quantization.reconstruct_unit = look
    try:
        quantize(model, calib.split(8), config, progress=False)
    finally:
        qdrop.quantization.reconstruct_unit = reconstruct
    return calib, found


def test_outputs_that_later_units_need_are_kept():
    torch.manual_seed(0)
    model = Branching()
    calib, found = seen_inputs(model)
    expected = {}
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: expected.update({name: args[0].clone()}))
        for name, module in model.named_modules()
        if name in found
    ]
    with torch.no_grad():
        model(calib)
    for handle in handles:
        handle.remove()
    assert set(found) == {f"blocks.{n}" for n in range(5)} | {"head"}
    for name, inputs in found.items():
        torch.testing.assert_close(torch.stack(inputs), expected[name], rtol=1e-5, atol=1e-6)


def test_the_number_of_runs_of_a_unit_does_not_grow_with_depth(monkeypatch):
    runs = {}
    for depth in (4, 8):
        torch.manual_seed(0)
        counted = Counter()
        original = qdrop.reconstruction.Unit.call

        def call(self, inputs, counted=counted, original=original):
            counted[self.name, self.student is None] += 1
            return original(self, inputs)

        monkeypatch.setattr(qdrop.reconstruction.Unit, "call", call)
        seen_inputs(Branching(depth))
        monkeypatch.undo()
        runs[depth] = {counted[f"blocks.{n}", True] for n in range(depth)}
    assert runs[4] == runs[8] == {8}  # 4 batches, for the targets and to go on


def test_the_memory_of_the_cache_does_not_grow_with_depth(monkeypatch):
    peaks = {}
    for depth in (4, 12):
        torch.manual_seed(0)
        alive, peak = Counter(), [0]
        original = Store.empty

        def empty(self, shape, dtype, alive=alive, peak=peak, original=original):
            import weakref

            tensor = original(self, shape, dtype)
            alive["bytes"] += tensor.nbytes
            peak[0] = max(peak[0], alive["bytes"])
            weakref.finalize(tensor.untyped_storage(), lambda size=tensor.nbytes: alive.subtract({"bytes": size}))
            weakref.finalize(tensor, lambda: None)
            return tensor

        monkeypatch.setattr(Store, "empty", empty)
        seen_inputs(Branching(depth), batches=16)
        monkeypatch.undo()
        peaks[depth] = peak[0]
    assert peaks[4] == peaks[12]


def test_a_unit_that_is_not_reached_on_every_batch_is_named():
    import pytest

    from qdrop.errors import ReconstructionError

    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = torch.relu(self.first(x))
            return self.second(x) if x.shape[0] != 3 else x

    torch.manual_seed(0)
    with pytest.raises(ReconstructionError, match="unit second is not reached on every calibration batch"):
        quantize(Sometimes(), [torch.randn(16, 4), torch.randn(3, 4)], CONFIG, progress=False)
