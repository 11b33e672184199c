"""A job in the background: asked for, tried again, given up."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from raylt import background
from raylt.background import Background, Pace

QUICK = Pace(between_s=0.01, first_retry_s=0.01, last_retry_s=0.02)


def start(job: Any, failures: list[Exception] | None = None, fatal: tuple[type[Exception], ...] = ()) -> Background:
    worker = Background("test", job, ([] if failures is None else failures).append, lambda: None, fatal, QUICK)
    worker.start()
    return worker


def test_a_failed_job_is_tried_again_until_it_succeeds() -> None:
    calls: list[bool] = []
    failures: list[Exception] = []
    done = threading.Event()

    def job(closing: bool) -> None:
        calls.append(closing)
        if len(calls) < 4:
            raise ConnectionError
        done.set()

    worker = start(job, failures)
    worker.ask()
    assert done.wait(5)
    assert len(failures) == 3
    assert worker.close()
    assert calls[-1] and not any(calls[:-1])


def test_asking_often_is_asking_once() -> None:
    calls: list[bool] = []
    gate = threading.Event()

    def job(closing: bool) -> None:
        calls.append(closing)
        gate.wait(5)

    worker = start(job)
    worker.ask()
    while not calls:
        time.sleep(0.001)
    for _ in range(100):
        worker.ask()
    gate.set()
    assert worker.close()
    assert len(calls) <= 3


def test_closing_fails_at_the_first_failure_and_says_so() -> None:
    def job(closing: bool) -> None:
        raise ConnectionError

    assert not start(job).close()


def test_closing_gives_up_on_a_job_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "CLOSE_WITHIN_S", 0.3)
    failures: list[Exception] = []
    hang = threading.Event()
    worker = start(lambda closing: hang.wait(10), failures)
    began = time.monotonic()
    assert not worker.close()
    assert time.monotonic() - began < 5
    assert isinstance(failures[0], TimeoutError)
    with pytest.raises(background.AbandonedError):
        worker.step()  # the job ends at its next step
    hang.set()


def test_closing_waits_for_a_job_that_gets_on_unless_told_for_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "CLOSE_WITHIN_S", 0.5)

    def job(closing: bool) -> None:
        for _ in range(20):
            workers[0].step()
            time.sleep(0.05)

    workers = [start(job)]
    assert workers[0].close()
    workers = [start(job)]
    assert not workers[0].close(total_s=0.2)


def test_a_fatal_error_ends_the_thread_silently() -> None:
    failures: list[Exception] = []

    def job(closing: bool) -> None:
        raise KeyError

    worker = start(job, failures, fatal=(KeyError,))
    worker.ask()
    assert not worker.close()
    assert failures == []
