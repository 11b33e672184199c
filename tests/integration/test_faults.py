"""Every command under every fault of its surroundings: words and one of README's exit codes, and never a traceback.

Each runs as `raylt` does, `main()` with streams and an environment of its own, in a child forked off: an import costs once.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import socket
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import typer

import raylt.cli.commands
from raylt.cli import app, main
from raylt.cli.faults import VARIABLE
from raylt.diffusion.compute import Compute
from raylt.spec import dump_yaml, plan
from raylt.store import Ledger, Store
from raylt.store.trial_log import TrialLog
from raylt.sweep import preflight
from raylt.trial.run import TrialContext, TrialRun
from tests.conftest import TINY, merged
from tests.support import forks
from tests.support.begun import write_start
from tests.support.confirmed import LOCK

UNKNOWN = "an error that raylt does not know"
WITHIN_S = 60
SMALL = {"train": {"steps": 3, "warmup_steps": 1}, "ticket": {"rounds": 1, "shared_rounds": 0, "rewind_step": 1}}

WORDS = {  # command -> a command line that does something where nothing is wrong
    "sweep": "sweep tiny.yaml --local",
    "confirm": "confirm tiny.yaml --local",
    "validate": "validate tiny.yaml",
    "ticket": "ticket tiny.yaml",
    "status": "status done --local",
    "results": "results done --local",
    "report": "report done -o page.html --local",
    "export": "export done 3 folder",
    "ui": "ui --port {port} --local",
    "logs": "logs done 3 --local",
    "stop": "stop done --local",
    "retry": "retry done --failed --local",
    "record": "record done --local",
    "store du": "store du --local",
    "store gc": "store gc done --local",
    "store verify": "store verify --local",
}


def leaves(command: Any, name: str = "") -> Iterator[str]:
    if not hasattr(command, "commands"):
        yield name
        return
    for word, inner in command.commands.items():
        yield from leaves(inner, f"{name} {word}".strip())


def test_no_command_is_forgotten():
    assert set(WORDS) == set(leaves(typer.main.get_command(app)))


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def begun(_warm_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a spec, and a store with a sweep called done, of which two trials have ended."""
    folder = tmp_path_factory.mktemp("begun")
    spec = dump_yaml(merged(TINY, SMALL))
    (folder / "tiny.yaml").write_text(spec)
    shutil.copytree(_warm_store, folder / "raylt-data")
    from raylt.spec import SweepSpec

    done = SweepSpec.model_validate({**merged(TINY, SMALL), "name": "done"})
    store = Store(str(folder / "raylt-data"), owner="done/0")
    ledger = Ledger(store, "done", lambda: None)
    write_start(ledger, done, **LOCK)
    bench = TrialContext.open(done, Compute(), preflight.check(done, store).inputs)
    for trial in [
        item.trial for item in plan(done) if item.trial.training.rule in (None, "uniform") and item.trial.kind != "pilot"
    ]:
        trained, log = TrialRun(trial, bench, store), TrialLog(store, "done", trial.id)
        for report in trained:
            log.scored(report)
        ledger.submit(trial)
        ledger.finish(trial.id, trained.result)
    assert run(folder, WORDS["record"]).code == 0  # MLflow's tables are made once
    return folder


@pytest.fixture
def folder(begun: Path, tmp_path: Path) -> Path:
    shutil.copytree(begun, tmp_path / "here")
    return tmp_path / "here"


def run(folder: Path, words: str, before: Callable[[], None] = lambda: None) -> Ended:
    """`raylt WORDS` in the folder. `before` is done in the child, when its streams are files there already."""
    with socket.socket() as taken:  # no server shall come up
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        argv = ["raylt", *words.format(port=taken.getsockname()[1]).split()]
        process = forks.start(_child, folder, argv, before)
        process.join(WITHIN_S)
        if process.exitcode is None:
            process.kill()
            pytest.fail(f"{words}: does not end")
    out, err = ((folder / name).read_bytes().decode(errors="replace") for name in ("out.txt", "err.txt"))
    return Ended(process.exitcode, out, err)


def _child(folder: Path, argv: list[str], before: Callable[[], None]) -> None:
    code = 99
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.chdir(folder)
        tempfile.tempdir = str(folder)  # tracebacks are kept there
        for name in [name for name in os.environ if name.startswith(("RAYLT_", "MLFLOW_", "RAY_"))]:
            del os.environ[name]
        os.environ["RAY_TMPDIR"] = "/dev/null/x"  # Ray cannot start: a fault of its own, and no sweep runs
        for number, file in ((1, "out.txt"), (2, "err.txt")):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", errors="backslashreplace")  # noqa: SIM115
        sys.argv = argv
        before()
        main()
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else 98
        sys.stderr.flush()
    except BaseException:
        import traceback

        os.write(2, traceback.format_exc().encode())
    os._exit(code)


