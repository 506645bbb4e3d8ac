import dataclasses

import numpy as np
import photographs
import pytest
import torch

from imagenet_s import Pipeline, Sample, SampleError
from imagenet_s.errors import ImagenetSError, ModelError
from imagenet_s.samples import as_samples
from imagenet_s.training import TrainConfig, train

CONFIG = TrainConfig(
    decoders=("pillow", "turbo-fast"),
    resizers=("pillow-bilinear", "opencv-nearest"),
    pipeline=Pipeline(size=28),
    crop="eval",
    epochs=2,
    batch_size=4,
    lr=0.05,
)


def samples(labels=(0, 1)):
    files = photographs.small(12, 40, 48)
    return as_samples(Sample(data, labels[n % len(labels)], f"{n}.jpg") for n, data in enumerate(files))


def net(classes=2):
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 5, 2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 12 * 12, classes)
    )


def trained(config, **options):
    model = net()
    history = train(model, samples(), config, progress=False, **options)
    return model, history


@pytest.mark.parametrize("method", ["mix", "worst", "consistency"])
def test_training_lowers_the_loss_and_is_the_same_again(method):
    config = dataclasses.replace(CONFIG, method=method, epochs=6, lr=0.0005, momentum=0.0)
    model, history = trained(config)
    assert history.last["loss"] < history.records[0]["loss"]
    again, _ = trained(config)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_processes_that_load_change_nothing():
    alone, _ = trained(CONFIG)
    helped, _ = trained(CONFIG, workers=1)
    for one, other in zip(alone.parameters(), helped.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_mix_of_one_trains_on_that_pipeline():
    config = dataclasses.replace(CONFIG, decoders=("pillow",), resizers=("pillow-box",), epochs=1, batch_size=12)
    seen = []

    class Watching(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()

        def forward(self, batch):
            seen.append(batch.detach().clone())
            return self.inner(batch)

    train(Watching(), samples(), config, progress=False)
    expected = {Pipeline(size=28, resizer="pillow-box")(sample.data).tobytes() for sample in samples()}
    assert {np.ascontiguousarray(image).tobytes() for image in seen[0].numpy()} == expected


def test_what_cannot_be_trained_on_is_named():
    with pytest.raises(SampleError, match=r"memory: 0.jpg has no label"):
        train(net(), samples((None,)), CONFIG, progress=False)
    with pytest.raises(ModelError, match="labels go up to 7"):
        train(net(), samples((0, 7)), CONFIG, progress=False)
    bad = as_samples([Sample(b"no image", 0, "bad.jpg")] * 4)
    with pytest.raises(SampleError, match=r"^bad.jpg: image: decoder"):
        train(net(), bad, CONFIG, progress=False)
    with pytest.raises(SampleError, match=r"^bad.jpg: image: decoder"):
        train(net(), bad, CONFIG, progress=False, workers=1)
    with pytest.raises(ImagenetSError, match="views at least 2"):
        dataclasses.replace(CONFIG, views=1)
