"""The command line: parse, call, print. Heavy imports are inside the commands: `--help` and `validate` answer at once."""

from __future__ import annotations

import sys
from typing import NoReturn

from raylt.cli import manage, record, run, stores, view  # their commands are part of the app
from raylt.cli.common import app
from raylt.errors import EnvironmentFailure, RayltError
from raylt.terminal import print_plainly

__all__ = ["app", "main", "manage", "record", "run", "stores", "view"]


def main() -> NoReturn:
    """Run a command; print errors a user can cause as plain lines and leave with their exit code."""
    print_plainly()
    try:
        app()
    except RayltError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        print(EnvironmentFailure(f"{error.filename or 'input/output'}: {error.strerror or error}"), file=sys.stderr)
        sys.exit(3)
    sys.exit(0)
