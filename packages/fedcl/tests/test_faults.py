"""What broken, late, false or missing clients do: they are recorded, and the model is never worse for it."""

import math
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from federations import Scripted, convolutional, federation, largest_difference, perceptron, scenario, student
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcl import Aggregator, ConfigError, FedAvg, FedYogi, Privacy, Protocol, QuorumError, Straggler, epsilon
from fedcl.privacy import clipped
from fedcl.robust import krum, median, trimmed_mean


def scripted(script, optimizer=None, data=None, model=student, **protocol):
    """A federation whose replies pass through a script."""
    run = federation(optimizer or FedYogi(0.1), model, data or scenario(clients=4), rounds=1, **protocol)
    run.engine = Scripted(run.engine, script)
    return run


def broken(kind):
    def script(reply):
        if reply.client == 1:
            update = reply.update
            if kind == "nan":
                update.trained[3] = float("nan")
            elif kind == "infinite":
                update.trained[0] = float("inf")
            elif kind == "shape":
                update.trained = update.trained[:-1]
            elif kind == "dtype":
                update.trained = update.trained.double()
            elif kind == "task":
                reply = replace(reply, task=1 - reply.task)
            elif kind == "stale":
                reply = replace(reply, round=reply.round - 1)
            elif kind == "stranger":
                reply = replace(reply, client=99)
            elif kind == "empty":
                reply = replace(reply, examples=0)
            elif kind == "error":
                reply = replace(reply, update=None, error="client failed: out of memory")
            elif kind == "nothing":
                reply = replace(reply, update=None)
            elif kind == "silent":
                return []
        return [reply]

    return script


REASONS = {
    "nan": "not finite: trained",
    "infinite": "not finite: trained",
    "shape": "wrong shape: trained",
    "dtype": "wrong dtype: trained torch.float64, expected torch.float32",
    "task": "wrong task: ",
    "stale": "stale: of round -1, this is 0",
    "stranger": "was not asked",
    "empty": "no examples",
    "error": "client failed: out of memory",
    "nothing": "no update",
    "silent": "no reply",
}


@pytest.mark.parametrize("kind", sorted(REASONS))
def test_a_bad_reply_is_turned_away_as_if_its_client_had_been_absent(kind):
    run = scripted(broken(kind))
    record = run._round(0)
    assert record.accepted == [0, 2, 3]
    assert record.rejected[0]["client"] == (99 if kind == "stranger" else 1)
    assert record.rejected[0]["reason"].startswith(REASONS[kind])
    absent = scripted(broken("silent"))
    absent._round(0)
    assert largest_difference(run.server.state(), absent.server.state()) == 0.0


def test_a_second_reply_of_a_client_is_recorded_and_not_used():
    run = scripted(lambda reply: [reply, reply])
    record = run._round(0)
    assert record.accepted == [0, 1, 2, 3]
    assert [each["reason"] for each in record.rejected] == ["duplicate reply"] * 4
    plain = scripted(lambda reply: [reply])
    plain._round(0)
    assert largest_difference(run.server.state(), plain.server.state()) == 0.0


@settings(max_examples=6)
@given(
    kinds=st.lists(st.sampled_from(sorted(set(REASONS) - {"stranger"})), min_size=1, max_size=3),
    scope=st.sampled_from(["task", "shared", "all"]),
)
def test_replies_that_are_all_bad_never_change_anything(kinds, scope):
    def script(reply):
        (changed,) = broken(kinds[reply.client % len(kinds)])(replace(reply, client=1)) or [None]
        return [] if changed is None else [replace(changed, client=reply.client)]

    run = scripted(script, scope=scope, quorum=1)
    before = {name: value.clone() for name, value in run.server.state().items()}
    record = run._round(0)
    assert record.failed
    assert record.accepted == []
    assert len(record.rejected) == 4
    assert largest_difference(run.server.state(), before) == 0.0


def test_without_quorum_nothing_changes_and_too_often_ends_the_run():
    run = federation(FedYogi(0.1), rounds=4, quorum=3, max_failed_rounds=1)
    run.engine = Scripted(run.engine, broken("silent"))
    before = {name: value.clone() for name, value in run.server.state().items()}
    with pytest.raises(QuorumError, match=r"2 rounds in a row had fewer than quorum=3 valid replies"):
        run.run()
    assert [record.failed for record in run.history] == [True, True]
    assert largest_difference(run.server.state(), before) == 0.0


def test_a_client_whose_training_raises_costs_itself_only():
    run = federation(FedAvg(), rounds=1)
    fit = run.trainer.fit

    def failing(job, theta):
        if job.client == 2:
            raise RuntimeError("out of memory")
        return fit(job, theta)

    run.trainer.fit = failing
    record = run._round(0)
    assert record.accepted == [0, 1]
    assert record.rejected == [{"client": 2, "reason": "RuntimeError: out of memory"}]


