"""What others wrote is shown by the terminal, not obeyed: whoever prints it, and however."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from rich.status import Status
from rich.table import Table
from rich.text import Text

from raylt.report.terminal import plain, plain_console, print_plainly
from tests.support.results import a_result

EVIL = "\x1b]0;owned\x07\x1b[2J\x1b[31mred\x9b5m\rover\u202eback\u2066\x7f\x08\x00"
SHOWN = r"\u001b]0;owned\u0007\u001b[2J\u001b[31mred\u009b5m\u000dover\u202eback\u2066\u007f\u0008\u0000"


def controls(text: str) -> set[str]:
    """The characters of a text that a terminal would obey."""
    return {sign for sign in text if (not sign.isprintable() and sign not in "\n\t") or sign in "\u202e\u2066"}


def test_control_characters_become_escapes_and_lines_stay_lines() -> None:
    assert plain(EVIL) == SHOWN
    assert plain("a\tb\nc\r\nd Größe → 漢字 😀") == "a\tb\nc\r\nd Größe → 漢字 😀"
    assert plain("\udc80") == r"\udc80"  # a name that is no UTF-8, which print() would raise for
    assert json.loads(plain('"\x7f"')) == "\x7f"


def written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode()  # type: ignore[attr-defined]


def test_nothing_that_is_printed_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    streams = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "ascii")
    for name, stream in zip(("stdout", "stderr"), streams, strict=True):
        monkeypatch.setattr(sys, name, stream)
    assert logging.lastResort is not None
    monkeypatch.setattr(logging.lastResort, "formatter", None)
    monkeypatch.setattr(logging.getLogger("nobody.handles.it"), "propagate", False)
    print_plainly()
    print(EVIL)
    sys.stdout.writelines([EVIL, "\n"])
    typer.echo(f"{EVIL} end")
    logging.getLogger("nobody.handles.it").warning(EVIL)
    typer.echo(EVIL, err=True)
    print(EVIL, file=sys.stderr)
    for stream, count in zip(streams, (3, 3), strict=True):
        text = written(stream)
        assert controls(text) == set()
        assert text.count("owned") == count
    taken_over = io.StringIO()
    with monkeypatch.context() as patch:  # as rich does while it shows progress
        patch.setattr(sys, "stderr", taken_over)
        logging.getLogger("nobody.handles.it").warning(EVIL)
    assert controls(taken_over.getvalue()) == set() and "owned" in taken_over.getvalue()
    print_plainly()  # once more changes nothing
    print("\x1b")
    assert written(streams[0]).endswith("\\u001b\n")


def test_rich_keeps_its_own_colours_and_none_of_others() -> None:
    out = io.StringIO()
    console = plain_console(out)
    table = Table(title=Text(EVIL), caption=Text(EVIL))
    table.add_column(Text(EVIL))
    table.add_row(Text(EVIL), style="bold")
    table.add_row("[link=http://evil]here[/link]")
    console.print(table, width=300)
    console.print(EVIL, markup=False, soft_wrap=True)
    assert controls(out.getvalue()) == set()
    assert out.getvalue().count("owned") == 5
    assert "[link=http://evil]here[/link]" in out.getvalue()
    assert isinstance(console.status(Text("x")), Status)


STORE_COMMANDS = {  # what a command prints -> of the store's words
    ("status", "evil"): "owned", ("results", "evil"): "owned", ("results", "evil", "--csv"): "owned",
    ("results", "evil", "--json"): "owned", ("logs", "evil", "0"): "owned", ("store", "du"): "owned",
    ("store", "gc", "evil", "--dry-run"): "", ("status", "ev\x1b[2Jil"): "2Jil", ("validate", "no\x1b[2J"): "2J",
}  # fmt: skip


@pytest.fixture(scope="module")
def evil_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep whose trial failed for a cause with sequences in it, beside a sweep with such a name."""
    from dataclasses import replace

    from raylt.spec import dump_yaml, load_spec, plan
    from raylt.store import Ledger, Store

    root = tmp_path_factory.mktemp("evil")
    spec = load_spec("digits", ["name=evil"])
    for name in ("evil", f"evil{EVIL[:-1].replace('/', '')}"):
        store = Store(str(root / "raylt-data"))
        store.write(f"sweeps/{name}/spec.yaml", dump_yaml(spec.dump()).encode())
        store.write_record(f"sweeps/{name}/spec.lock.json", {"digest": spec.digest})
        ledger = Ledger(store, name, lambda: None)
        ledger.submit(replace(plan(spec)[0].trial, id=0))
        ledger.finish(0, a_result(state="FAIL", cause=EVIL))
        store.write(f"sweeps/{name}/logs/00000/1-host-1.txt", f"{EVIL}\nnext line\n".encode())
    return root


@pytest.mark.parametrize("on_terminal", [True, False], ids=["terminal", "pipe"])
@pytest.mark.parametrize("words", STORE_COMMANDS, ids=lambda words: " ".join(words).replace("\x1b", "ESC"))
def test_no_command_hands_a_stores_words_to_the_terminal(evil_store: Path, words: tuple[str, ...], on_terminal: bool) -> None:
    """Run for real, as both ends of its output: what comes out holds no sequence of the store's."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAYLT", "RAY_", "MLFLOW"))}
    environment |= {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1", "RAY_TMPDIR": str(evil_store), "PYTHONPATH": _project()}
    command = [sys.executable, "-m", "raylt.cli", *words]
    if not on_terminal:
        done = subprocess.run(command, cwd=evil_store, env=environment, capture_output=True, timeout=120, check=False)
        text = (done.stdout + done.stderr).decode()
    else:
        master, slave = pty.openpty()
        with subprocess.Popen(command, cwd=evil_store, env=environment, stdout=slave, stderr=slave) as process:
            os.close(slave)
            text = _all_of(master).decode().replace("\r\n", "\n")
        assert process.returncode in (0, 2)
    assert "Traceback" not in text
    assert STORE_COMMANDS[words] in text
    assert controls(text) == set()


def _project() -> str:
    return str(Path(__file__).parents[2])


def _all_of(descriptor: int) -> bytes:
    """What comes out of a terminal until nobody holds its other end."""
    text = b""
    try:
        while piece := os.read(descriptor, 65536):
            text += piece
    except OSError:  # Linux says so in place of an empty read
        pass
    finally:
        os.close(descriptor)
    return text
