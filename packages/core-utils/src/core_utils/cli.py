"""One shape of command line for every package: typed options in, results on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import tyro

from core_utils import interrupts
from core_utils.bench import Comparison
from core_utils.claims import Result, evaluate, load
from core_utils.errors import CheckFailed, Terminated, UserError
from core_utils.files import write_atomically
from core_utils.jsonable import dumps
from core_utils.memory import reuse_freed_memory
from core_utils.page import UNPUBLISHED, measured
from core_utils.report import claim_facts
from core_utils.runs import Run
from core_utils.settings import settings

Config = TypeVar("Config")

DONE, CHECK_FAILED, BAD_INPUT, BUG, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143


@dataclass(frozen=True, kw_only=True)
class Command:
    """What every command has: a machine-readable and a quiet form.

    A command is a frozen dataclass that derives from this one; its fields are its options, the comment behind a field
    is its help. Calling it does the work and returns an exit code, or None for 0.
    """

    json: bool = False  # print the result as JSON
    quiet: bool = False  # no progress

    def __call__(self) -> int | None:
        """Does the work."""
        raise NotImplementedError  # every command has its own

    def show(self, result: Any, table: Callable[[], Any] | None = None) -> None:
        """Prints the result: JSON with `--json`, else the table (anything rich prints), else `key value` lines."""
        if self.json:
            sys.stdout.write(dumps(result, indent=2) + "\n")
            return
        from rich.console import Console

        console = Console(soft_wrap=True, markup=False, highlight=False)
        if table is not None:
            console.print(table())
        elif isinstance(result, Mapping):
            for key, value in result.items():
                console.print(f"{key}  {value}")
        else:
            console.print(result)

    def say(self, text: str) -> None:
        """Prints one line of progress on stderr, unless `--quiet`."""
        if not self.quiet:
            sys.stderr.write(text + "\n")


@dataclass(frozen=True, kw_only=True)
class RunCommand(Command):
    """A command whose work lives in a run folder, survives an interruption and can be resumed."""

    out: Path = Path("runs/run")  # the run's folder
    resume: bool = False  # go on with the unfinished run in --out
    overwrite: bool = False  # remove the run in --out and start anew

    def open_run(self, config: Any) -> Run:
        """The run in `--out`, opened as the options say."""
        return Run.open(self.out, config, resume=self.resume, overwrite=self.overwrite)


@dataclass(frozen=True, kw_only=True)
class Configured:
    """Options that fill a configuration dataclass: typed option > `--set` > file > default."""

    config: Path | None = None  # TOML file with the configuration
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()  # one setting, as key=value; may be repeated

    def settings(self, config: type[Config], *, file: Path | None = None, **typed: Any) -> Config:
        """The configuration that these options and the typed ones describe.

        Args:
            config: a frozen dataclass.
            file: TOML file that is read instead of `--config`, such as a preset.
            **typed: options that the user gave one by one; None gives nothing.
        """
        return settings(config, file=self.config if file is None else file, pairs=self.set, typed=typed)


@dataclass(frozen=True, kw_only=True)
class Reproduce(Command):
    """Measure the paper's claims and give each a verdict with its 95 % interval."""

    claims: tyro.conf.Positional[tuple[str, ...]] = ()  # ids of claims; all when none is named
    seeds: int | None = None  # how many seeds, from 0; by default what each claim asks for
    workers: int = 2  # processes
    cluster: str | None = None  # address of a Dask scheduler instead
    data: Path | None = None  # folder of the full data set instead of the embedded one
    device: str = "cpu"  # cpu, cuda, cuda:1, ...
    full: bool = False  # the long configurations
    out: Path = Path("runs/reproduce")  # where trials are kept; finished ones are not repeated

    reference: ClassVar[str]

    def __call__(self) -> int:
        """Runs the trials that `--out` does not hold yet; exit code 1 if a claim is refuted or crashed."""
        if self.data is not None and not self.data.is_dir():
            raise UserError(f"--data {self.data} is no folder")
        with Run.open(self.out, {"command": f"reproduce {self.reference}"}, resume=True) as run:
            results = evaluate(
                _chosen("claim", load(self.reference), self.claims),
                seeds=self.seeds,
                workers=self.workers,
                cluster=self.cluster,
                data=self.data,
                device=self.device,
                full=self.full,
                run=run,
                progress=not self.quiet,
            )
        for result in results:
            if result.error is not None and result.error.user:
                raise UserError(result.error.message)
        package = self.reference.partition(":")[0].partition(".")[0].replace("_", "-")
        self.show([claim_facts(package, result) for result in results], lambda: _claim_table(results))
        for result in results:
            if result.error is not None:
                sys.stderr.write(f"{result.claim.id} crashed: {result.error}\n")
        return CHECK_FAILED if any(result.outcome in {"refuted", "crashed"} for result in results) else DONE


