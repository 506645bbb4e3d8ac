import math
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core_utils.errors import UserError
from core_utils.spiking.backends import BACKENDS
from core_utils.spiking.backends.fused import BLOCK
from core_utils.spiking.dynamics import Neuron
from core_utils.spiking.neurons import lif, lif_step
from core_utils.spiking.surrogates import atan, rectangle, sigmoid, triangle

ROWS = {
    "snn-tet": {"decay": 0.5, "surrogate": triangle(1.0)},
    "snn-nda": {"decay": 0.25, "threshold": 0.5, "compare": ">=", "surrogate": rectangle(1.0)},
    "snasnet": {"decay": 0.25, "input_scale": 0.75, "compare": ">=", "detach_reset": True, "surrogate": atan(2.0)},
    "tet-wide": {"decay": 0.25, "threshold": 0.7, "surrogate": triangle(2.0)},
    "soft": {"decay": 0.9, "threshold": 0.8, "input_scale": 0.7, "reset": "soft", "surrogate": sigmoid(4.0)},
    "soft-detached": {"decay": 1.0, "reset": "soft", "detach_reset": True, "surrogate": triangle(1.0)},
}


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # as test_backends.py runs this file once more
AVAILABLE = [name for name in BACKENDS if name != "triton" or INTERPRETED]
FAST = [name for name in AVAILABLE if name != "reference"]
NODES = {"fused": "_FusedBackward", "numba": "_CompiledBackward", "triton": "_CompiledBackward"}


@pytest.fixture(params=AVAILABLE)
def backend(request):
    return request.param


@pytest.fixture(params=FAST)
def fast(request):
    return request.param


def node(spikes):
    """The name of the node of the graph that made the spikes."""
    return spikes.grad_fn.next_functions[0][0].name()


def random_input(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(*shape, generator=generator) * 1.6 - 0.2).to(dtype)


def outcome(x_seq, v0=None, **options):
    """Spikes, last potential, and the gradients to input and start of a random linear functional of both."""
    x_seq = x_seq.detach().clone().requires_grad_()
    v0 = None if v0 is None else v0.detach().clone().requires_grad_()
    spikes, v = lif(x_seq, v0=v0, return_v=True, **options)
    weights = random_input(*spikes.shape, seed=1, dtype=torch.float64).to(spikes.device)
    end_weights = random_input(*v.shape, seed=2, dtype=torch.float64).to(v.device)
    ((spikes * weights).sum() + (v * end_weights).sum()).backward()
    return spikes.detach(), v.detach(), x_seq.grad, None if v0 is None else v0.grad


def assert_agree(ours, oracle, rtol=1e-6):
    assert torch.equal(ours[0], oracle[0])
    assert torch.equal(ours[1], oracle[1])
    for gradient, expected in zip(ours[2:], oracle[2:], strict=True):
        assert (gradient is None) == (expected is None)
        if gradient is not None:
            assert gradient.dtype == expected.dtype
            scale = expected.abs().max().item() if expected.numel() else 1.0
            torch.testing.assert_close(gradient, expected, rtol=rtol, atol=rtol * scale)


def test_golden_values_of_the_official_code(backend):
    """Spec of snn-tet, section 10: V_th 1, decay 0.5, gamma 1, reset not detached, float64."""
    x_seq = torch.tensor([0.6, 0.6, 0.6, 1.2, 0.2], dtype=torch.float64).reshape(5, 1).requires_grad_()
    spikes = lif(x_seq, decay=0.5, backend=backend)
    spikes.sum().backward()
    assert spikes.flatten().tolist() == [0, 0, 1, 1, 0]
    expected = [0.906206, 0.956894, 0.598880, 0.704000, 0.200000]
    assert x_seq.grad.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_spike_at_the_threshold_depends_on_compare(backend):
    at_threshold = torch.ones(1, 1)
    assert lif(at_threshold, decay=0.5, compare=">", backend=backend).item() == 0
    assert lif(at_threshold, decay=0.5, compare=">=", backend=backend).item() == 1


@pytest.mark.parametrize(("reset", "left"), [("hard", 0.0), ("soft", 0.5)])
def test_reset_sets_to_zero_or_subtracts_the_threshold(backend, reset, left):
    spikes, v = lif(torch.tensor([[2.0]]), decay=0.5, threshold=1.5, reset=reset, return_v=True, backend=backend)
    assert (spikes.item(), v.item()) == (1.0, left)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("start", [False, True])
