"""The job from the shell's side."""

import json
import shutil
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest

from core_utils.jobs import JobResult
from snasnet import cli, searching

CELL = "0302 0030 3003 0000"
QUICK = ("--epochs", "1", "--set", "width=3", "--set", "hidden=8", "--set", "batch_size=256", "--quiet")
SMALL = ("--batch", "16", "--width", "3", "--hidden", "8", "--time-steps", "2")


@pytest.fixture
def program(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["snasnet", *map(str, words)])
        code = cli.main()
        return code, *capsys.readouterr()

    return run


def test_cells_are_drawn_by_the_seed(program):
    code, out, _ = program("sample", "--n", "5", "--seed", "3")
    assert code == 0
    assert len(out.splitlines()) == 5
    assert program("sample", "--n", "5", "--seed", "3")[1] == out
    drawn = json.loads(program("sample", "--n", "5", "--seed", "3", "--json")[1])
    assert [" ".join("".join(map(str, row)) for row in cell["matrix"]) for cell in drawn] == out.splitlines()


def test_a_cell_is_scored_and_costed(program):
    code, out, _ = program("score", CELL, *SMALL, "--json")
    assert code == 0
    found = json.loads(out)
    again = json.loads(program("score", CELL, *SMALL, "--json")[1])
    assert found["score"] == again["score"] < 0
    assert found["parameters"] > 1000
    assert len(found["rates"]) == 13


def inline(function, jobs, *, done=(), **_):
    """Jobs in this process; the real pool has tests of its own."""
    for key, job in jobs.items():
        if key not in done:
            yield JobResult(key, function(job), None, 0.1)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a search `s` and a training `t` of its best cell."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(searching, "map_jobs", inline)
        assert cli_main("search", *SMALL, "--n", "6", "--kind", "forward", "--out", "s", "--quiet") == 0
        assert cli_main("train", "--from", "s", *QUICK, "--out", "t") == 0
    return folder


def cli_main(*words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["snasnet", *map(str, words)])
        return cli.main()


