"""The losses against closed forms, golden values of the released code, and each other."""

import math

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from core_utils.errors import UserError
from snn_tet import TETLoss, sdt_loss, step_gradients, tet_loss

LABELS = torch.tensor([0, 2])


def golden_outputs():
    """`O.flat[k] = sin(k)`, shape [T=2, B=2, K=3], float64: the input of the golden values."""
    return torch.sin(torch.arange(12, dtype=torch.float64)).view(2, 2, 3)


@st.composite
def batches(draw):
    """Outputs [T, B, K] in float64 and labels [B], of any small size."""
    steps, batch, classes = draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(st.integers(2, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    outputs = draw(st.floats(0.1, 10)) * torch.randn(steps, batch, classes, generator=generator, dtype=torch.float64)
    return outputs, torch.randint(classes, (batch,), generator=generator)


# Computed with the released code in float64; from the specification's section 10.
@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (lambda o: tet_loss(o, LABELS, lam=0.0), 1.818232753),
        (lambda o: tet_loss(o, LABELS, lam=0.05), 1.798900344),
        (lambda o: sdt_loss(o, LABELS), 1.816040104),
    ],
)
def test_the_released_codes_values(loss, value):
    assert loss(golden_outputs()).item() == pytest.approx(value, abs=1e-8)


@given(batches())
def test_sdt_never_exceeds_tet(batch):
    outputs, labels = batch
    assert sdt_loss(outputs, labels) <= tet_loss(outputs, labels, lam=0.0) + 1e-12


@given(batches())
def test_one_step_or_equal_steps_make_all_losses_one(batch):
    outputs, labels = batch
    expected = functional.cross_entropy(outputs[0], labels)
    for repeated in (outputs[:1], outputs[:1].expand_as(outputs)):
        torch.testing.assert_close(tet_loss(repeated, labels, lam=0.0), expected)
        torch.testing.assert_close(sdt_loss(repeated, labels), expected)


@given(batches())
def test_every_step_gets_its_own_error(batch):
    outputs, labels = batch
    outputs.requires_grad_()
    steps, count, classes = outputs.shape
    one_hot = functional.one_hot(labels, classes)
    (gradient,) = torch.autograd.grad(tet_loss(outputs, labels, lam=0.0), outputs)
    torch.testing.assert_close(gradient, (outputs.softmax(-1) - one_hot) / (steps * count))
    (gradient,) = torch.autograd.grad(sdt_loss(outputs, labels), outputs)
    expected = (outputs.mean(0).softmax(-1) - one_hot) / (steps * count)
    torch.testing.assert_close(gradient, expected.expand_as(outputs))


@given(batches(), st.floats(-2, 2))
def test_the_second_term_pulls_to_phi(batch, phi):
    outputs, labels = batch
    outputs.requires_grad_()
    loss = tet_loss(outputs, labels, lam=1.0, phi=phi)
    torch.testing.assert_close(loss, ((outputs - phi) ** 2).mean())
    (gradient,) = torch.autograd.grad(loss, outputs)
    torch.testing.assert_close(gradient, 2 * (outputs - phi) / outputs.numel())
    assert tet_loss(torch.full_like(outputs, phi), labels, lam=1.0, phi=phi) == 0


@given(batches(), st.floats(0, 1))
def test_the_terms_are_mixed_by_lambda_and_kept(batch, lam):
    outputs, labels = batch
    loss = TETLoss(lam=lam)
    value = loss(outputs, labels)
    ce, mse = loss.components.get("ce", 0.0), loss.components.get("mse", 0.0)
    torch.testing.assert_close(value, torch.as_tensor((1 - lam) * ce + lam * mse, dtype=torch.float64))


