"""What an encoder's frozen features are worth: a linear classifier on top of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from core_utils.errors import UserError
from core_utils.spiking.layout import time_first
from snn_nda.networks import features


def linear_probe(
    encoder: nn.Module,
    train: Iterable[Any],
    test: Iterable[Any],
    *,
    decay: float = 1e-3,
    steps: int = 200,
) -> dict[str, float]:
    """What a linear classifier makes of the features of a frozen encoder: multinomial logistic regression.

    Features are standardised by the training part; the loss is convex, so that the result depends on no seed.

    Args:
        encoder: from frames [T, B, C, H, W] to activity [T, B, ...]; not changed.
        train: labelled batches (frames [B, T, C, H, W], labels [B]).
        test: likewise, to measure on.
        decay: weight of half the squared norm of the weights.
        steps: of L-BFGS at most.

    Returns:
        `train_accuracy` and `test_accuracy`, fractions, and `loss`, nats a training recording without the decay.

    Raises:
        UserError: an empty part.
    """
    (x, y), (x_test, y_test) = encoded(encoder, train), encoded(encoder, test)
    mean, deviation = x.mean(0), x.std(0, unbiased=False)
    scale = torch.where(deviation > 1e-6, 1 / deviation.clamp_min(1e-6), 0.0)  # a silent feature says nothing
    x, x_test = ((part - mean) * scale for part in (x, x_test))
    classes = int(torch.cat([y, y_test]).max()) + 1
    weight = torch.zeros(classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(x @ weight.T + bias, y) + 0.5 * decay * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(closure)
    with torch.no_grad():
        scores = [part @ weight.T + bias for part in (x, x_test)]
    return {
        "train_accuracy": float((scores[0].argmax(1) == y).double().mean()),
        "test_accuracy": float((scores[1].argmax(1) == y_test).double().mean()),
        "loss": float(functional.cross_entropy(scores[0], y)),
    }


@torch.no_grad()
def calibrate(encoder: nn.Module, loader: Iterable[Any]) -> None:
    """Sets the running averages of an encoder's batch normalisations to the statistics of some data.

    A new encoder has seen nothing and is nearly silent in evaluation, so that no probe of it would be fair.

    Args:
        encoder: changed in place, in its running averages alone.
        loader: batches (frames [B, T, C, H, W], labels [B]); each counts the same.
    """
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    training, momenta = encoder.training, [norm.momentum for norm in norms]
    device = next(encoder.parameters()).device
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average
    encoder.train()
    for frames, _ in loader:
        encoder(time_first(frames.to(device)))
    encoder.train(training)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@torch.no_grad()
def encoded(encoder: nn.Module, loader: Iterable[Any]) -> tuple[Float[Tensor, "n D"], Int64[Tensor, " n"]]:
    """Features and labels of all recordings; the encoder is in evaluation mode for the call.

    Raises:
        UserError: there is no batch.
    """
    parameter = next(encoder.parameters(), torch.empty(0))
    training, found, labels = encoder.training, [], []
    encoder.eval()
    try:
        for frames, targets in loader:
            found.append(features(encoder, time_first(frames.to(parameter.device))).cpu())
            labels.append(targets)
    finally:
        encoder.train(training)
    if not found:
        raise UserError("there is nothing to encode: the loader is empty")
    return torch.cat(found), torch.cat(labels)
