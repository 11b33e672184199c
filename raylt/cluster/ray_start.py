"""Ray's start, and its refusals in words. Ray raises what its parts do: its own errors, the system's, bare `Exception`s."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from raylt.cluster.cluster_file import ray_folder
from raylt.errors import EnvironmentFailure, RayltError, cause_of, chain_of

Say = Callable[[str], None]

TRIES = 3  # where Ray was not up within its 30 s: a busy machine
STORE_BYTES = 128 * 2**20  # of shared memory: a few kB pass through it, and Ray would claim a third of the machine's memory
SOCKET_BYTES = 103 if sys.platform == "darwin" else 107  # the longest path of a socket
_LONGEST_SOCKET = "session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store"


@contextmanager
def running(address: str | None, say: Say) -> Iterator[None]:
    """A Ray that runs inside: one of our own where there is no address, else the cluster's there.

    Raises `EnvironmentFailure` where it cannot be had, and where Ray fails on the way. `say` gets what is tried again.
    """
    import ray

    with _folder(address, say) as folder:
        _start(address, folder, say)
        try:
            yield
        except RayltError:
            raise
        except Exception as error:
            if (foreign := _of_ray(error)) is None:
                raise
            raise EnvironmentFailure(f"Ray failed: {_short(foreign)}; the same command resumes from here") from error
        finally:
            ray.shutdown()


def _start(address: str | None, folder: str | None, say: Say) -> None:
    import ray

    where: dict[str, Any] = {"address": address}
    if address is None:
        where = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        where |= {"object_store_memory": STORE_BYTES, "_temp_dir": folder}
    for left in reversed(range(TRIES)):
        before = _children()
        try:
            ray.init(**where, log_to_driver=False, logging_level=logging.CRITICAL)  # its errors are ours to word
            return
        except Exception as error:
            ray.shutdown()
            for process in _children() - before:
                with suppress(psutil.Error):
                    process.kill()
            if not left or not _is_late(error):
                raise EnvironmentFailure(_refusal(error, address)) from error
            say(f"Ray is not up in time ({_short(error)}); trying again, {left} more time{'s' if left > 1 else ''}")


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _is_late(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, TimeoutError) or "timed out" in text or "timeout" in text or "gcs" in text


def _refusal(error: Exception, address: str | None) -> str:
    """Why there is no Ray, and what to do about it."""
    if address is not None:
        return f"no Ray at {address}: {_short(error)}"
    what = f"Ray does not start on this machine: {_short(error)}"
    if "/dev/shm" in str(error):
        return f"{what}; make room in /dev/shm (in Docker: --shm-size=1g)"
    if _is_late(error):
        return f"{what}; the machine is too busy, or lacks memory or room in {ray_folder()}: try again later"
    if isinstance(error, OSError):
        return f"{what}; Ray keeps its files in {ray_folder()}: let RAY_TMPDIR name a short folder that can be written to"
    return f"{what}; its logs are in {ray_folder()}/session_latest/logs"


def _short(error: BaseException) -> str:
    """The cause of an error in one line; of a task's, what was raised there."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or type(error).__name__}: {error.strerror}"
    text = cause_of(getattr(error, "cause", None) or error)
    return text if len(text) <= 240 else f"{text[:237]}..."


def _of_ray(error: BaseException) -> BaseException | None:
    """The error of Ray's that is behind another one, if any is, and if it was not raylt that failed while it dealt with it."""
    from ray.exceptions import RayError
    from ray.tune import TuneError

    links = [link for link in chain_of(error) if not isinstance(link, TuneError)]
    first = links[0] if links else error
    if isinstance(error, TuneError) and not isinstance(first, RayError) and _passed_through_raylt(first):
        return None  # a callback of ours, which Tune calls
    return next((link for link in links if isinstance(link, RayError)), None)


def _passed_through_raylt(error: BaseException) -> bool:
    own = f"{Path(__file__).parents[1]}{os.sep}"
    return any(frame.filename.startswith(own) for frame in traceback.extract_tb(error.__traceback__))


@contextmanager
def _folder(address: str | None, say: Say) -> Iterator[str | None]:
    """Where our own Ray keeps its files: None where it does by itself; one in /tmp where that is too long for its sockets."""
    usual = ray_folder().absolute()
    if address is not None or len(os.fsencode(usual / _LONGEST_SOCKET)) <= SOCKET_BYTES:
        yield None
        return
    try:
        folder = tempfile.mkdtemp(prefix="raylt-", dir="/tmp")
    except OSError as error:
        name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
        raise EnvironmentFailure(
            f"{name} is too long for the sockets that Ray makes below {usual}, and /tmp: {error.strerror}; "
            f"let RAY_TMPDIR name a folder of at most {SOCKET_BYTES - len(_LONGEST_SOCKET) - len('/ray/')} characters"
        ) from None
    say(f"{usual.parent} is too long for Ray's sockets: its files are in {folder} while it runs")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
