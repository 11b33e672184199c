"""What is made of a job's log and of its end, without a cluster; tests/integration/test_remote.py has one."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from raylt.cli import remote
from raylt.cli.sweep import Run
from raylt.cluster import jobs, ssh
from raylt.cluster.ssh import Head
from raylt.errors import EnvironmentFailure

HEAD = Head("10.0.0.5", "me", None, None, "lab", 8265)


def ended(state: str, code: int | None, message: str = "") -> Any:
    return SimpleNamespace(status=SimpleNamespace(value=state), driver_exit_code=code, message=message)


def test_a_log_that_is_sent_anew_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    """However it is cut, and wherever the stream broke before."""
    log, text = jobs._Log(), "one\ntwo\nthree\nfour\n"
    for cuts in ([text[:5]], [text[:2], text[2:9]], ["", text[:4]], [text[:12], text[12:]], [text]):
        take = log.restart()
        for piece in cuts:
            take(piece)
    assert capsys.readouterr().out == text


@pytest.mark.parametrize(
    ("info", "code", "said"),
    [
        (ended("SUCCEEDED", 0), 0, "job j: succeeded, exit code 0"),
        (ended("FAILED", 1), 1, "job j: failed, exit code 1"),
        (ended("FAILED", 143), 143, "job j: failed, exit code 143"),
        (ended("STOPPED", None), 143, "job j: stopped; the same command resumes from there"),
    ],
)
def test_a_jobs_end(info: Any, code: int, said: str) -> None:
    lines: list[str] = []
    assert jobs._exit_code(info, "j", lines.append) == code
    assert lines == [said]


@pytest.mark.parametrize(
    ("info", "said"),
    [
        (ended("FAILED", -9), "job j: failed: its driver was killed by signal 9; the same command resumes from there"),
        (ended("FAILED", 137), "job j: failed: its driver was killed by signal 9; the same command resumes from there"),
        (
            ended("FAILED", 127),
            "job j: failed: there is no raylt in the PATH of the head's Ray; the same command resumes from there",
        ),
        (ended("FAILED", None, "a\nno supervisor"), "job j: failed: no supervisor; the same command resumes from there"),
    ],
)
def test_an_end_without_a_code_of_its_own(info: Any, said: str) -> None:
    with pytest.raises(EnvironmentFailure) as failure:
        jobs._exit_code(info, "j", print)
    assert str(failure.value) == said


@pytest.mark.parametrize(("failed", "code"), [(0, 0), (2, 1)])
def test_a_job_that_ray_forgot_may_have_ended(failed: int, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store knows; Ray's table of jobs dies with its head."""
    document = {"state": "complete", "counts": {"failed": failed}}
    monkeypatch.setattr(ssh, "output", lambda head, words: (0, json.dumps(document)) if words[0] == "results" else (2, ""))
    assert jobs._forgotten(HEAD, "j", "digits", lambda line: None) == code


@pytest.mark.parametrize(("answer", "state"), [((0, '{"state": "interrupted"}'), "interrupted"), ((2, ""), "not started")])
def test_a_job_that_ray_forgot_is_no_failed_sweep(answer: tuple[int, str], state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "output", lambda head, words: answer)
    with pytest.raises(EnvironmentFailure, match=f"no longer knows job j .* the sweep is {state}, and nothing of it is lost"):
        jobs._forgotten(HEAD, "j", "digits", print)


def test_a_sweep_beside_another_has_jobs_of_its_own() -> None:
    plain, beside = (jobs.Sent("digits", "d", "digits.yaml", "", options) for options in ((), ("--new",)))
    assert (plain.label, beside.label) == ("digits", "digits --new")


@pytest.mark.parametrize("command", ["sweep", "confirm"])
def test_hours_travel_with_the_job_and_make_no_other_sweep_of_it(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    monkeypatch.setattr(remote, "_run_job", lambda head, one, again, detach: sent.append((one, again)) or 0)
    for hours in (None, 8.0):
        run = Run(detach=True, max_hours=hours)
        if command == "sweep":
            remote.sweep_on(HEAD, "digits", ["search.trials=3"], new=False, dry_run=False, run=run)
        else:
            remote.confirm_on(HEAD, "digits", None, [], run)
    (without, _), (bound, again) = sent
    assert (without.bound, bound.bound) == ((), ("--max-hours=8.0",))
    assert without.label == bound.label == ("digits" if command == "sweep" else "digits confirm")
    assert again.endswith(" --max-hours=8.0")

    class Client:
        def submit_job(self, entrypoint: str, submission_id: str, **_: Any) -> str:
            assert entrypoint.endswith(" --max-hours=8.0")
            return submission_id

    assert jobs._submit(Client(), bound, 1) == f"raylt-{bound.label.replace(' ', '-')}-1"


def test_a_head_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def no_way(head: Head) -> Any:
        raise ssh.Unreachable("no route")

    monkeypatch.setattr(jobs, "_client", no_way)
    monkeypatch.setattr(jobs, "GIVE_UP_AFTER_S", 0.0)
    lines: list[str] = []
    with pytest.raises(EnvironmentFailure, match=r"has been away for 0 minutes \(no route\); if it lives, the sweep goes on"):
        jobs.watch(HEAD, "j", "digits", lines.append)
    assert lines == ["the connection to me@10.0.0.5 is lost (no route); the sweep does not need it; trying again"]
