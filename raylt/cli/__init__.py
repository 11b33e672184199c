"""The command line: parse, call, print. Heavy imports are inside the commands: `--help` and `validate` answer at once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from raylt.errors import EnvironmentFailure, InputError

if TYPE_CHECKING:
    from raylt.cli.commands import app

__all__ = ["app", "main"]


def __getattr__(name: str) -> Any:
    """`app`, made when it is first asked for: until `main` has started, nobody words what fails, Ctrl-C among it."""
    if name != "app":
        raise AttributeError(name)
    from raylt.cli.commands import app

    return app


def _require_folder() -> None:
    """Libraries that we load end the process where there is none."""
    try:
        Path.cwd()
    except OSError as error:
        why = f"the folder that raylt was started in is gone ({error.strerror}); cd to one that is there"
        raise EnvironmentFailure(why) from None


def _refuse_empty(words: Sequence[str]) -> None:
    """An unset variable of a script: as a path it would be this very folder, as an option's value the default."""
    for before, word in pairwise(words):
        option, is_set, value = word.partition("=")
        if not word or (option.startswith("--") and is_set and not value):
            raise InputError(f"{option or f'what follows {before}'}: is empty; is a variable of the shell unset?")


def main() -> NoReturn:
    """Run a command; print errors as plain lines and leave with their exit code."""
    try:
        from raylt.cli.faults import leave_with
        from raylt.cli.streams import close_stdout, make_usable
        from raylt.report.terminal import print_plainly

        make_usable()
        print_plainly()
        try:
            _require_folder()
            _refuse_empty(sys.argv)
            from raylt.cli.commands import app

            code = int(app(standalone_mode=False) or 0)
        except BaseException as error:
            code = leave_with(error)
        if not close_stdout(quietly=code != 0):
            code = code or 3
    except KeyboardInterrupt:  # once more, while the first one was being heeded
        code = 130
    sys.exit(code)