def test_every_backend_agrees_with_the_plain_loop(row, start, fast):
    x_seq, v0 = random_input(6, 3, 4, 5, 5), random_input(3, 4, 5, 5, seed=3) if start else None
    oracle = outcome(x_seq, v0, **ROWS[row], backend="reference")
    assert 0.1 < oracle[0].mean() < 0.9
    assert_agree(outcome(x_seq, v0, **ROWS[row], backend=fast), oracle)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", ["fused", "triton"])
def test_every_backend_agrees_on_a_gpu(backend):
    for dtype, rtol in [(torch.float16, 1e-3), (torch.float32, 1e-6), (torch.float64, 1e-12)]:
        x_seq, v0 = random_input(6, 3, 4, 50, dtype=dtype).cuda(), random_input(3, 4, 50, seed=3).cuda()
        for options in ROWS.values():
            oracle = outcome(x_seq, v0, **options, backend="reference")
            assert_agree(outcome(x_seq, v0, **options, backend=backend), oracle, rtol)


def test_every_backend_agrees_beyond_one_block(fast):
    x_seq = random_input(3, 2, 1500 if INTERPRETED else BLOCK * torch.get_num_threads() + 7)
    assert_agree(outcome(x_seq, decay=0.7, backend=fast), outcome(x_seq, decay=0.7, backend="reference"))


