"""The network against a plain loop over its equations, and against the counts of the specification."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from snasnet.cells import Cell
from snasnet.networks import Memory, Neurons, SNASNet, SpikingCell, lif_neuron
from snasnet.specs import DatasetSpec

SMALL = DatasetSpec(1, 8, 10)
FEEDBACK = "0302 0030 3003 0000"


def small(cell=FEEDBACK, **options):
    torch.manual_seed(0)
    return SNASNet(cell, SMALL, **{"width": 6, "hidden": 16, "T": 4} | options)


@pytest.mark.parametrize(
    ("cell", "spec", "options", "parameters"),
    [  # figures: spec section 2.3
        ("0303 0030 2002 0200", DatasetSpec(3, 32, 10), {"width": 256, "p2": 4}, 19_520_356),
        (FEEDBACK, DatasetSpec(3, 32, 100), {}, 20_624_500),
        (FEEDBACK, DatasetSpec(3, 64, 200), {"hidden": 4096, "stem_stride": 2}, 74_540_648),
    ],
)
def test_parameters_are_as_many_as_in_the_released_models(cell, spec, options, parameters):
    with torch.device("meta"):
        model = SNASNet(cell, spec, **options)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("x", "spikes"),
    [
        ((2.0, 0.0, 1.4, 1.4), (1, 0, 1, 1)),  # u = 1.5, 0, 1.05, 1.05
        ((1.0,) * 8, (0,) * 8),  # u = 1 - 0.25^t
        ((4 / 3,) * 5, (1,) * 5),  # u = 1.0, which reaches the threshold
    ],
)
def test_the_neuron_follows_the_specification_s_vectors(x, spikes):
    neurons = Neurons(lif_neuron())
    assert neurons(torch.tensor(x)[:, None]).flatten().tolist() == list(spikes)


def test_a_membrane_goes_on_in_the_memory_of_a_call_and_nowhere_else():
    neurons, x = Neurons(lif_neuron()), 2 * torch.rand(6, 3, 2, 4, 4)
    memory = Memory()
    in_parts = torch.cat([neurons(part, memory) for part in (x[:1], x[1:4], x[4:])])
    assert torch.equal(in_parts, neurons(x))
    last = x.contiguous().permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    assert torch.equal(neurons(last), neurons(x))


def loop(cell: SpikingCell, x_seq, training):
    """The cell by the equations, one node and one step after the other, with matrices as the reference has them."""
    matrix, feedback = cell.cell.matrix, [0, 0, 0]
    potentials, outputs = {}, []

    def along(i, j, h):
        operation = matrix[i, j]
        if operation == 0:
            return 0
        if operation == 1:
            return h
        if operation == 4:
            return functional.avg_pool2d(functional.pad(h, (1, 1, 1, 1)), 3, 1)
        edge = cell.edges[f"{i}to{j}"]
        v = potentials.get((i, j), torch.zeros_like(h))
        u = v + (h - v) / (4 / 3)
        spike = (u >= 1).float()
        potentials[i, j] = u * (1 - spike)
        out, norm = functional.conv2d(spike, edge.conv.weight, padding=edge.conv.padding), edge.norm.norm
        if training:
            mean, variance = out.mean((0, 2, 3)), out.var((0, 2, 3), unbiased=False)
        else:
            mean, variance = norm.running_mean, norm.running_var
        return (out - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()

    for x in x_seq:
        h0 = x + feedback[0]
        h1 = along(0, 1, h0) + feedback[1] + torch.zeros_like(x)
        h2 = along(0, 2, h0) + along(1, 2, h1) + feedback[2] + torch.zeros_like(x)
        h3 = along(0, 3, h0) + along(1, 3, h1) + along(2, 3, h2)
        nodes = (h0, h1, h2, h3)
        feedback = [sum(along(i, j, nodes[i]) for i in range(j + 1, 4)) for j in range(3)]
        outputs.append(h3)
    return torch.stack(outputs)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        FEEDBACK,
        "0303 0030 2002 0200",
        "0233 0014 0002 0000",
        "0401 0000 0301 0000",
        "0031 0003 0200 0000",
        "0301 0041 2000 0000",
    ],
)
def test_a_cell_gives_what_a_plain_loop_over_its_equations_gives(text, training):
    torch.manual_seed(1)
    cell = SpikingCell(Cell(text), 5, lif_neuron()).train(training)
    x_seq = 2 * torch.randn(4, 3, 5, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(cell(x_seq), loop(cell, x_seq, training), rtol=1e-4, atol=1e-5)


def test_without_time_there_is_no_feedback():
    text = "0302 0030 3003 0000"
    torch.manual_seed(0)
    with_feedback = SpikingCell(Cell(text), 4, lif_neuron())
    without = SpikingCell(Cell(text).without_feedback(), 4, lif_neuron())
    without.load_state_dict(with_feedback.state_dict(), strict=False)
    x_seq = 2 * torch.randn(3, 2, 4, 6, 6)
    assert torch.equal(with_feedback(x_seq[:1]), without(x_seq[:1]))
    assert not torch.equal(with_feedback(x_seq), without(x_seq))


def test_feedback_carries_the_past_where_membranes_carry_none():
    torch.manual_seed(0)
    neuron = lif_neuron(1 + 1e-6)
    x_seq = 2 * torch.randn(2, 2, 4, 6, 6)
    other = torch.stack([torch.randn(2, 4, 6, 6), x_seq[1]])
    cell = SpikingCell(Cell("0302 0030 3003 0000"), 4, neuron)
    assert not torch.equal(cell(x_seq)[1], cell(other)[1])
    forward = SpikingCell(Cell("0302 0030 0003 0000"), 4, neuron)
    assert torch.equal(forward(x_seq)[1], forward(other)[1])


def test_steps_one_by_one_give_what_all_together_give():
    model, x = small(), torch.rand(5, 1, 8, 8)
    model.dropout.eval()
    together, apart = model.forward_sequence(x), model.forward_sequence(x, step_by_step=True)
    torch.testing.assert_close(together, apart)
    assert together.shape == (4, 5, 10)
    torch.testing.assert_close(model(x), together.mean(0))


def test_an_image_is_a_sequence_of_equal_frames():
    model = small()
    model.dropout.eval()
    nn.init.normal_(model.hidden.weight, std=2.0)  # as drawn at first, no hidden neuron spikes
    x = torch.rand(8, 1, 8, 8)
    frames = x.expand(4, 8, 1, 8, 8).contiguous()
    assert model(x).std() > 0
    torch.testing.assert_close(model(x), model(frames))


def test_the_same_input_gives_the_same_output_whatever_came_before():
    model = small()
    model.dropout.eval()
    nn.init.normal_(model.hidden.weight, std=2.0)
    x = torch.rand(8, 1, 8, 8)
    first = model(x)
    assert first.std() > 0
    model(5 * torch.rand(8, 1, 8, 8))
    assert torch.equal(model(x), first)


def test_running_averages_see_every_step_and_the_last_feedback_only_in_compat():
    for compat, feedback_steps in ((False, 3), (True, 4)):
        model = small(compat=compat)
        model(torch.rand(3, 1, 8, 8))
        assert model.cell1.edges["0to1"].norm.norm.num_batches_tracked == 4
        assert model.cell1.edges["2to0"].norm.norm.num_batches_tracked == feedback_steps
        assert model.stem_norm.norm.num_batches_tracked == 1  # once an image


def test_one_dropout_mask_serves_all_steps():
    model = small()
    seen = []
    model.dropout.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    model(torch.rand(3, 1, 8, 8))
    ((before, after),) = seen
    dropped = ((before > 0) & (after == 0)).any(0)
    assert dropped.any()
    assert not (after * dropped).any()


def test_weights_start_in_the_reference_s_bounds():
    model = small(width=32, hidden=512)
    weight = model.reduction_conv.weight.detach()
    bound = np.sqrt(2 / 5) * np.sqrt(3 / (9 * 32))
    assert weight.abs().max() <= bound
    assert weight.abs().max() > 0.99 * bound
    assert model.hidden.weight.detach().std() == pytest.approx(0.01, rel=0.02)
    assert not model.readout.bias.any()


def test_every_weight_of_a_pruned_cell_learns_and_dead_parts_have_none():
    model = small("0302 0000 0000 0000")  # 0 -> 1 leads nowhere
    assert set(model.cell1.edges) == {"0to3"}
    model = small()
    nn.init.normal_(model.hidden.weight, std=2.0)
    functional.cross_entropy(model(torch.rand(8, 1, 8, 8)), torch.arange(8)).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_the_gap_head_is_small_and_takes_any_even_size():
    model = SNASNet(FEEDBACK, DatasetSpec(2, (10, 14), 3), width=4, T=2, head="gap", group=1)
    assert model(torch.rand(5, 2, 2, 10, 14)).shape == (2, 3)
    assert model.readout.weight.shape == (3, 8)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ({"cell": "0300 0003 0000 0000"}, "cell 0300 0003 0000 0000 has no direct edge"),
        ({"spec": DatasetSpec(1, 9, 10)}, "9 x 9 pixels do not divide by 4 .the nearest size that does is 8 x 8"),
        ({"spec": DatasetSpec(1, (8, 31), 10)}, "nearest size that does is 8 x 32"),
        ({"T": 0}, "T must be at least 1, got 0"),
        ({"group": -1}, "group must be at least 1, got -1"),
        ({"head": "vote"}, "head must be one of paper, gap"),
        ({"tau": 1}, "tau must be a finite number of steps above 1"),
    ],
)
def test_a_network_that_cannot_be_is_refused(words, complaint):
    with pytest.raises(ValueError, match=complaint):
        SNASNet(**{"cell": FEEDBACK, "spec": SMALL, "width": 4, "hidden": 8} | words)


def test_images_of_another_shape_are_named():
    with pytest.raises(ValueError, match=r"1 channels and 8 x 8 pixels, got shape \[2, 3, 8, 8\]"):
        small()(torch.rand(2, 3, 8, 8))


def test_a_spec_is_read_from_the_data():
    assert DatasetSpec.of(np.zeros((4, 3, 8, 8)), np.array([0, 2, 1, 2])) == DatasetSpec(3, 8, 3)
    assert DatasetSpec.of(torch.zeros(2, 5, 2, 4, 6), torch.tensor([0, 1])) == DatasetSpec(2, (4, 6), 2)
    with pytest.raises(ValueError, match="images are"):
        DatasetSpec.of(np.zeros((4, 8, 8)), np.zeros(4, int))
    with pytest.raises(ValueError, match="none negative"):
        DatasetSpec.of(np.zeros((1, 1, 8, 8)), np.array([-1]))