def test_a_search_ranks_cells_and_is_shown_again(program, work, tmp_path):
    shutil.copytree(work / "s", "s")
    words = ("search", *SMALL, "--n", "6", "--kind", "forward", "--out", "s", "--quiet")
    code, out, _ = program(*words, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["draws"] == 6
    scores = [row["score"] for row in found["table"] if row["status"] == "ok"]
    assert scores == sorted(scores, reverse=True)
    assert found["table"][0]["id"] in found["front"]
    assert len((tmp_path / "s/log.jsonl").read_text().splitlines()) == len(found["table"])
    assert (tmp_path / "s/figures/cell.svg").read_text().count("<svg") == 1
    code, out, _ = program(*words)
    assert (code, f"6 draws, {len(found['table'])} different cells" in out) == (0, True)
    code, _, err = program(*words, "--max-params", "9000")
    assert (code, err.count("\n")) == (2, 1)
    assert "constraints.max_params is null there, 9000 here" in err


def test_the_best_cell_is_trained_evaluated_and_profiled(program, work):
    trained = json.loads((work / "t/result.json").read_text())
    assert trained["cell"].replace(" ", "-") == json.loads((work / "s/result.json").read_text())["table"][0]["id"]
    evaluated = json.loads(program("evaluate", "--run", work / "t", "--json")[1])
    assert evaluated["test_accuracy"] == trained["test_accuracy"]
    words = ("profile", "--run", work / "t", "--samples", "10")
    energy = json.loads(program(*words, "--json")[1])
    assert energy["samples"] == 10
    assert energy["theoretical_energy_uj"] > 0
    assert "spikes per image" in energy["note"]
    assert f"{energy['parameters']} parameters" in program(*words)[1]


def test_cells_that_were_trained_are_held_against_their_scores(program, work, tmp_path):
    runs, rows = [], json.loads((work / "s/result.json").read_text())["table"]
    for index, (row, accuracy) in enumerate(zip(rows[:3], (0.6, 0.8, 0.7), strict=True)):
        runs.append(tmp_path / f"t{index}")
        runs[-1].mkdir()
        result = {"cell": " ".join("".join(map(str, line)) for line in row["matrix"]), "test_accuracy": accuracy}
        (runs[-1] / "result.json").write_text(json.dumps(result))
    code, out, _ = program("compare", "--search", work / "s", "--runs", *runs, "--out", "p.svg", "--json")
    assert code == 0
    found = json.loads(out)
    assert set(found) == {"score", "params", "convs", "rate"}
    assert found["score"]["tau"] == pytest.approx(-1 / 3)  # of three pairs, one is in order
    assert -1 <= found["score"]["low"] <= found["score"]["high"] <= 1
    assert (tmp_path / "p.svg").read_text().count("<svg") == 1
    code, _, err = program("compare", "--search", work / "s", "--runs", runs[0])
    assert (code, err.count("\n")) == (2, 1)
    assert "at least 3 trained cells, the table holds 1" in err


def test_a_trained_cell_is_exported(program, work, tmp_path):
    for form, file in (("json", "cell.json"), ("nir", "net.nir")):
        assert program("export", "--run", work / "t", "--out", file, "--format", form)[0] == 0
        assert (tmp_path / file).stat().st_size > 0
    best = json.loads((work / "s/result.json").read_text())["table"][0]["id"]
    assert json.loads((tmp_path / "cell.json").read_text())["id"] == best


def test_a_cell_and_the_scores_of_a_search_are_drawn(program, work, tmp_path):
    assert program("plot", CELL)[0] == 0
    assert (tmp_path / "cell.svg").read_text().count("<svg") == 1
    assert program("plot", CELL, "--out", "c.dot")[0] == 0
    assert (tmp_path / "c.dot").read_text().startswith("digraph")
    assert program("plot", "--search", work / "s", "--out", "scores.svg")[0] == 0
    assert (tmp_path / "scores.svg").read_text().count("<svg") == 1


def test_a_search_that_is_interrupted_ends_with_130_and_goes_on(program, tmp_path, monkeypatch):
    def interrupted(function, jobs, **options):
        for number, result in enumerate(inline(function, jobs, **options)):
            if number == 2:
                monkeypatch.setattr(searching, "map_jobs", inline)
                signal.raise_signal(signal.SIGINT)
            yield result

    monkeypatch.setattr(searching, "map_jobs", interrupted)
    words = ("search", *SMALL, "--n", "8", "--quiet", "--json", "--out")
    code, _, err = program(*words, "cut")
    assert (code, err.count("\n")) == (130, 1)
    assert "--resume" in err
    assert json.loads((tmp_path / "cut/best.json").read_text())["cells"] == 3
    with (tmp_path / "cut/log.jsonl").open("a") as log:
        log.write('{"id": "03')  # torn, as a killed process leaves it
    assert program(*words, "cut")[0] == 2  # only with --resume
    resumed, whole = (json.loads(program(*words, *where)[1]) for where in (("cut", "--resume"), ("whole",)))
    assert resumed == whole


def write_idx(folder, x_train, labels, x_test=None, test_labels=None):
    """Images as floats and labels as bytes, in MNIST's layout."""
    folder.mkdir()
    x_test, test_labels = (x_train, labels) if x_test is None else (x_test, test_labels)
    for part, images, numbers in (("train", x_train, labels), ("t10k", x_test, test_labels)):
        content = struct.pack(">BBBB3I", 0, 0, 13, 3, *images.shape) + images.astype(">f4").tobytes()
        (folder / f"{part}-images-idx3-ubyte").write_bytes(content)
        content = struct.pack(">BBBBI", 0, 0, 8, 1, len(numbers)) + bytes(numbers)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(content)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Folders of images of which no network learns."""
    folder, labels = tmp_path_factory.mktemp("odd"), [0, 1] * 20
    good = np.random.default_rng(0).random((40, 8, 8))
    write_idx(folder / "equal", np.ones((40, 8, 8)), labels)
    write_idx(folder / "nan", np.where(good < 0.01, np.nan, good), labels)
    write_idx(folder / "beyond", good, labels, good, [2] * 40)
    write_idx(folder / "narrow", good[:, :, :6], labels)
    return folder


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["score", "0302 0030 3003"], "has 4 rows"),
        (["score", "0302 0030 3003 00x0"], "row 3 of a cell has 4 digits, got '00x0'"),
        (["score", "0302 0050 3003 0000"], "row 1, column 2: operation 5 is unknown"),
        (["score", "0302 0130 3003 0000"], "row 1, column 1: the diagonal"),
        (["score", "0302 1030 3003 0000"], "row 0, column 1: nodes 0 and 1 are joined in both directions"),
        (["score", "0300 0003 0000 0000"], "no direct edge from input to output"),
        (["score", "0000 0000 0000 0000"], "no direct edge from input to output"),
        (["score", CELL, "--batch", "1"], "--batch must lie in 2.."),
        (["score", CELL, "--batch", "20", "--dataset", "fashion", "--data", "equal"], "all samples of the batch are"),
        (["score", CELL, "--batch", "20", "--dataset", "fashion", "--data", "nan"], "values that are not finite"),
        (["score", CELL, "--dataset", "fashion", "--data", "beyond"], "a test label is 2, training labels end at 1"),
        (["score", CELL, "--batch", "20", "--dataset", "fashion", "--data", "narrow"], "the nearest size that does is"),
        (["score", CELL, "--p2", "3"], "8 x 8 pixels do not divide by 6 (the nearest size that does is 6 x 6)"),
        (["score", CELL, "--data", "nowhere", "--dataset", "fashion"], "nowhere does not exist"),
        (["score", CELL, "--dataset", "mnist"], "dataset must be one of digits, fashion, cifar10"),
        (["score", CELL, "--time-steps", "0"], "T must be at least 1, got 0"),
        (["score", CELL, "--device", "tpu"], "--device tpu"),
        (["sample", "--n", "0"], "--n must be at least 1"),
        (["search", "--n", "3", "--max-params", "10", "--quiet"], "none of 1000 draws keeps the constraints"),
        (["search", "--max-sops", "-1"], "max_sops must not be negative"),
        (["search", "--kind", "sideways"], "--kind"),
        (["train", CELL, "--from", "s"], "a cell and --from are two architectures"),
        (["train", "--from", "nowhere"], "nowhere is no folder of a finished `snasnet search`"),
        (["train", "--preset", "cifar10", "--config", "c.toml"], "--preset and --config are two configurations"),
        (["train", "--preset", "cifar10"], "dataset cifar10 needs its folder"),
        (["train", CELL, "--set", "widths=3"], "did you mean 'width'?"),
        (["train", CELL, "--set", "group=0"], "group must be at least 1, got 0"),
        (["train", CELL, "--set", "workers=-1"], "workers must not be negative"),
        (["evaluate", "--run", "nowhere"], "nowhere is no folder of `snasnet train`"),
        (["compare", "--search", "nowhere"], "nowhere is no folder of a finished `snasnet search`"),
        (["plot", CELL, "--out", "c.png"], "must end in .svg, or for a cell in .dot"),
        (["plot"], "give a cell or --search, and not both"),
        (["reproduce", "faster"], "no claim 'faster'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(program, odd, words, complaint):
    code, out, err = program(*(odd / word if (odd / word).is_dir() else word for word in words))
    assert (code, out) == (2, "")
    assert complaint in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_a_search_in_processes_is_stopped_by_ctrl_c_and_goes_on(tmp_path):
    words = ["search", *SMALL, "--n", "40", "--workers", "2", "--json", "--out"]

    def start(*more):
        program = "import sys; from snasnet.cli import main; sys.exit(main())"
        return subprocess.Popen([sys.executable, "-c", program, *words, *more], cwd=tmp_path, stdout=subprocess.PIPE)

    cut = start("cut")
    try:
        deadline = time.monotonic() + 120
        log = tmp_path / "cut/log.jsonl"
        while not (log.is_file() and log.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.02)
        cut.send_signal(signal.SIGINT)
        assert cut.wait(60) == 130
    finally:
        cut.kill()
        cut.communicate()
    assert 0 < len(log.read_text().splitlines()) < 40
    resumed, whole = (
        json.loads(start(*where).communicate(timeout=120)[0]) for where in (("cut", "--resume"), ("whole",))
    )
    for found in (resumed, whole):
        for row in found["table"]:
            del row["seconds"]
    assert resumed == whole


def test_neither_import_nor_help_loads_torch():
    program = "import sys; from snasnet.cli import main; sys.argv = ['snasnet', '--help']; main(); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "search" in done.stdout