@pytest.mark.parametrize("backend", FAST)
@settings(deadline=None, max_examples=25 if INTERPRETED else 100)
@given(
    shape=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    time_steps=st.integers(1, 7),
    options=st.fixed_dictionaries(
        {
            "decay": st.sampled_from([0.5, 1.0]) | st.floats(0.01, 1.0),
            "threshold": st.sampled_from([0.5, 1.0]) | st.floats(0.1, 2.0),
            "input_scale": st.sampled_from([1.0, 0.3, 1.7]),
            "compare": st.sampled_from([">", ">="]),
            "reset": st.sampled_from(["hard", "soft"]),
            "detach_reset": st.booleans(),
            "surrogate": st.sampled_from([triangle(0.7), rectangle(1.3), atan(3.0), sigmoid(2.0)]),
        }
    ),
    start=st.booleans(),
    in_quarters=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_every_backend_agrees_for_any_shape_and_option(
    backend, shape, time_steps, options, start, in_quarters, dtype, seed
):
    x_seq = random_input(time_steps, *shape, seed=seed, dtype=dtype)
    if in_quarters:  # potentials that meet the threshold exactly
        x_seq = (4 * x_seq).round() / 4
    v0 = random_input(*shape, seed=seed + 1, dtype=dtype) if start else None
    oracle = outcome(x_seq, v0, **options, backend="reference")
    assert_agree(outcome(x_seq, v0, **options, backend=backend), oracle, rtol=5e-6 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("row", ROWS)
def test_steps_give_the_sequence(row, backend):
    x_seq = random_input(5, 2, 3).requires_grad_()
    v, spikes = None, []
    for x in x_seq:
        s, v = lif_step(x, v, **ROWS[row])
        spikes.append(s)
    sequence, v_end = lif(x_seq, return_v=True, backend=backend, **ROWS[row])
    assert torch.equal(torch.stack(spikes), sequence)
    assert torch.equal(v, v_end)
    gradient = torch.autograd.grad(torch.stack(spikes).sum() + v.sum(), x_seq)[0]
    torch.testing.assert_close(torch.autograd.grad(sequence.sum() + v_end.sum(), x_seq)[0], gradient)


def test_two_halves_give_the_whole(backend):
    x_seq = random_input(6, 2, 3)
    whole = lif(x_seq, decay=0.7, backend=backend)
    first, v = lif(x_seq[:2], decay=0.7, return_v=True, backend=backend)
    second = lif(x_seq[2:], decay=0.7, v0=v, backend=backend)
    assert torch.equal(torch.cat([first, second]), whole)


@pytest.mark.parametrize("backend", ["reference", "fused"])  # the kernels' spikes cannot be made smooth
@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_backward_is_exact_for_a_smooth_spike(backend, reset, monkeypatch):
    """A step has no derivative to check, so the surrogate's antiderivative, a sigmoid, takes its place."""

    def smooth(u, threshold, out=None):
        return torch.sigmoid(3.0 * (u - threshold), out=out)

    def smooth_silent(u, threshold, out=None):
        return torch.sigmoid(-3.0 * (u - threshold), out=out)

    monkeypatch.setattr(Neuron, "fires", property(lambda neuron: smooth))
    monkeypatch.setattr(Neuron, "silent", property(lambda neuron: smooth_silent))
    x_seq, v0 = (random_input(*shape, dtype=torch.float64).requires_grad_() for shape in [(5, 2, 3), (2, 3)])
    options = {"decay": 0.6, "threshold": 0.8, "input_scale": 0.7, "reset": reset, "surrogate": sigmoid(3.0)}
    assert torch.autograd.gradcheck(
        lambda x_seq, v0: lif(x_seq, v0=v0, return_v=True, backend=backend, **options), (x_seq, v0)
    )


def test_gradient_through_one_step_is_the_written_formula(backend):
    """Two steps by hand, hard reset: gx[0] = sg0 + decay sg1 ((1 - s0) - u0 sg0); detached drops the last term."""
    u0, decay = 1.2, 0.5
    x_seq = torch.tensor([[u0], [0.9]], dtype=torch.float64)
    sg0, sg1 = 1 - abs(u0 - 1), 1 - abs(0.9 - 1)
    for detach_reset, expected in [(False, sg0 - decay * sg1 * u0 * sg0), (True, sg0)]:
        x = x_seq.clone().requires_grad_()
        lif(x, decay=decay, detach_reset=detach_reset, backend=backend).sum().backward()
        assert x.grad.flatten().tolist() == pytest.approx([expected, sg1], abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_the_potential_in_float32(backend, dtype):
    x_seq = random_input(8, 4, 16, dtype=dtype)
    spikes, v, gradient, _ = outcome(x_seq, decay=0.9, backend=backend)
    exact = outcome(x_seq.float(), decay=0.9, backend="reference")
    assert (spikes.dtype, v.dtype, gradient.dtype) == (dtype, torch.float32, dtype)
    assert torch.equal(spikes.float(), exact[0])
    assert torch.equal(v, exact[1])
    torch.testing.assert_close(gradient, exact[2].to(dtype), rtol=1e-2, atol=1e-2)


def test_start_in_another_precision_gets_its_gradient_back_in_it(backend):
    x_seq, v0 = random_input(3, 4, dtype=torch.float16), random_input(4, dtype=torch.float16).requires_grad_()
    lif(x_seq, decay=0.5, v0=v0, backend=backend).sum().backward()
    assert v0.grad.dtype == torch.float16
    assert v0.grad.abs().sum() > 0


def test_input_and_start_are_left_alone(backend):
    x_seq, v0 = random_input(4, 3, 2), random_input(3, 2, seed=1)
    before = x_seq.clone(), v0.clone()
    lif(x_seq, decay=0.5, v0=v0, backend=backend)
    assert torch.equal(x_seq, before[0])
    assert torch.equal(v0, before[1])


def test_non_contiguous_input_gives_the_same(backend):
    x_seq = random_input(3, 5, 4, 6).transpose(0, 1)
    assert not x_seq.is_contiguous()
    assert_agree(outcome(x_seq, decay=0.5, backend=backend), outcome(x_seq.contiguous(), decay=0.5, backend=backend))
    for view in (
        random_input(1, 3, 4).expand(5, 3, 4),
        random_input(3, 4).expand(5, 3, 4)[:, 1:],
        random_input(9, 3, 4)[1::2],
        random_input(5, 3, 8)[..., ::2],
        random_input(7, 1).t()[:, :1].expand(1, 4),
    ):
        assert_agree(outcome_of_view(view, backend), outcome(view.contiguous(), decay=0.5, backend=backend))


def outcome_of_view(view, backend):
    """As `outcome`, of the view itself and not of a copy, with gradients that are no contiguous tensors either."""
    x_seq = view.detach().requires_grad_()
    spikes, v = lif(x_seq, decay=0.5, return_v=True, backend=backend)
    weights = random_input(*spikes.shape, seed=1, dtype=torch.float64)
    end_weights = random_input(*v.shape, seed=2, dtype=torch.float64)
    strided = torch.stack([weights, weights], -1).float()[..., 0]
    gradient = torch.autograd.grad((spikes, v), x_seq, (strided, torch.stack([end_weights] * 2, -1).float()[..., 0]))
    return spikes.detach(), v.detach(), gradient[0], None


def test_gradients_may_come_from_spikes_or_potential_alone(fast):
    x_seq = random_input(4, 3, 5).requires_grad_()
    for which in (0, 1):
        (ours,), (oracle,) = (
            torch.autograd.grad(lif(x_seq, decay=0.5, return_v=True, backend=backend)[which].sum(), x_seq)
            for backend in (fast, "reference")
        )
        torch.testing.assert_close(ours, oracle)


@pytest.mark.parametrize("shape", [(1, 2), (3, 0), (3, 0, 4, 4), (2, 3, 0), (1, 1)])
def test_small_and_empty_shapes_work(backend, shape):
    spikes, v, gradient, _ = outcome(random_input(*shape), decay=0.5, backend=backend)
    assert spikes.shape == gradient.shape == shape
    assert v.shape == shape[1:]


@pytest.mark.filterwarnings("ignore:invalid value encountered in subtract:RuntimeWarning")  # Triton's interpreter
@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_non_finite_input_gives_the_same_spikes_everywhere(fast, reset):
    x_seq = torch.tensor([[math.inf, -math.inf, math.nan, 2.0], [1.5, 1.5, 1.5, 1.5]])
    options = {"decay": 0.5, "reset": reset, "return_v": True}
    ours, oracle = (lif(x_seq, **options, backend=backend) for backend in (fast, "reference"))
    torch.testing.assert_close(ours, oracle, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("start", [False, True])
def test_nothing_is_kept_but_the_inputs(fast, start):
    kept = []
    x_seq = random_input(10, 4, 8).requires_grad_()
    v0 = random_input(4, 8).requires_grad_() if start else None
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        lif(x_seq, decay=0.5, v0=v0, return_v=True, backend=fast)
    expected = {x_seq.untyped_storage().data_ptr()} | ({v0.untyped_storage().data_ptr()} if start else set())
    assert {tensor.untyped_storage().data_ptr() for tensor in kept} == expected
    assert sum(tensor.numel() for tensor in kept) == x_seq.numel() + (v0.numel() if start else 0)


def test_every_backend_is_its_own_node_of_the_graph(fast):
    assert node(lif(random_input(3, 2).requires_grad_(), decay=0.5, backend=fast)) == NODES[fast]


def test_auto_is_numba_on_a_cpu_for_what_it_can_compute():
    x_seq = random_input(3, 2).requires_grad_()
    assert node(lif(x_seq, decay=0.5)) == NODES["numba"]
    assert node(lif(x_seq.double(), decay=0.5)) == NODES["numba"]
    assert node(lif(x_seq.half(), decay=0.5)) == NODES["fused"]
    assert node(lif(x_seq, decay=0.5, surrogate=lambda distance: 1 / (1 + distance.abs()))) == NODES["fused"]


def test_a_surrogate_that_refines_a_built_in_one_is_the_users_own(backend):
    class Doubled(triangle):
        def __call__(self, distance):
            return 2 * super().__call__(distance)

    x_seq = torch.tensor([[0.75]]).requires_grad_()
    lif(x_seq, decay=0.5, surrogate=Doubled(), backend=backend).sum().backward()
    assert x_seq.grad.item() == 1.5


def test_a_backend_that_joins_the_registry_can_be_chosen(monkeypatch):
    monkeypatch.setitem(BACKENDS, "silent", lambda x_seq, v0, neuron: (torch.zeros_like(x_seq), x_seq[0] * 0))
    assert lif(torch.full((2, 3), 9.0), decay=0.5, backend="silent").sum() == 0


def test_second_derivative_is_refused():
    x_seq = random_input(3, 2).requires_grad_()
    weight = torch.ones(2).requires_grad_()
    (gradient,) = torch.autograd.grad((lif(x_seq, decay=0.5) * weight).sum(), x_seq, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.1, math.nan])
def test_decay_outside_its_range_is_refused(decay):
    with pytest.raises(UserError, match=r"decay must lie in \(0, 1\]"):
        lif(torch.zeros(2, 3), decay=decay)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "cuda"}, "backend must be one of auto, reference, fused, numba, triton, got 'cuda'"),
        ({"compare": ">>"}, "compare must be one of >, >=, got '>>'"),
        ({"reset": "no"}, "reset must be one of hard, soft, got 'no'"),
        ({"v0": torch.zeros(4)}, r"input's shape \[3\], got \[4\]"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        lif(torch.zeros(2, 3), decay=0.5, **options)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("shape", [(0, 3), (0,), (5,)])
def test_sequences_without_time_or_batch_are_refused(shape):
    with pytest.raises(UserError, match=r"x_seq must be \[T, B, ...\] with T >= 1"):
        lif(torch.zeros(shape), decay=0.5)


@pytest.mark.usefixtures("as_users_run_it")
def test_integer_input_is_refused():
    with pytest.raises(UserError, match=r"must be floating, got torch\.int64"):
        lif(torch.ones(2, 3, dtype=torch.int64), decay=0.5)
