"""Apps, keys and processes of a deployment; the whole of it on loopback is marked slow."""

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr")

from fedcl import DeployError, LocalTraining
from fedcl.deploy.app import read, write_app
from fedcl.deploy.keys import make_certificates, make_node_key
from fedcl.deploy.local import Processes, deploy_local, free_ports, group_members
from fedcl.job import JobConfig, ModelTable, RunTable, ScenarioTable, make_run

CONFIG = JobConfig(
    scenario=ScenarioTable(dataset="digits", tasks=2, clients=2, per_client=100),
    client=LocalTraining(5, lr=0.1),
    run=RunTable(rounds=1),
)


def test_an_app_holds_its_configuration_and_loads(tmp_path):
    write_app(tmp_path / "app", CONFIG, out=tmp_path / "out")
    assert read(tmp_path / "app/fedcl_app/config.json") == CONFIG
    script = "from fedcl_app import client, server; print(type(client.app).__name__, type(server.app).__name__)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path / "app", capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.split() == ["ClientApp", "ServerApp"], done.stderr
    with pytest.raises(DeployError, match="is not empty"):
        write_app(tmp_path / "app", CONFIG, out=tmp_path / "out")


def test_private_keys_are_their_owner_s_alone_and_certificates_verify(tmp_path):
    from cryptography import x509

    files = make_certificates(tmp_path)
    private, public = make_node_key(tmp_path, "node0")
    for file in (files.key, private):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert public.read_text().startswith("ecdsa-sha2-nistp384 ")
    root, leaf = (x509.load_pem_x509_certificate(f.read_bytes()) for f in (files.authority, files.certificate))
    leaf.verify_directly_issued_by(root)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]


def test_ports_are_free_and_different():
    ports = free_ports(5)
    assert len(set(ports)) == 5
    for port in ports:
        with socket.socket() as each:
            each.bind(("127.0.0.1", port))


@pytest.fixture
def stubborn(tmp_path, monkeypatch):
    """Programs that ignore every signal that can be ignored, and their children."""
    script = "import signal, subprocess, sys, time\n[signal.signal(s, signal.SIG_IGN) for s in (2, 15)]\n"
    script += "print('begun', flush=True)\nif len(sys.argv) < 2: subprocess.run([sys.executable, __file__, 'child'])\ntime.sleep(600)\n"
    (tmp_path / "stubborn.py").write_text(script)
    program = tmp_path / "stubborn"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} {tmp_path / 'stubborn.py'}\n")
    program.chmod(0o755)
    monkeypatch.setattr("fedcl.deploy.local.program", lambda name: str(tmp_path / name))
    return Processes(tmp_path / "logs", dict(os.environ))


def test_a_process_that_does_not_listen_is_killed_with_its_children(stubborn):
    stubborn.start("one", "stubborn")
    group, end = stubborn.running["one"].pid, time.monotonic() + 30
    while len(list(group_members(group))) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    assert len(list(group_members(group))) == 2
    assert stubborn.stop(seconds=0.3) == ["one"]
    assert list(group_members(group)) == []


def test_a_child_that_left_its_group_is_ended_too(stubborn, tmp_path):
    script = "import subprocess, sys\nsubprocess.Popen(['sleep', '600'], start_new_session=True)\n"
    (tmp_path / "leaving").write_text(f"#!{sys.executable}\n{script}")
    (tmp_path / "leaving").chmod(0o755)
    stubborn.start("one", "leaving")
    stubborn.running["one"].wait(timeout=60)
    (left,) = stubborn.alive()
    assert left != stubborn.running["one"].pid
    assert stubborn.stop(seconds=0.5) == []
    assert stubborn.alive() == []


def test_a_process_that_ends_is_named_with_its_last_lines(stubborn, tmp_path):
    (tmp_path / "failing").write_text("#!/bin/sh\necho no such option\nexit 2\n")
    (tmp_path / "failing").chmod(0o755)
    stubborn.start("superlink", "failing")
    stubborn.running["superlink"].wait(timeout=30)
    with pytest.raises(DeployError, match=r"superlink ended with code 2; .*superlink.log ends: no such option"):
        stubborn.check()
    assert stubborn.stop() == []


def test_a_superlink_that_cannot_start_is_an_error_with_its_log_and_leaves_no_process(tmp_path, monkeypatch):
    (tmp_path / "flower-superlink").write_text("#!/bin/sh\necho address already in use\nsleep 1\nexit 1\n")
    (tmp_path / "flower-superlink").chmod(0o755)
    monkeypatch.setattr("fedcl.deploy.local.program", lambda name: str(tmp_path / name))
    with pytest.raises(DeployError, match=r"ended with code 1.*address already in use"):
        deploy_local(tmp_path / "out", CONFIG, nodes=2, limit=30.0)
    with pytest.raises(DeployError, match="is not empty"):
        deploy_local(tmp_path / "out", CONFIG, nodes=2, limit=30.0)


def flower_processes(folder):
    """Processes that mention a deployment's folder in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if f"FLWR_HOME={folder}".encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("tls", [True, False])
def test_two_nodes_on_loopback_give_the_local_engine_s_run_and_leave_no_process(tmp_path, tls):
    folder = tmp_path / "deployment"
    summary = deploy_local(folder, CONFIG, nodes=2, tls=tls, limit=500.0)
    assert flower_processes(folder) == []
    local = make_run(replace(CONFIG, run=replace(CONFIG.run, engine="local"))).run()
    assert summary.result["accuracy"] == pytest.approx(local.figures["accuracy"], abs=1e-6)
    np.testing.assert_allclose(summary.result["accuracy_matrix"], local.accuracy, atol=1e-6)
    rounds = [json.loads(line) for line in (folder / "run/log.jsonl").read_text().splitlines()]
    assert [line["accepted"] for line in rounds] == [[0, 1], [0, 1]]
    assert [line["loss"] for line in rounds] == pytest.approx([record.loss for record in local.history], abs=1e-6)
    scheme = (folder / "flwr/config.toml").read_text()
    assert ("root-certificates" in scheme) is tls
    assert ("insecure" in scheme) is not tls


@pytest.mark.slow
def test_a_server_that_fails_is_reported_and_leaves_no_process(tmp_path):
    folder = tmp_path / "deployment"
    config = replace(CONFIG, model=ModelTable(weights=tmp_path / "none.safetensors"))
    with pytest.raises(DeployError, match=r"Flower's run failed.*flwr.log ends"):
        deploy_local(folder, config, nodes=2, tls=False, limit=300.0)
    assert "none.safetensors cannot be read" in (folder / "logs/flwr.log").read_text()
    assert flower_processes(folder) == []
