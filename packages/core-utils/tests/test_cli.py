import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.bare

PROGRAM = textwrap.dedent("""
    import sys, time
    from dataclasses import dataclass
    from pathlib import Path
    from core_utils import cli
    from core_utils.claims import Claim
    from core_utils.errors import CheckFailed, UserError

    @dataclass(frozen=True)
    class Config:
        step: float = 0.5

    @dataclass(frozen=True, kw_only=True)
    class Integrate(cli.RunCommand, cli.Configured):
        \"\"\"Integrate rates.\"\"\"

        rates: Path  # rates, 1/s
        step: float | None = None  # s

        def __call__(self):
            config = self.settings(Config, step=self.step)
            if self.rates == Path("bug"):
                raise ZeroDivisionError("seven")
            if self.rates == Path("gate"):
                raise CheckFailed("the gate is closed")
            with self.open_run(config) as run:
                run.log(rates=str(self.rates))
                self.say("working")
                if self.rates == Path("slow"):
                    time.sleep(60)
                self.show({"step": config.step, "bad": float("nan")})

    def gains(trial):
        return {"effect": 1.0 + trial.seed}

    def loses(trial):
        return {"effect": -1.0}

    CLAIMS = (
        Claim("gains", "It gains.", "table 1", None, "points", gains),
        Claim("loses", "It does not lose.", "table 2", "2", "points", loses),
    )

    if __name__ == "__main__":
        sys.exit(cli.main("euler", {"integrate": Integrate, **cli.shared(claims="euler:CLAIMS")}))
""")


@pytest.fixture
def euler(tmp_path):
    """Runs the program in a folder of its own; gives the exit code, stdout and stderr."""
    (tmp_path / "euler.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}

    def call(*words, start=False):
        process = subprocess.Popen(
            [sys.executable, "-m", "euler", *words],
            cwd=tmp_path,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        if start:
            return process
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    return call


def test_a_run_is_opened_and_the_result_goes_to_stdout(euler, tmp_path):
    assert euler("integrate", "--rates", "r", "--set", "step=2") == (0, "step  2.0\nbad  nan\n", "working\n")
    assert json.loads((tmp_path / "runs/run/config.json").read_text()) == {"step": 2.0}


def test_json_is_strict_and_quiet_is_quiet(euler):
    code, out, err = euler("integrate", "--rates", "r", "--json", "--quiet")
    assert code == 0
    assert json.loads(out, parse_constant=pytest.fail) == {"step": 0.5, "bad": None, "non_finite": ["bad"]}
    assert err == ""


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["integrate"], "--rates"),
        (["integrate", "--rates", "r", "--step", "x"], "--step"),
        (["integrate", "--rates", "r", "--step", "nan"], "--step: step must be a finite number"),
        (["integrate", "--rates", "r", "--set", "stop=1"], "did you mean 'step'?"),
        (["integrate", "--rates", "r", "--config", "no.toml"], "--config no.toml does not exist"),
        (["integrate", "--rates", "r", "--out", "euler.py"], "euler.py is not a folder"),
        (["integrate", "--rates", "r", "--out", "."], "holds no run"),
        (["nonsense"], "nonsense"),
        (["integrate", "--rates", "r", "--nope"], "--nope"),
        (["reproduce", "--seeds", "0"], "--seeds 0 is too few"),
        (["reproduce", "--workers", "0"], "--workers must be at least 1"),
        (["reproduce", "--data", "nowhere"], "--data nowhere is no folder"),
        (["reproduce", "gain"], "no claim 'gain' (known: gains, loses)"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(euler, words, complaint):
    code, out, err = euler(*words)
    assert code == 2
    assert out == ""
    assert complaint in err
    assert err.count("\n") == 1
    assert err.startswith("euler: ")


def test_a_bug_leaves_its_traceback_in_a_file(euler, tmp_path):
    code, _, err = euler("integrate", "--rates", "bug")
    assert code == 3
    assert err == "euler: ZeroDivisionError: seven; this is a bug of euler, see crash.txt\n"
    assert "Traceback" in (tmp_path / "crash.txt").read_text()


def test_a_failed_check_is_exit_code_1(euler):
    assert euler("integrate", "--rates", "gate") == (1, "", "euler: the gate is closed\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_says_how_to_go_on(euler, number, code):
    process = euler("integrate", "--rates", "slow", "--out", "runs/a", start=True)
    assert process.stderr.readline() == "working\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert err == "euler: interrupted; what is finished is kept in runs/a, go on with --resume\n"
    assert "unfinished run (add --resume" in euler("integrate", "--rates", "r", "--out", "runs/a")[2]
    assert euler("integrate", "--rates", "r", "--out", "runs/a", "--resume")[0] == 0


def test_reproduce_judges_and_a_refuted_claim_is_exit_code_1(euler):
    code, out, _ = euler("reproduce", "--json")
    assert code == 1
    gains, loses = json.loads(out)
    assert (gains["outcome"], gains["verdict"]["mean"], gains["verdict"]["n"]) == ("reproduced", 3.0, 5)
    assert (loses["outcome"], loses["verdict"]["low"], loses["verdict"]["high"]) == ("refuted", -1.0, -1.0)
    assert loses["command"] == "euler reproduce loses --seeds 5"
    code, out, err = euler("reproduce", "gains", "--seeds", "4")
    assert code == 0
    assert "reproduced" in out
    assert "not published" in out
    assert "jobs" not in err
    assert "euler.gains" not in err  # every trial was there already


@pytest.mark.parametrize("words", [["--help"], ["integrate", "--help"], ["reproduce", "--help"], []])
def test_help_is_quick_to_load_and_exits_0(euler, words):
    code, out, err = euler(*words)
    assert (code, err) == (0, "")
    assert "usage: euler" in out


def test_help_loads_no_framework(tmp_path):
    (tmp_path / "euler.py").write_text(PROGRAM)
    code = "import euler, sys; from core_utils import cli; cli.main('euler', {'integrate': euler.Integrate, **cli.shared(claims='euler:CLAIMS')}, ['reproduce', '--help']); print(*sys.modules)"
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    out = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    ).stdout
    assert not {"torch", "jax", "mujoco", "sklearn", "scipy"} & set(out.splitlines()[-1].split())


def test_version_is_the_distributions(euler):
    code = "from core_utils import cli; import sys; sys.exit(cli.main('numpy', {}, ['--version']))"
    import numpy

    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == f"numpy {numpy.__version__}\n"


def test_a_second_signal_ends_at_once(tmp_path):
    code = textwrap.dedent("""
        import time
        from core_utils import interrupts
        with interrupts.deferred():
            print("in", flush=True)
            while True:
                time.sleep(0.01)
    """)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == -signal.SIGINT
    process.stdout.close()


def test_a_deferred_signal_is_raised_at_the_end():
    from core_utils import interrupts
    from core_utils.errors import Terminated

    before = signal.getsignal(signal.SIGTERM)
    finished = []

    def work():
        with interrupts.deferred() as signalled:
            os.kill(os.getpid(), signal.SIGTERM)
            while not signalled():
                time.sleep(0.001)
            finished.append(True)

    with pytest.raises(Terminated):
        work()
    assert finished == [True]
    assert signal.getsignal(signal.SIGTERM) is before
    assert Path.cwd().exists()