def test_a_client_without_examples_is_skipped_and_all_of_them_are_no_quorum():
    data = scenario(clients=3)
    empty = np.array([], np.int64)
    some = replace(data, parts=((empty, empty), *data.parts[1:]))
    record = federation(FedAvg(), data=some)._round(0)
    assert record.accepted == [1, 2]
    assert record.rejected[0]["reason"].startswith("no examples of task")
    with pytest.raises(QuorumError):
        federation(FedAvg(), data=replace(data, parts=((empty, empty),) * 3), max_failed_rounds=0).run()


def test_late_clients_are_dropped_or_give_what_they_have():
    drop, partial = (
        federation(FedAvg(), data=scenario(clients=10), straggler=Straggler(0.3, mode)) for mode in ("drop", "partial")
    )
    record = drop._round(0)
    assert len(record.accepted) == 7
    assert {each["reason"] for each in record.rejected} == {"straggler: missed the deadline"}
    assert len(partial._round(0).accepted) == 10
    jobs, _ = partial._jobs(0, 0, False)
    assert sorted(job.steps for job in jobs)[3:] == [4] * 7
    assert all(1 <= job.steps <= 4 for job in jobs)
    shares = [job.steps for number in range(40) for job in partial._jobs(number, 0, False)[0]]
    assert set(shares) == {1, 2, 3, 4}


def test_sampling_is_of_the_seed_and_the_round():
    one, again, other = (
        federation(FedAvg(), data=scenario(clients=10), fraction=0.5, dropout=0.2, seed=s) for s in (0, 0, 1)
    )
    drawn = [[job.client for job in run._jobs(3, 0, False)[0]] for run in (one, again, other)]
    assert drawn[0] == drawn[1] != drawn[2]
    sizes = [len(one._jobs(number, 0, False)[0]) for number in range(100)]
    assert 3.5 < np.mean(sizes) < 4.5  # half of 8 available ones on average


def test_a_long_update_is_clipped_or_rejected():
    def longer(reply):
        if reply.client == 0:
            reply.update.trained *= 1000
        return [reply]

    rejecting = scripted(longer, FedAvg(), max_update_norm=5.0, norm_policy="reject", scope="all")
    record = rejecting._round(0)
    assert record.accepted == [1, 2, 3]
    assert "is above 5" in record.rejected[0]["reason"]
    clipping = scripted(longer, FedAvg(), max_update_norm=5.0, scope="all")
    before = clipping.server.theta(0).trained.clone()
    assert clipping._round(0).accepted == [0, 1, 2, 3]
    assert 1.0 < (clipping.server.theta(0).trained - before).norm() < 5.0


def test_training_one_task_leaves_the_others_bit_identical():
    data = scenario(clients=3, order=np.array([[0, 1]] * 3))
    run = federation(FedYogi(0.1), data=data, scope="task")
    before = run.server.theta(1).trained.clone()
    run._round(0)
    assert torch.equal(run.server.theta(1).trained, before)
    assert run.server.optimizers["task1"].steps == 0
    assert run.server.optimizers["task0"].steps == 1
    shared = federation(FedYogi(0.1), data=data, scope="shared")
    head = shared.layouts[1].shared
    shared._round(0)
    assert torch.equal(shared.server.theta(1).trained[head:], before[head:])
    assert torch.equal(shared.server.theta(1).trained[:head], shared.server.theta(0).trained[:head])
    assert not torch.equal(shared.server.theta(1).trained[:head], before[:head])


def test_running_statistics_are_averaged_and_never_meet_the_optimiser():
    data = scenario(clients=2, order="same")
    run = federation(FedYogi(10.0), convolutional, data, rounds=1, scope="all")
    replies = []

    def keep(reply):
        replies.append(reply)
        return [reply]

    run.engine = Scripted(run.engine, keep)
    run._round(0)
    theta = run.server.theta(0)
    weights = torch.tensor([float(reply.examples) for reply in replies])
    means = (torch.stack([reply.update.averaged for reply in replies]) * weights[:, None]).sum(0) / weights.sum()
    torch.testing.assert_close(theta.averaged, means)
    assert theta.counted.item() == 4  # the largest count, an integer
    assert theta.counted.dtype == torch.int64
    assert run.server.layouts[0].unflatten(theta)["body.1.running_var"].min() > 0


def test_scopes_that_cannot_merge_are_refused():
    data = scenario(tasks=[[0, 1], [2, 3, 4]], allow_uneven=True)
    with pytest.raises(ConfigError, match="scope all merges heads by position"):
        federation(FedAvg(), data=data, scope="all")
    assert federation(FedAvg(), data=data, scope="shared").run().accuracy.shape == (2, 2)
    with pytest.raises(ConfigError, match="scope shared merges all but the heads"):
        federation(
            FedAvg(),
            lambda n: torch.nn.Sequential(torch.nn.Linear(5, n + 2), torch.nn.Linear(n + 2, n)),
            data,
            scope="shared",
        )


