"""What is timed answers the same question on both sides."""

import numpy as np
import pytest
import torch
from snasnet.benchmarks import SIZE, ReferenceNetwork, images, our_inference, spikingjellys_inference

from snasnet import Cell, DatasetSpec, SNASNet, score_model

OPTIONS = {"width": 4, "hidden": 16, "T": 2}


@pytest.mark.parametrize("text", ["0302 0030 3003 0000", "0303 0030 2002 0200", "0301 0041 2000 0000"])
def test_the_transcription_scores_as_we_do_with_the_same_weights(text):
    cell = Cell(text)
    theirs = ReferenceNetwork(cell.matrix, 10, **OPTIONS)
    theirs.dropout.p = 0.0
    ours = SNASNet(cell, DatasetSpec(1, SIZE, 10), **OPTIONS)
    with torch.no_grad():
        ours.stem.weight.copy_(theirs.stem[0].weight)
        ours.reduction_conv.weight.copy_(theirs.reduction[0].weight)
        ours.hidden.weight.copy_(theirs.hidden.weight)
        for number, own in ((0, ours.cell1), (1, ours.cell2)):
            for (i, j), layer in theirs.cells[number].items():
                if cell.matrix[i, j] in (2, 3):
                    own.edges[f"{i}to{j}"].conv.weight.copy_(layer[0].weight)
        batch = images()[0][:16]
        expected = theirs.score(batch)
    # Membranes of a neuron that rounding puts at the threshold may fire on one side alone.
    assert score_model(ours, batch).score == pytest.approx(expected, abs=0.05)


def test_images_differ_between_samples_and_batches():
    first, second = images()
    assert first.shape == second.shape
    assert len(np.unique(torch.cat([first, second]).flatten(1).numpy(), axis=0)) == 2 * len(first)


@pytest.mark.slow
def test_spikingjelly_s_network_answers_in_the_same_shape():
    pytest.importorskip("spikingjelly")
    ours, theirs = our_inference()(), spikingjellys_inference()()
    assert ours.shape == theirs.shape == (4, 100)