@dataclass(frozen=True, kw_only=True)
class Bench(Command):
    """Time this package against its peers, interleaved in one process, and compare peak memory."""

    benchmarks: tyro.conf.Positional[tuple[str, ...]] = ()  # ids of benchmarks; all when none is named
    repeats: int = 10  # timed calls of each side
    out: Path = Path("runs/bench")  # where the figures are written

    package: ClassVar[str]

    def __call__(self) -> None:
        """Runs the benchmarks one after the other; a peer that cannot be imported is reported, not an error."""
        known = importlib.import_module(f"{self.package}.benchmarks").BENCHMARKS
        comparisons = []
        with Run.open(self.out, {"command": f"bench {self.package}"}, resume=True) as run:
            for benchmark in _chosen("benchmark", known, self.benchmarks):
                self.say(f"{benchmark.id} ...")
                comparisons.append(benchmark.run(self.repeats))
                run.write(f"{benchmark.id}.json", comparisons[-1])
        self.show(comparisons, lambda: _benchmark_table(comparisons))


def shared(*, claims: str, benchmarks: str | None = None) -> dict[str, type[Command]]:
    """The commands that every package has.

    Args:
        claims: `module:NAME` of the package's claims.
        benchmarks: import name of the package whose module `benchmarks` holds `BENCHMARKS`.
    """
    commands: dict[str, type[Command]] = {"reproduce": _named(Reproduce, reference=claims)}
    if benchmarks is not None:
        commands["bench"] = _named(Bench, package=benchmarks)
    return commands


def main(prog: str, commands: Mapping[str, type[Command]], arguments: Sequence[str] | None = None) -> int:
    """Parses the command line, runs the command, and turns every ending into its exit code.

    Args:
        prog: the program's name.
        commands: a `Command` dataclass by verb.
        arguments: by default the process's own.

    Returns:
        0 done; 1 a check failed; 2 bad input, in one line; 3 a bug of ours, with its traceback in `crash.txt`; 130 and
        143 after Ctrl-C and SIGTERM.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:
        sys.stdout.write(f"{prog} {importlib.metadata.version(prog)}\n")
        return DONE
    command = None
    try:
        with interrupts.raised():
            command = _parse(prog, commands, words)
            if not isinstance(command, Bench):  # which measures what users of the library get
                reuse_freed_memory()
            return command() or DONE
    except UserError as error:
        return _end(prog, str(error), BAD_INPUT)
    except CheckFailed as error:
        return _end(prog, str(error), CHECK_FAILED)
    except KeyboardInterrupt as error:
        kept = getattr(command, "out", None)
        how = f"; what is finished is kept in {kept}" if kept is not None else ""
        how += (
            ", go on with --resume" if isinstance(command, RunCommand) else ", the same command goes on" if kept else ""
        )
        return _end(prog, f"interrupted{how}", TERMINATED if isinstance(error, Terminated) else INTERRUPTED)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else DONE
    except BrokenPipeError:
        sys.stderr.close()
        return DONE
    except Exception as error:  # a bug: the user gets one line, the traceback goes to a file
        return _end(prog, f"{type(error).__name__}: {error}; this is a bug of {prog}{_crash_file()}", BUG)


def _parse(prog: str, commands: Mapping[str, type[Command]], words: Sequence[str]) -> Command:
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.extras.subcommand_cli_from_dict(
                dict(commands), prog=prog, args=words or ["--help"], config=(tyro.conf.FlagCreatePairsOff,)
            )
    except SystemExit as error:
        if error.code in (0, None):
            raise
        raise UserError(_first_complaint(complaint.getvalue()), f"see {prog} --help") from None


def _first_complaint(box: str) -> str:
    """The message inside the box that tyro draws, on one line; what follows its first rule is advice."""
    lines: list[str] = []
    for line in box.splitlines():
        text = line.strip("│ ")
        if lines and text and set(text) == {"─"}:
            break
        if text and not set(text) & set("╭╰"):
            lines.append(text)
    return " ".join(lines) or "bad usage"


def _end(prog: str, message: str, code: int) -> int:
    sys.stderr.write(f"{prog}: {' '.join(message.split())}\n")
    return code


def _crash_file() -> str:
    try:
        write_atomically(Path("crash.txt"), traceback.format_exc())
    except UserError:
        traceback.print_exc()
        return ""
    return ", see crash.txt"


def _chosen(kind: str, known: Sequence[Any], names: Sequence[str]) -> list[Any]:
    ids = [each.id for each in known]
    for name in names:
        if name not in ids:
            raise UserError(f"no {kind} {name!r}", f"known: {', '.join(ids)}")
    return [each for each in known if not names or each.id in names]


def _named(command: type[Command], **facts: str) -> type[Command]:
    return type(command.__name__, (command,), {**facts, "__doc__": command.__doc__})


def _claim_table(results: Sequence[Result]) -> Any:
    from rich.table import Table

    table = Table("claim", "paper", "measured", "verdict")
    for result in results:
        table.add_row(result.claim.id, result.claim.paper_value or UNPUBLISHED, measured(result), result.outcome)
    return table


def _benchmark_table(comparisons: Sequence[Comparison]) -> Any:
    from rich.table import Table

    table = Table("benchmark", "ours faster by", "ours leaner by", "target", "outcome")
    for each in comparisons:
        ratio = each.ratio and f"{each.ratio.median:.2f} [{each.ratio.low:.2f}, {each.ratio.high:.2f}]"
        memory = "" if each.memory_ratio is None else f"{each.memory_ratio:.2f}"
        outcome = f"not measured: {each.not_measured}" if each.not_measured else each.outcome
        table.add_row(each.id, ratio or "", memory, "" if each.target is None else f"{each.target:g}", outcome)
    return table
