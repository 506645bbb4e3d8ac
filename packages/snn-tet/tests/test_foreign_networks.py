"""TET on networks of other libraries, in the few lines that their users need."""

import pytest
import torch
from torch import nn

from snn_tet import TETLoss, accuracy_vs_steps, tet_loss

FRAMES = 3 * torch.rand(6, 4, 2, 8, 8, generator=torch.Generator().manual_seed(0))  # [B, T, C, H, W]
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def spikingjelly_network():
    """Multi-step mode: [T, B, ...] to [T, B, K]; its neurons must be reset between batches."""
    from spikingjelly.activation_based import functional, layer, neuron

    network = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1), neuron.LIFNode(tau=2.0), layer.Flatten(), layer.Linear(256, 3)
    )
    functional.set_step_mode(network, "m")
    network.register_forward_pre_hook(lambda module, inputs: functional.reset_net(module))
    return network


class SnnTorchNetwork(nn.Module):
    """A loop over time around single-step neurons."""

    def __init__(self):
        import snntorch

        super().__init__()
        self.conv, self.readout = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(256, 3)
        self.neuron = snntorch.Leaky(beta=0.5)

    def forward(self, x_seq):
        membrane, outputs = self.neuron.init_leaky(), []
        for x in x_seq:
            spikes, membrane = self.neuron(self.conv(x), membrane)
            outputs.append(self.readout(spikes.flatten(1)))
        return torch.stack(outputs)


@pytest.mark.parametrize("make", [spikingjelly_network, SnnTorchNetwork])
def test_a_network_of_another_library_is_trained_and_evaluated(make):
    torch.manual_seed(0)
    network, criterion = make(), TETLoss(lam=0.05)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        outputs = network(FRAMES.transpose(0, 1))
        loss = criterion(outputs, LABELS)
        torch.testing.assert_close(loss, tet_loss(outputs.transpose(0, 1), LABELS, time_dim=1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]

    network.eval()
    with torch.no_grad():
        outputs = network(FRAMES.transpose(0, 1))
    result = accuracy_vs_steps(network, [(FRAMES[:4], LABELS[:4]), (FRAMES[4:], LABELS[4:])])
    assert result["prefix"][-1] == pytest.approx((outputs.mean(0).argmax(-1) == LABELS).double().mean().item())
    assert result["single"] == pytest.approx((outputs.argmax(-1) == LABELS).double().mean(1).tolist())
