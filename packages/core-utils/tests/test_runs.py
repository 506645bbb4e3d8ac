import contextlib
import json
import multiprocessing
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from core_utils.files import FileError, atomic_file, write_atomically
from core_utils.runs import Run, RunError, read_finished
from core_utils.states import DamagedState, pack, unpack

pytestmark = pytest.mark.bare

CONFIG = {"seed": 3, "rate": 0.1}


def test_a_new_run_holds_its_configuration_and_environment(tmp_path):
    with Run.open(tmp_path / "a" / "b", CONFIG) as run:
        assert json.loads((run.path / "config.json").read_text()) == CONFIG
        environment = run.read("environment.json")
    assert environment["seed"] == 3
    assert environment["versions"]["numpy"] == np.__version__
    assert environment["fallbacks"] == []


def test_an_unfinished_run_is_continued_only_when_asked(tmp_path):
    with Run.open(tmp_path, CONFIG) as run:
        run.log(step=1)
    with pytest.raises(RunError, match=r"unfinished run \(add --resume"):
        Run.open(tmp_path, CONFIG)
    with Run.open(tmp_path, CONFIG, resume=True) as run:
        run.log(step=2)
        assert [record["step"] for record in run.records()] == [1, 2]


def test_another_configuration_is_refused_with_the_key_that_differs(tmp_path):
    with Run.open(tmp_path, CONFIG) as run:
        run.log(step=1)
    with pytest.raises(RunError, match=r"rate is 0.1 there, 0.2 here .name a new folder"):
        Run.open(tmp_path, {**CONFIG, "rate": 0.2}, resume=True)


def test_a_folder_in_which_nothing_was_done_counts_as_new(tmp_path):
    Run.open(tmp_path, CONFIG).close()
    with Run.open(tmp_path, {"another": 1}) as run:
        assert run.read("config.json") == {"another": 1}