def test_a_term_of_weight_zero_is_not_built():
    outputs = golden_outputs()
    for lam, terms in ((0.0, {"ce"}), (0.5, {"ce", "mse"}), (1.0, {"mse"})):
        loss = TETLoss(lam=lam)
        loss(outputs, LABELS)
        assert loss.components.keys() == terms
    huge = torch.full((1, 1, 2), 1e300, dtype=torch.float64)
    assert tet_loss(huge, torch.tensor([0]), lam=0.0).item() == pytest.approx(math.log(2))  # its square overflows


@given(batches(), st.randoms())
def test_the_order_of_steps_does_not_matter(batch, random):
    outputs, labels = batch
    order = list(range(len(outputs)))
    random.shuffle(order)
    torch.testing.assert_close(tet_loss(outputs[order], labels), tet_loss(outputs, labels))


@given(batches())
def test_both_layouts_agree(batch):
    outputs, labels = batch
    torch.testing.assert_close(tet_loss(outputs.transpose(0, 1), labels, time_dim=1), tet_loss(outputs, labels))
    torch.testing.assert_close(sdt_loss(outputs.transpose(0, 1), labels, time_dim=1), sdt_loss(outputs, labels))


@given(batches())
def test_hard_labels_are_soft_ones_with_all_their_weight_on_one_class(batch):
    outputs, labels = batch
    soft = functional.one_hot(labels, outputs.shape[-1]).double()
    torch.testing.assert_close(tet_loss(outputs, soft), tet_loss(outputs, labels))
    torch.testing.assert_close(sdt_loss(outputs, soft), sdt_loss(outputs, labels))


@given(batches())
def test_a_criterion_of_ones_own_sees_every_step(batch):
    outputs, labels = batch
    torch.testing.assert_close(
        TETLoss(functional.cross_entropy, lam=0.1)(outputs, labels), tet_loss(outputs, labels, lam=0.1)
    )


@given(batches())
@settings(max_examples=20)
def test_label_smoothing_is_pytorchs(batch):
    outputs, labels = batch
    expected = torch.stack([functional.cross_entropy(o, labels, label_smoothing=0.1) for o in outputs]).mean()
    torch.testing.assert_close(TETLoss(lam=0.0, label_smoothing=0.1)(outputs, labels), expected)


def test_step_weights_choose_steps():
    outputs = golden_outputs()
    first, last = (functional.cross_entropy(o, LABELS) for o in outputs)
    for weights, expected in (
        ("uniform", (first + last) / 2),
        ("last", last),
        ([3.0, 1.0], 0.75 * first + 0.25 * last),
    ):
        torch.testing.assert_close(TETLoss(lam=0.0, step_weights=weights)(outputs, LABELS), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    outputs = (8 * golden_outputs()).to(dtype).requires_grad_()
    loss = tet_loss(outputs, LABELS)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, tet_loss(outputs.float(), LABELS))
    loss.backward()
    assert outputs.grad.dtype == dtype


def test_inputs_are_not_touched():
    outputs, kept = golden_outputs(), golden_outputs()
    TETLoss()(outputs, LABELS)
    assert torch.equal(outputs, kept)


