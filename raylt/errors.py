"""What can go wrong outside raylt's own code, in words that say what to do and hold no password, and the exit code of each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MASK = "***"

_CREDENTIALS = re.compile(r"(://)(?:[^/\s]+|[^/\s:]*:[^\s@]*)@")  # also a password with an unescaped slash
_SECRET_OPTIONS = re.compile(
    r"([?&][\w.-]*(?:password|passwd|token|secret|access_key|api_key)[\w.-]*=)([^&\s'\"]+)", re.IGNORECASE
)
_PASSWORD = re.compile(r"://[^/\s:@]*:(?!\d+(?:[/?#]|$))[^\s@]*@")  # a port is none


class RayltError(Exception):
    """A failure with a message for the user. `exit_code` is what the command leaves with (docs: FORMATS)."""

    exit_code = 3


class EnvironmentFailure(RayltError):
    """The machine, the cluster or the store is at fault, not the input. Exit 3."""


class StoreFailure(EnvironmentFailure):
    """The store cannot be read or written right now: no trial's fault, so no trial's result. Exit 3, to be gone on from."""


class OutOfSpace(StoreFailure):
    """The store's disk or quota is full."""


class LeaseHeld(EnvironmentFailure):
    """Another living driver runs this sweep. Exit 3."""


class Fenced(EnvironmentFailure):
    """Another driver took the sweep over while this process was still at work. Whoever sees it stops at once."""


class Preempted(EnvironmentFailure):
    """This process was told to leave and has kept its checkpoint: its trial goes on elsewhere."""


class DeviceLost(EnvironmentFailure):
    """The GPU refuses all further work of this process. Whoever sees it leaves: its trial goes on in another process."""


class Diverged(RayltError):
    """Training reached a loss or a weight that is not finite. What does so twice from clean inputs, the store remembers.

    `stage`: the digest of the stage that diverged, once that is known.
    """

    stage = ""


class InputError(RayltError):
    """Bad input that belongs to no line of a spec: a name, an option, a folder. Exit 2."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a spec: `KEY: what (given); expected`. It rests on `key` and on the keys in `about`."""

    key: str
    what: str
    expected: str = ""
    given: object = None
    has_given: bool = False
    file: str = ""
    line: int | None = None
    about: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " if self.line else f"{self.file}: " if self.file else ""
        got = f" (got {as_yaml_value(self.given)})" if self.has_given else ""
        expected = f"; {self.expected}" if self.expected else ""
        return f"{where}{self.key}: {self.what}{got}{expected}"


def as_yaml_value(value: object) -> str:
    """A value on one line, as a spec would have it: null, true, 'text', [1, 2]; cut where it is long."""
    if value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, dict):
        items = [(key if str(key).isprintable() else repr(key), item) for key, item in list(value.items())[:20]]
        text = "{" + ", ".join(f"{key}: {as_yaml_value(item)}" for key, item in items) + "}"
    elif isinstance(value, (list, tuple)):
        text = "[" + ", ".join(map(as_yaml_value, value[:20])) + "]"
    else:
        text = without_secrets(repr(value))
    return text if len(text) <= 80 else f"{text[:77]}..."


class SpecError(InputError):
    """Everything wrong with a spec, all at once."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(map(str, problems)))


def in_units(num_bytes: float) -> str:
    """`0 B`, `12 kB`, `3.4 MB`: what people compare with what their disk has left."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if num_bytes < 1000 or unit == "TB":
            break
        num_bytes /= 1000
    return f"{num_bytes:.{0 if unit == 'B' or num_bytes >= 10 else 1}f} {unit}"


# What is said next, of sizes and processes, is never the same twice. The log has it.
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|unable to allocate", re.IGNORECASE)


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """An error and those behind it, each once: a chain may lead back into itself, as Tune's does."""
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def cause_of(error: BaseException) -> str:
    """One line that names an error: what `status`, MLflow and the count of equal failures use."""
    text = " ".join(str(error).split())
    if isinstance(error, RayltError):
        return text[:500]
    if match := _OUT_OF_MEMORY.search(text):
        text = text[: match.end()]
    return f"{type(error).__name__}: {text}"[:500] if text else type(error).__name__


def without_secrets(text: str) -> str:
    """A text without the user names, passwords and tokens that its URLs may carry."""
    return _SECRET_OPTIONS.sub(rf"\1{MASK}", _CREDENTIALS.sub(rf"\1{MASK}@", text))


def has_secret(text: str) -> bool:
    """Whether a URL in it carries a password or token; what `without_secrets` leaves has none."""
    return bool(_PASSWORD.search(text)) or any(match[2] != MASK for match in _SECRET_OPTIONS.finditer(text))
