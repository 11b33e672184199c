"""Every command: that it answers at once, imports little, and refuses what makes no sense."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.commands import HEAVY, paths, start

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.mark.parametrize("words", [("--help",), ("sweep", "--help"), ("validate", "digits")], ids=" ".join)
def test_answers_within_a_second(words):
    times = []
    while len(times) < 3 and min(times, default=9) >= 1:
        began = time.monotonic()
        assert start(*words).code == 0
        times.append(time.monotonic() - began)
    assert min(times) < 1, times


READERS = [
    ("--help",), ("validate", "small.yaml"), ("validate", "--schema"), ("status", "small"), ("results", "small", "--json"),
    ("report", "small", "-o", "page.html"),
]  # fmt: skip


@pytest.mark.parametrize("words", READERS, ids=" ".join)
def test_imports_nothing_heavy(words, here):
    done = start(*words, flags=("-X", "importtime"))
    assert done.code == 0, done.err
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.err.splitlines() if line.startswith("import time:")}
    assert "raylt" in imported
    assert imported & HEAVY == set()


def test_help_names_every_command(call):
    done = call("--help")
    assert done.code == 0
    for command in ("sweep", "validate", "ticket", "status", "results", "report", "export", "ui"):
        assert re.search(rf"^\W*{command} ", done.out, re.MULTILINE)


@pytest.mark.parametrize("words", [("sweep", "--local", "--address", "auto"), ("ticket", "--rule", "magic")], ids=" ".join)
def test_options_that_make_no_sense_are_refused(words, call):
    (line,) = call(*words).errors
    assert words[1] in line
    assert paths() == []


@pytest.mark.parametrize("words", [("sweep", "--frobnicate"), ("frobnicate",), ("results",), ("report", "small")], ids=" ".join)
def test_usage_errors_exit_2(words, call):
    assert call(*words).errors


EMPTY = [  # as an unset variable of a script gives it
    "validate", "sweep --local", "ticket", "status", "results", "report small -o", "export small 3", "export",
    "record small --uri", "record", "ui --uri", "store du --root", "store gc", "status small --cluster",
    "sweep small.yaml --address", "stop", "confirm", "retry small",
]  # fmt: skip


@pytest.mark.parametrize("words", EMPTY)
def test_an_empty_name_or_path_is_refused(words, call, here):
    before = paths()
    done = call(*words.split(), "", *(["3", "out"] if words == "export" else []))
    (line,) = done.errors
    assert line == f"what follows {words.split()[-1]}: is empty; is a variable of the shell unset?"
    if words.split()[-1].startswith("--"):
        assert call(*words.split()[:-1], f"{words.split()[-1]}=").errors == [line.removeprefix("what follows ")]
    assert paths() == before


def test_a_folder_that_is_gone_from_under_the_shell(tmp_path):
    """torch's libraries would end the process, without a word of ours."""
    code = f"{sys.executable} -m raylt.cli ticket digits"
    (tmp_path / "gone").mkdir()
    shell = f"cd {tmp_path}/gone && rmdir {tmp_path}/gone && PYTHONPATH={Path.cwd()} {code}"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("the folder that raylt was started in is gone")


def test_hours_that_are_none(call):
    for hours in ("0", "-1", "nan"):
        assert "above 0, in hours" in " ".join(call("sweep", "--max-hours", hours).errors)