@pytest.mark.parametrize(
    ("shape", "labels", "complaint"),
    [
        ((4, 3), torch.tensor([0, 1]), r"\[T, B, K\] and not empty, got shape \[4, 3\]"),
        ((0, 2, 3), torch.tensor([0, 1]), r"not empty, got shape \[0, 2, 3\]"),
        (
            (5, 2, 3),
            torch.zeros(5, dtype=torch.long),
            r"2 samples and 5 steps as \[T, B, K\], targets 5; time and batch look swapped, try time_dim=1",
        ),
        ((5, 2, 3), torch.zeros(4, dtype=torch.long), "2 samples and 5 steps.*targets 4"),
        ((5, 2, 3), torch.tensor([0, 3]), r"lie in 0\.\.2, got 0\.\.3"),
        ((5, 2, 3), torch.tensor([-1, 0]), r"lie in 0\.\.2, got -1\.\.0"),
        ((5, 2, 3), torch.zeros(2, 4), r"probabilities must be \[2, 3\], got shape \[2, 4\]"),
        ((5, 2, 3), torch.zeros(2, 3, dtype=torch.long), r"indices must be \[2\], got shape \[2, 3\]"),
    ],
)
@pytest.mark.parametrize("loss", [tet_loss, sdt_loss])
def test_what_does_not_fit_is_named_with_its_shape(loss, shape, labels, complaint):
    with pytest.raises(UserError, match=complaint):
        loss(torch.zeros(shape), labels)
    assert issubclass(UserError, ValueError)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"lam": -0.1}, "lam must lie in"),
        ({"lam": 1.1}, "lam must lie in"),
        ({"lam": math.nan}, "lam must lie in"),
        ({"label_smoothing": 1.0}, "label_smoothing must lie in"),
        ({"criterion": "mse"}, "criterion must be"),
        ({"criterion": functional.cross_entropy, "label_smoothing": 0.1}, "smooths itself"),
        ({"time_dim": 2}, "time_dim must be 0 or 1"),
        ({"step_weights": "first"}, "step_weights must be uniform, last"),
        ({"step_weights": [1.0]}, "step_weights must be 2 numbers"),
        ({"step_weights": [-1.0, 2.0]}, "none negative"),
        ({"step_weights": [0.0, 0.0]}, "not all zero"),
    ],
)
def test_options_out_of_range_are_named(options, complaint):
    with pytest.raises(UserError, match=complaint):
        TETLoss(**options)(golden_outputs(), LABELS)


@given(batches())
def test_sdts_steps_share_one_gradient(batch):
    outputs, labels = batch
    shared = step_gradients(outputs, labels, sdt_loss)
    torch.testing.assert_close(shared["cosine"], torch.ones(len(outputs), len(outputs), dtype=torch.float64))
    torch.testing.assert_close(shared["norm"], shared["norm"][:1].expand(len(outputs)))


def test_a_step_that_is_wrong_still_pulls_when_the_mean_is_right():
    # Two steps, one sample of class 0: the first step is sure and wrong, the mean is sure and right.
    outputs = torch.tensor([[[0.0, 10.0]], [[60.0, 0.0]]], dtype=torch.float64)
    label = torch.tensor([0])
    assert step_gradients(outputs, label, sdt_loss)["norm"].max() < 1e-9
    own = step_gradients(outputs, label, lambda o, y: tet_loss(o, y, lam=0.0))
    # (softmax - one hot) / T: both entries are 1 / (1 + exp(-10)) in absolute value, halved.
    assert own["norm"][0].item() == pytest.approx(math.sqrt(2) / (1 + math.exp(-10)) / 2)
    assert own["norm"][1].item() < 1e-9


def test_a_vanishing_gradient_has_no_direction():
    cosine = step_gradients(torch.ones(2, 1, 3), torch.tensor([0]), lambda o, y: ((o[0] - 2) ** 2).sum())["cosine"]
    torch.testing.assert_close(cosine, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))


@given(batches(), st.sampled_from([list, tuple]), st.integers(0, 1))
def test_a_list_of_each_steps_outputs_is_taken_whatever_the_layout(batch, kind, time_dim):
    outputs, labels = batch
    steps = kind(outputs.unbind(0))
    torch.testing.assert_close(tet_loss(steps, labels, time_dim=time_dim), tet_loss(outputs, labels))
    torch.testing.assert_close(sdt_loss(steps, labels, time_dim=time_dim), sdt_loss(outputs, labels))


@pytest.mark.parametrize(
    "outputs", [[], [torch.zeros(2, 3), torch.zeros(2, 4)], [torch.zeros(2)], (torch.zeros(5, 2, 3), torch.zeros(2, 3))]
)
def test_any_other_list_is_refused_with_its_shapes(outputs):
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(UserError, match=r"must hold a tensor \[B, K\] for every step"):
            tet_loss(outputs, LABELS)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
