"""Flower's nodes: bit for bit the local engine, whatever goes wrong on the way is a recorded reply."""

import io

import numpy as np
import pytest
import torch
from federations import convolutional, federation, largest_difference, perceptron, scenario, student

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp.mod import fixedclipping_mod
from flwr.serverapp.strategy import DifferentialPrivacyClientSideFixedClipping as ClientSide
from flwr.serverapp.strategy import DifferentialPrivacyServerSideAdaptiveClipping as Adaptive
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping as ServerSide
from flwr.serverapp.strategy import FedAdam as TheirAdam

from fedcl import ConfigError, DeployError, FedAdam, FedAvg, FedYogi, LocalTraining, Privacy
from fedcl.engine.flower import in_process, make_client_app, received, sent
from fedcl.engine.nodes import InProcessGrid, find_nodes, flower_identity


@pytest.mark.parametrize("make", [student, perceptron, convolutional])
@pytest.mark.parametrize("scope", ["task", "shared", "all"])
def test_in_process_nodes_are_the_local_engine_bit_for_bit(make, scope):
    runs = [federation(FedYogi(0.1), make, engine=engine, scope=scope) for engine in ("local", "flwr")]
    states = [run.finished_state() for run in runs]
    assert largest_difference(*states) == 0.0
    local, flower = (run.history for run in runs)
    assert [r.loss for r in local] == [r.loss for r in flower]
    assert [r.local_accuracy for r in local] == [r.local_accuracy for r in flower]


def changed(change):
    """A federation over a grid whose replies of client 1 pass through `change`."""
    run = federation(FedAvg(), rounds=1)
    run.engine = in_process(run.trainer)
    call = run.engine.grid._called

    def called(message):
        reply = call(message)
        return change(reply) if message.metadata.dst_node_id == 3 else reply

    run.engine.grid._called = called
    return run


def without_a_key(reply):
    reply.content["arrays"].pop("scores.0")
    return reply


def reshaped(reply):
    reply.content["arrays"]["scores.0"] = Array(np.zeros(7, np.float32))
    return reply


def of_double(reply):
    reply.content["arrays"]["scores.0"] = Array(reply.content["arrays"]["scores.0"].numpy().astype(np.float64))
    return reply


def torn(reply):
    array = reply.content["arrays"]["scores.0"]
    reply.content["arrays"]["scores.0"] = Array(array.dtype, array.shape, array.stype, array.data[:-3])
    return reply


def without_metrics(reply):
    reply.content.pop("metrics")
    return reply


def pickled(reply):
    array = reply.content["arrays"]["scores.0"]
    file = io.BytesIO()
    np.save(file, np.array([print], dtype=object), allow_pickle=True)
    reply.content["arrays"]["scores.0"] = Array(array.dtype, array.shape, array.stype, file.getvalue())
    return reply


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_a_key, "wrong keys: ['scores.0']"),
        (reshaped, "wrong shape: scores.0 [7], expected [2]"),
        (of_double, "wrong dtype: scores.0 torch.float64, expected torch.float32"),
        (torn, "array scores.0 cannot be read"),
        (pickled, "array scores.0 cannot be read: Object arrays cannot be loaded"),
        (without_metrics, "reply lacks arrays or metrics"),
    ],
)
def test_a_malformed_reply_is_recorded_and_nothing_is_unpickled(change, reason):
    record = changed(change)._round(0)
    assert record.accepted == [0, 2]
    assert record.rejected[0]["client"] == 1
    assert record.rejected[0]["reason"].startswith(reason)


def test_an_exception_on_a_node_is_an_error_with_its_reason():
    run = federation(FedAvg(), rounds=1)
    run.engine = in_process(run.trainer)
    fit = run.trainer.fit

    def failing(job, theta):
        if job.client == 0:
            raise MemoryError("no memory left")
        return fit(job, theta)

    run.trainer.fit = failing
    record = run._round(0)
    assert record.accepted == [1, 2]
    assert record.rejected == [{"client": 0, "reason": "client failed: MemoryError: no memory left"}]