def check(ended: Ended, codes: tuple[int, ...] = (0, 2, 3), *, speaks: bool = True, known: bool = True) -> None:
    assert "Traceback" not in ended.out + ended.err, ended
    assert ended.code in codes, ended
    assert not known or UNKNOWN not in ended.err, ended
    assert not speaks or ended.out.strip() or ended.err.strip(), ended


# --- faults -----------------------------------------------------------------------------------------------------------


def closes(*numbers: int) -> Callable[[], None]:
    def before() -> None:
        for number in numbers:
            name = ("stdin", "stdout", "stderr")[number]
            getattr(sys, name).flush() if number else None
            os.close(number)
            setattr(sys, name, None)  # as Python finds it at its start

    return before


def full(*numbers: int) -> Callable[[], None]:
    def before() -> None:
        for number in numbers:
            os.dup2(os.open("/dev/full", os.O_WRONLY), number)

    return before


def nobody_reads(*numbers: int) -> Callable[[], None]:
    def before() -> None:
        reading, writing = os.pipe()
        os.close(reading)
        for number in numbers:
            os.dup2(writing, number)

    return before


def ascii_only() -> None:
    os.environ["LC_ALL"] = "C"
    sys.stdout.reconfigure(encoding="ascii", errors="strict")  # type: ignore[union-attr]
    sys.stderr.reconfigure(encoding="ascii", errors="backslashreplace")  # type: ignore[union-attr]


def home(where: str | None) -> Callable[[], None]:
    def before() -> None:
        if where is not None:
            os.environ["HOME"] = where
            return
        os.environ.pop("HOME", None)
        import pwd

        def getpwuid(uid: int) -> Any:
            raise KeyError(uid)

        pwd.getpwuid = getpwuid  # as of a container that runs under a number

    return before


def raises(make: Callable[[], BaseException]) -> Callable[[], None]:
    """Whatever opens the store meets an error."""

    def before() -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise make()

        Store.__init__ = refuse  # type: ignore[method-assign]

    return before


def writes(name: str, content: bytes) -> Callable[[], None]:
    def before() -> None:
        path = Path(name)
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return before


SURROUNDINGS = {
    "nothing is wrong": lambda: None,
    "stdin is closed": closes(0),
    "stdout is closed": closes(1),
    "stderr is closed": closes(2),
    "all are closed": closes(0, 1, 2),
    "stdout is full": full(1),
    "stderr is full": full(2),
    "nobody reads stdout": nobody_reads(1),
    "nobody reads either": nobody_reads(1, 2),
    "an ASCII terminal": ascii_only,
    "no home": home(None),
    "a home that cannot be written": home("/proc"),
    "no store": lambda: shutil.rmtree("raylt-data"),
    "a file in place of the store": writes("raylt-data", b"x"),
    "a spec that is no UTF-8": writes("tiny.yaml", b"schema: 1\nname: caf\xe9\n"),
    "no spec": lambda: Path("tiny.yaml").unlink(),
    "a folder in place of the page": lambda: Path("page.html").mkdir(),
    "a file in place of the export": writes("folder", b"x"),
    "an mlflow.db that is none": writes("mlflow.db", b"no database" * 1000),
    "a study.db that is none": writes("raylt-data/sweeps/done/study.db", b"no database" * 1000),
}
MUTE = ("closed", "full", "reads")
DEAR = ("sweep", "confirm", "ticket", "report", "record")  # seconds each: they meet a few
FEW = ("all are closed", "nobody reads either", "no home", "a file in place of the store", "a folder in place of the page")


@pytest.mark.parametrize("in_all", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["few", "all"])
@pytest.mark.parametrize("command", WORDS)
def test_every_command_in_its_surroundings(command, in_all, begun, tmp_path):
    for name in SURROUNDINGS if in_all and command not in DEAR else FEW:
        folder = tmp_path / re.sub(r"\W", "-", name)
        shutil.copytree(begun, folder)
        ended = run(folder, WORDS[command], SURROUNDINGS[name])
        try:
            check(ended, speaks=not any(word in name for word in MUTE))
        except AssertionError as error:
            raise AssertionError(f"{command}, {name}") from error
        shutil.rmtree(folder)


