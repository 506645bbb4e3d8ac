"""Calibration batches as loaders give them."""

import pytest
import torch
from torch import nn

from qdrop import calibration
from qdrop.errors import CalibrationError

CPU = torch.device("cpu")
MODEL = nn.Linear(4, 2)


def read(batches, example=None, model=MODEL, forward=None):
    return calibration.read(batches, model, example, forward, CPU)


def test_labels_are_left_out():
    data = read([(torch.zeros(16, 4), torch.zeros(16, dtype=torch.long)), [torch.ones(4, 4), torch.zeros(4)]])
    assert data.sizes == [16, 4]
    assert [batch.shape for batch in data.batches] == [(16, 4), (4, 4)]


def test_a_tuple_of_inputs_is_as_long_as_the_example():
    example = (torch.zeros(1, 4), torch.zeros(1, 3))
    data = read([(torch.zeros(16, 4), torch.ones(16, 3), torch.zeros(16))], example)
    assert len(data.batches[0]) == 2


def test_a_list_of_images_is_one_argument():
    images = [torch.zeros(3, 8, 8), torch.zeros(3, 6, 9)]
    data = read([images] * 8)
    assert data.samples == 16
    assert data.batches[0] == images


def test_the_first_samples_end_within_a_batch():
    data = read([{"input": torch.arange(12.0).view(12, 1)}, {"input": torch.arange(8.0).view(8, 1)}])
    parts = [(batch["input"].flatten().tolist(), size) for batch, size in data.first(14)]
    assert parts == [(list(range(12)), 12), ([0.0, 1.0], 2)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_batch_that_is_not_finite_is_named_by_its_number(bad):
    batches = [torch.zeros(16, 4), torch.full((16, 4), bad)]
    with pytest.raises(CalibrationError, match="batch 1 holds values that are not finite"):
        read(batches)


def test_no_samples_are_an_error_and_few_a_warning():
    with pytest.raises(CalibrationError, match="empty"):
        read([])
    with pytest.warns(UserWarning, match="only 3 calibration samples"):
        read([torch.zeros(3, 4)])


def test_raw_pixels_are_an_error_and_unscaled_ones_a_warning():
    with pytest.raises(CalibrationError, match="uint8"):
        read([torch.zeros(16, 4, dtype=torch.uint8)])
    with pytest.warns(UserWarning, match="reach 255"):
        read([torch.full((16, 4), 255.0)])


def test_a_dictionary_must_hold_the_models_keywords():
    batch = {"input": torch.zeros(16, 4), "labels": torch.zeros(16)}
    with pytest.raises(CalibrationError, match=r"takes no 'labels'.*forward="):
        read([batch])
    read([batch], forward=lambda model, inputs: model(inputs["input"]))


def test_something_else_is_no_batch():
    with pytest.raises(CalibrationError, match="a batch is str"):
        read(["images"])
    with pytest.raises(CalibrationError, match="no tensor with a batch dimension"):
        read([torch.tensor(1.0)])