@pytest.mark.parametrize("scope", ["task", "all"])
@pytest.mark.parametrize("wrapper", ["server", "client"])
def test_flower_s_fixed_clipping_is_ours(scope, wrapper, caplog):
    norm = 0.05
    theirs = federation(FedAvg(), perceptron, scenario(clients=4, order="same"), rounds=1, scope=scope)
    wrap = {"server": ServerSide, "client": ClientSide}[wrapper]
    mods = (fixedclipping_mod,) if wrapper == "client" else ()
    theirs.engine = in_process(
        theirs.trainer, wrap=lambda strategy: wrap(strategy, 0.0, norm, 4), together=scope == "all", mods=mods
    )
    ours = federation(
        FedAvg(), perceptron, scenario(clients=4, order="same"), rounds=1, scope=scope, privacy=Privacy(norm)
    )
    record = theirs._round(0)
    ours._round(0)
    assert largest_difference(ours.server.state(), theirs.server.state()) < 1e-6
    assert record.accepted == [0]
    assert {each["reason"] for each in record.rejected} == {"merged by Flower's wrapper under client 0"}


def test_flower_s_adaptive_clipping_keeps_its_norm_between_rounds():
    run = federation(FedAvg(), perceptron, scenario(clients=4), rounds=2, scope="all")
    run.engine = in_process(run.trainer, wrap=lambda strategy: Adaptive(strategy, 0.1, 4), together=True)
    run.run()
    assert all(not record.failed for record in run.history)
    (strategy,) = run.engine._strategies.values()
    assert strategy.clipping_norm != 0.1


def test_stock_strategies_run_on_the_grid_unchanged():
    run = federation(FedAdam(0.1), data=scenario(clients=3, order="same"), rounds=1, scope="all")
    grid = InProcessGrid(make_client_app(lambda _: run.trainer), 3)
    layout, start = run.layouts[0], run.server.theta(0)
    config = ConfigRecord(
        {"task": int(run.scenario.orders[0, 0]), "round": 0, "steps": 4, "seed": 0, "evaluate": False}
    )
    strategy = TheirAdam(eta=0.1, fraction_evaluate=0.0)
    with flower_identity():
        result = strategy.start(grid, sent(start, layout), num_rounds=1, train_config=config, timeout=None)
    theirs = received(result.arrays, layout) if _of_one_dtype(result.arrays) else _as_float(result.arrays, layout)
    ours = federation(FedAdam(0.1, preset="flwr"), data=scenario(clients=3, order="same"), rounds=1, scope="all")
    ours._round(0)
    torch.testing.assert_close(ours.server.theta(0).trained, theirs.trained, rtol=0, atol=1e-5)


def _of_one_dtype(arrays):
    return {array.numpy().dtype for array in arrays.values()} == {np.dtype(np.float32)}


def _as_float(arrays, layout):
    # NumPy 2 makes FedAdam's float32 tensors float64: its bias correction is a NumPy scalar.
    return received(ArrayRecord({k: Array(v.numpy().astype(np.float32)) for k, v in arrays.items()}), layout)


def test_the_identity_of_a_flower_process_is_put_back():
    from flwr.supercore.task_identity import TaskIdentity

    with flower_identity(run_id=7):
        assert Message(RecordDict({}), 5, "train").metadata.run_id == 7
    with pytest.raises(RuntimeError, match="run_id is not set"):
        _ = TaskIdentity.run_id


def test_nodes_are_found_by_their_partitions_and_missing_ones_are_named():
    run = federation(FedAvg())
    grid = InProcessGrid(make_client_app(lambda _: run.trainer), 3)
    assert find_nodes(grid, 3, 5.0) == {0: 2, 1: 3, 2: 4}
    with pytest.raises(DeployError, match=r"3 of 4 nodes joined within 0.2 s; partitions \[3\] are missing"):
        find_nodes(grid, 4, 0.2)


def test_a_node_without_a_partition_says_how_to_start_it():
    from fedcl.engine.flower import partition_id

    with pytest.raises(ConfigError, match="the node has no partition-id"):
        partition_id(Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={}))


def test_a_server_of_another_model_is_refused_by_the_node():
    run = federation(FedAvg(), training=LocalTraining(1), rounds=1)
    run.engine = in_process(federation(FedAvg(), perceptron, training=LocalTraining(1)).trainer)
    run.engine.layout_of = run.trainer.layout
    record = run._round(0)
    assert record.failed
    assert "the server's tensors do not fit this node's model: wrong keys" in record.rejected[0]["reason"]