def test_what_a_finished_run_was_asked_is_read_back(tmp_path):
    def asked():
        return read_finished(tmp_path, "paper train", lambda config: config["rate"] > 0)

    for content in (None, b"torn {", b"[1, 2]", b'{"seed": 3}', b'{"rate": -1}'):
        if content is not None:
            (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(RunError, match="is no folder of `paper train`"):
            asked()
    (tmp_path / "config.json").unlink()
    with Run.open(tmp_path, CONFIG) as run:
        run.log(step=1)
        with pytest.raises(RunError, match=r"is not finished \(paper train \.\.\. --out .* --resume\)"):
            asked()
        run.finish({"accuracy": 0.5})
    assert asked() == CONFIG


def test_a_finished_run_is_returned_read_only(tmp_path):
    with Run.open(tmp_path, CONFIG) as run:
        run.finish({"accuracy": 0.5})
    again = Run.open(tmp_path, CONFIG)
    assert again.finished
    assert again.result() == {"accuracy": 0.5}
    for write in (lambda: again.log(x=1), lambda: again.write("x", "y"), lambda: again.save_state("s", {}, {})):
        with pytest.raises(RunError, match="read-only"):
            write()


def test_overwrite_starts_anew_and_leaves_foreign_folders_alone(tmp_path):
    run_folder, foreign = tmp_path / "run", tmp_path / "foreign"
    with Run.open(run_folder, CONFIG) as run:
        run.log(step=1)
        run.finish(1)
    with Run.open(run_folder, {"other": 1}, overwrite=True) as run:
        assert list(run.records()) == []
        assert not (run_folder / "result.json").exists()
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(RunError, match="holds no run"):
            Run.open(foreign, CONFIG, overwrite=overwrite)
    assert [entry.name for entry in foreign.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_run_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunError, match="not a folder"):
            Run.open(path, CONFIG)


def test_numbers_that_are_not_finite_are_null_and_named(tmp_path):
    with Run.open(tmp_path, CONFIG) as run:
        run.log(loss=float("nan"), norm=np.float32("inf"), step=1)
        assert next(run.records()) == {"loss": None, "norm": None, "step": 1, "non_finite": ["loss", "norm"]}


def test_a_torn_last_line_is_dropped_and_any_other_is_named(tmp_path):
    with Run.open(tmp_path, CONFIG) as run:
        run.log(step=1)
    log = tmp_path / "log.jsonl"
    log.write_bytes(log.read_bytes() + b'{"step": ')
    with Run.open(tmp_path, CONFIG, resume=True) as run:
        assert [record["step"] for record in run.records()] == [1]
    log.write_bytes(b'{"step"\n{"step": 2}\n')
    with pytest.raises(RunError, match=r"log\.jsonl is damaged at line 1"):
        Run.open(tmp_path, CONFIG, resume=True)


def test_a_damaged_configuration_is_named(tmp_path):
    with Run.open(tmp_path, CONFIG) as run:
        run.log(step=1)
    (tmp_path / "config.json").write_text('{"seed"')
    with pytest.raises(RunError, match=r"config\.json is damaged"):
        Run.open(tmp_path, CONFIG, resume=True)


def test_names_stay_inside_the_folder(tmp_path):
    with Run.open(tmp_path / "run", CONFIG) as run, pytest.raises(FileError, match="lies outside"):
        run.write("../escaped", "x")
    assert not (tmp_path / "escaped").exists()


@given(
    st.dictionaries(
        st.text("abc/", min_size=1, max_size=4),
        hnp.arrays(
            st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.uint8, np.bool_]),
            hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
        ),
        max_size=3,
    ),
    st.dictionaries(
        st.text(max_size=5), st.integers() | st.text() | st.none() | st.floats(allow_nan=False, allow_infinity=False)
    ),
)
def test_a_state_comes_back_bit_for_bit(tensors, facts):
    back, told, owner = unpack(pack(tensors, facts, owner="me"))
    assert owner == "me"
    assert told == facts
    assert back.keys() == tensors.keys()
    for name, array in tensors.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        assert back[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("position", [0, 9, 60, -3])
def test_any_flipped_byte_of_a_state_is_noticed(position):
    content = bytearray(pack({"w": np.arange(64.0)}, {"step": 1}, owner="me"))
    content[position] ^= 1
    with pytest.raises(DamagedState):
        unpack(bytes(content))


def test_a_damaged_state_falls_back_to_the_one_before_and_says_so(tmp_path):
    with Run.open(tmp_path, CONFIG) as run:
        assert run.load_state("fit") is None
        for step in range(3):
            run.save_state("fit", {"w": np.full(100, step)}, {"step": step})
        file = tmp_path / "checkpoint" / "fit.safetensors"
        assert sorted(entry.name for entry in file.parent.iterdir()) == ["fit.previous.safetensors", "fit.safetensors"]
        file.write_bytes(file.read_bytes()[:-50])
        tensors, facts = run.load_state("fit")
        assert facts == {"step": 1}
        assert (tensors["w"] == 1).all()
        assert "the state before it was used" in run.read("environment.json")["fallbacks"][0]
        (file.parent / "fit.previous.safetensors").write_bytes(b"")
        with pytest.raises(RunError, match=r"fit\.safetensors"):
            run.load_state("fit")


def test_a_state_of_another_configuration_is_refused(tmp_path):
    for name, config in (("a", {"seed": 1}), ("b", {"seed": 2})):
        with Run.open(tmp_path / name, config) as run:
            run.save_state("fit", {}, {})
    (tmp_path / "a/checkpoint/fit.safetensors").replace(tmp_path / "b/checkpoint/fit.safetensors")
    with (
        Run.open(tmp_path / "b", {"seed": 2}, resume=True) as run,
        pytest.raises(RunError, match="another configuration"),
    ):
        run.load_state("fit")


def hold(path, opened, release):
    with Run.open(path, CONFIG):
        opened.set()
        release.wait(30)


def test_two_processes_cannot_open_one_run(tmp_path):
    context = multiprocessing.get_context("spawn")
    opened, release = context.Event(), context.Event()
    holder = context.Process(target=hold, args=(tmp_path, opened, release))
    holder.start()
    try:
        assert opened.wait(30)
        with pytest.raises(RunError, match=f"in use by process {holder.pid}"):
            Run.open(tmp_path, CONFIG, resume=True)
    finally:
        release.set()
        holder.join(30)
    Run.open(tmp_path, CONFIG, resume=True).close()


WRITER = textwrap.dedent("""
    import sys
    import numpy as np
    from core_utils.runs import Run
    run = Run.open(sys.argv[1], {"seed": 3, "rate": 0.1}, resume=True)
    step = max((record["step"] for record in run.records()), default=0)
    print("ready", flush=True)
    while True:
        step += 1
        run.log(step=step, text="x" * 2000)
        print(step, flush=True)
        run.save_state("fit", {"w": np.full(20_000, step)}, {"step": step})
        run.write("figures/latest.json", {"step": step, "text": "y" * 5000})
""")


def test_fifty_kills_lose_no_logged_line_and_tear_no_file(tmp_path):
    """A process is killed at a random moment 50 times, going on with the same folder each time."""
    folder, random = tmp_path / "run", np.random.default_rng(0)
    told_last = saved_last = 0
    # Eight writers are killed while starting, too: their moment falls into opening the folder.
    for kill in range(50):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True)
        if kill % 6:
            assert writer.stdout.readline() == "ready\n"
            time.sleep(random.uniform(0, 0.03))
        else:
            time.sleep(random.uniform(0.1, 0.4))
        writer.send_signal(signal.SIGKILL)
        told = [int(line) for line in writer.communicate()[0].split() if line.isdigit()]
        told_last = told[-1] if told else told_last

        with Run.open(folder, CONFIG, resume=True) as run:
            steps = [record["step"] for record in run.records()]
            assert steps == list(range(1, len(steps) + 1))
            assert len(steps) >= told_last
            state = run.load_state("fit")
            if state is not None:
                assert (state[0]["w"] == state[1]["step"]).all()
                assert saved_last <= state[1]["step"] <= len(steps)
                saved_last = state[1]["step"]
            if (folder / "figures/latest.json").exists():
                assert len(run.read("figures/latest.json")["text"]) == 5000
            assert not list(folder.rglob("*.tmp"))
            assert run.read("environment.json")["fallbacks"] == []
    assert told_last > 50


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 256 KiB; needs the right to mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(file):
    """Grows a file until the disk takes no more."""
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as handle:
        while handle.write(b"\0" * 512):
            pass