@pytest.mark.parametrize("command", ["record", "ui"])
def test_a_record_that_is_no_database_has_words(command, folder):
    check(run(folder, WORDS[command], SURROUNDINGS["an mlflow.db that is none"]), (3,))


ERRORS: dict[str, tuple[Callable[[], BaseException], int, str]] = {
    "memory": (MemoryError, 3, "too little memory"),
    "recursion": (lambda: RecursionError("maximum recursion depth exceeded"), 3, UNKNOWN),
    "a fault of ours": (lambda: KeyError("x"), 3, UNKNOWN),
    "SQLite": (
        lambda: sqlite3.OperationalError("database is locked"),
        3,
        "SQLite failed: OperationalError",
    ),
    "Arrow": (lambda: pyarrow.ArrowInvalid("no such scheme"), 3, "the store failed: ArrowInvalid"),
    "no rights": (lambda: PermissionError(errno.EACCES, "Permission denied", "/there"), 3, "/there: Permission denied"),
    "a full disk": (lambda: OSError(errno.ENOSPC, "No space left on device", "/there"), 3, "/there: No space left on device"),
    "Ctrl-C": (KeyboardInterrupt, 130, ""),
    "no text": (lambda: UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid"), 3, UNKNOWN),
}


@pytest.mark.parametrize("command", sorted(set(WORDS) - {"validate", "ui"}))
def test_whatever_a_command_meets_has_words_and_a_code(command, begun, tmp_path):
    for name, (make, code, words) in ERRORS.items():
        folder = tmp_path / re.sub(r"\W", "-", name)
        shutil.copytree(begun, folder)
        ended = run(folder, WORDS[command], raises(make))
        check(ended, (code,), speaks=bool(words), known=False)
        assert words in ended.err, (command, name, ended)
        shutil.rmtree(folder)


def test_a_fault_of_ours_says_where_its_traceback_is(folder):
    fault = raises(lambda: KeyError("x"))
    ended = run(folder, WORDS["status"], fault)
    (path,) = re.findall(rf"{re.escape(str(folder))}/raylt-\S+\.txt", ended.err)
    assert "Traceback (most recent call last)" in Path(path).read_text()
    assert "a fault of raylt's" in ended.err and len(ended.err.splitlines()) == 3

    def shown() -> None:
        os.environ[VARIABLE] = "1"
        fault()

    assert "Traceback (most recent call last)" in run(folder, WORDS["status"], shown).err


@pytest.mark.parametrize(
    "words", ["sweeep", "status", "status a b", "results done --sort nonsense", "store", "logs done x", "--nope"]
)
def test_a_wrong_command_line_is_code_2(folder, words):
    ended = run(folder, words)
    check(ended, (2,))
    assert "Error: " in ended.err or "Usage: " in ended.out + ended.err


@pytest.mark.parametrize("words", ["sweep tiny.yaml --local", "ticket tiny.yaml"])
def test_how_a_run_ended_is_its_code_though_nobody_can_be_told(folder, words):
    """Ray cannot start here, so a sweep ends with 3; typer's own answer to a broken pipe is 1, which means failed trials."""
    usual = run(folder, words).code
    for fault in (full(1, 2), nobody_reads(1, 2), closes(0, 1, 2)):
        assert run(folder, words, fault).code == usual
    assert usual == (3 if "sweep" in words else 0)


def test_nothing_is_printed_into_a_file_that_took_a_closed_streams_number(folder):
    def before() -> None:
        closes(0, 1, 2)()
        opened = raylt.cli.commands.app  # the child's `main` opens the streams before anything else opens a file
        assert opened

    run(folder, "ticket tiny.yaml", before)
    stray = [path for path in folder.rglob("*") if path.is_file() and b"scored: density 1.0000" in path.read_bytes()]
    assert stray == []


@pytest.mark.parametrize("words", ["sweep bad.yaml --local", "sweep bad.yaml --local --dry-run", "ticket bad.yaml"])
def test_a_config_that_gives_no_unet_is_told_with_its_line_before_anything_starts(folder, words):
    spec = dump_yaml(merged(merged(TINY, SMALL), {"model": {"config": {"down_block_types": ["KDownBlock2D", "DownBlock2D"]}}}))
    (folder / "bad.yaml").write_text(spec)
    ended = run(folder, words)
    check(ended, (2,))
    line = next(number for number, text in enumerate(spec.splitlines(), 1) if text.strip() == "config:")
    assert f"bad.yaml:{line}: model.config: gives no U-Net that can be trained: " in ended.err
    assert not (folder / "raylt-data/sweeps/tiny").exists()