@pytest.mark.parametrize("rule", ["median", "trimmed", "krum", "multikrum"])
def test_one_false_client_moves_a_robust_mean_little(rule):
    def false(reply):
        if reply.client == 0:
            reply.update.trained[:] = 1e6
        return [reply]

    data = scenario(clients=5, order="same")
    run = scripted(false, FedAvg(), data, scope="all", aggregator=Aggregator(rule))
    before = run.server.theta(0).trained.clone()
    run._round(0)
    assert (run.server.theta(0).trained - before).abs().max() < 2
    plain = scripted(false, FedAvg(), data, scope="all")
    plain._round(0)
    assert (plain.server.theta(0).trained - before).abs().max() > 1e4


def test_robust_rules_on_small_numbers():
    rows = torch.tensor([[1.0], [2.0], [3.0], [4.0], [100.0]])
    assert median(rows).item() == 3.0
    assert median(rows[:4]).item() == 2.5
    assert trimmed_mean(rows, 0.2).item() == 3.0
    # With f = 1 each is scored by its two nearest: 1+4, 1+1, 1+1, 1+4, ...; the first of the best is 2.
    assert krum(rows, 1).item() == 2.0
    assert krum(rows, 1, 4).item() == 2.5
    with pytest.raises(ConfigError, match="krum with byzantine=2 needs 7 updates, got 5"):
        krum(rows, 2)


@pytest.mark.parametrize(("fallback", "moves"), [("skip", False), ("mean", True)])
def test_a_group_too_small_for_its_rule_falls_back_and_says_so(fallback, moves):
    run = federation(
        FedAvg(), data=scenario(clients=2, order="same"), aggregator=Aggregator("median", fallback=fallback)
    )
    task = int(run.scenario.orders[0, 0])
    before = run.server.theta(task).trained.clone()
    record = run._round(0)
    assert record.notes == [f"task{task} has 2 updates, median needs 3: {fallback}"]
    assert torch.equal(run.server.theta(task).trained, before) is not moves
    strict = federation(FedAvg(), data=scenario(clients=2), aggregator=Aggregator("krum"))
    with pytest.raises(ConfigError, match="krum needs 5"):
        strict._round(0)


def test_privacy_bounds_what_a_client_can_do_and_adds_seeded_noise():
    private = federation(
        FedAvg(), perceptron, scenario(clients=4, order="same"), rounds=1, privacy=Privacy(0.01), scope="all"
    )
    before = private.server.theta(0).trained.clone()
    private._round(0)
    moved = (private.server.theta(0).trained - before).norm()
    assert 0 < moved <= 0.01 * 1.0001
    noise = Privacy(2.0, 3.0)
    zero = torch.zeros(200_000)
    one, again, other = (noise.noisy(zero, [1.0, 3.0], (0, r)) for r in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert one.std().item() == pytest.approx(3.0 * 2.0 * 3 / 4, rel=0.01)
    assert clipped(torch.tensor([3.0, 4.0]), 1.0).tolist() == pytest.approx([0.6, 0.8])
    assert clipped(torch.tensor([3.0, 4.0]), 5.0).tolist() == [3.0, 4.0]


def test_epsilon_is_the_smallest_over_orders():
    z, rounds, delta = 2.0, 10, 1e-5
    orders = np.linspace(1.01, 200, 200_000)
    direct = (rounds * orders / (2 * z**2) + math.log(1 / delta) / (orders - 1)).min()
    assert epsilon(z, rounds, delta) == pytest.approx(direct, rel=1e-6)
    with pytest.raises(ConfigError, match="epsilon needs a positive noise_multiplier"):
        epsilon(0.0, 1, 0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Straggler(1.5), r"fraction of stragglers must lie in \[0, 1\], got 1.5"),
        (lambda: Protocol(fraction=0.0), r"fraction must lie in \(0, 1\], got 0.0"),
        (lambda: Protocol(dropout=1.0), r"dropout must lie in \[0, 1\), got 1.0"),
        (lambda: Protocol(rounds=0), "rounds must be at least 1, got 0"),
        (lambda: Protocol(quorum=0), "quorum must be at least 1, got 0"),
        (lambda: Protocol(max_update_norm=0.0), "max_update_norm must be above 0"),
        (lambda: Aggregator(trim=0.5), r"trim must lie in \[0, 0.5\), got 0.5"),
        (lambda: Aggregator(byzantine=-1), "byzantine must not be negative"),
        (lambda: Privacy(0.0), "clip_norm must be above 0"),
        (lambda: Privacy(1.0, -1.0), "noise_multiplier must not be negative"),
        (lambda: federation(FedAvg(), lambda _: torch.nn.Flatten()), "no parameter that requires a gradient"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("engine", ["local", "flwr"])
def test_no_more_than_two_updates_are_alive_at_any_time(engine):
    """Memory of one model and one client: the one that is merged, and the one that is made."""
    alive = weakref.WeakSet()
    most = 0

    def watch(reply):
        nonlocal most
        alive.add(reply)
        most = max(most, len(alive))
        return [reply]

    run = federation(FedAvg(), data=scenario(clients=12), engine=engine, rounds=1)
    run.engine = Scripted(run.engine, watch)
    assert len(run._round(0).accepted) == 12
    assert most <= 2