def test_a_full_disk_leaves_the_previous_state_intact(tiny_disk):
    with Run.open(tiny_disk / "run", CONFIG) as run:
        run.save_state("fit", {"w": np.ones(1000)}, {"step": 1})
        run.log(step=1)
        with pytest.raises(FileError, match="No space left on device"):
            run.save_state("fit", {"w": np.ones(100_000)}, {"step": 2})
        filler = tiny_disk / "filler"
        fill(filler)
        with pytest.raises(FileError, match="No space left on device"):
            run.log(step=2, text="x" * 10_000)
        filler.unlink()
        assert run.load_state("fit")[1] == {"step": 1}
    with Run.open(tiny_disk / "run", CONFIG, resume=True) as run:
        assert [record["step"] for record in run.records()] == [1]
        assert not list(run.path.rglob("*.tmp"))


def test_a_read_only_folder_is_named(tiny_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    with pytest.raises(RunError, match="Read-only file system"):
        Run.open(tiny_disk / "run", CONFIG)


def test_a_file_that_grows_over_the_limit_leaves_the_old_one(tmp_path):
    """The same without the right to mount: the operating system's limit on a file's size."""
    code = textwrap.dedent("""
        import resource, signal, sys
        from pathlib import Path
        from core_utils.files import FileError, write_atomically
        target = Path(sys.argv[1])
        write_atomically(target, "old")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_atomically(target, "n" * 2000)
        except FileError as error:
            print(error)
    """)
    target = tmp_path / "file"
    told = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True, check=True).stdout
    assert "File too large" in told
    assert target.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_write_atomically_keeps_the_file_before(tmp_path):
    target, kept = tmp_path / "a", tmp_path / "b"
    write_atomically(target, "1", keep=kept)
    write_atomically(target, b"2", keep=kept)
    assert (target.read_text(), kept.read_text()) == ("2", "1")


def test_a_file_whose_writing_fails_does_not_appear(tmp_path):
    target = tmp_path / "frames.npy"
    with atomic_file(target) as file:
        file.write(b"whole")
        assert not target.exists()
    with pytest.raises(TypeError), atomic_file(target) as file:
        file.writelines([b"half", None])
    assert target.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [target]


def test_a_rank_above_zero_follows_without_writing(tmp_path, monkeypatch):
    holder = Run.open(tmp_path, CONFIG)
    monkeypatch.setenv("RANK", "1")
    follower = Run.open(tmp_path, CONFIG)
    follower.log(step=1)
    follower.write("x.json", {})
    follower.save_state("fit", {}, {})
    assert list(holder.records()) == []
    assert not (tmp_path / "x.json").exists()
    assert holder.load_state("fit") is None
    holder.close()
