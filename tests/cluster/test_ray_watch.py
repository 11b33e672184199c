"""A part of Ray that is gone is noticed, and a driver that waits for it all the same leaves."""

from __future__ import annotations

import socket
import threading

import pytest

from raylt.cluster import ray_watch


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    for name, seconds in {"LOOK_EVERY_S": 0.02, "GONE_AFTER_S": 0.2, "LEAVES_WITHIN_S": 0.2}.items():
        monkeypatch.setattr(ray_watch, name, seconds)


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


class Driver:
    def __init__(self):
        self.gone, self.was_told, self.is_stuck = [], threading.Event(), threading.Event()

    def watched(self, endpoints):
        return ray_watch.watched(endpoints, lambda what: (self.gone.append(what), self.was_told.set()), self.is_stuck.set)


def probe(server):
    address = server.getsockname()
    return "the head", lambda: socket.create_connection(address, 1).close()


def test_what_answers_is_there(server):
    driver = Driver()
    with driver.watched([probe(server)]):
        assert not driver.was_told.wait(0.6)
    assert not driver.is_stuck.is_set()


def test_what_answers_no_more_is_told_once_and_who_leaves_is_not_stuck(server):
    driver = Driver()
    with driver.watched([probe(server)]):
        server.close()
        assert driver.was_told.wait(10)
    assert driver.gone == ["the head"] and not driver.is_stuck.wait(0.5)


def test_who_does_not_leave_is_stuck(server):
    driver = Driver()
    with driver.watched([probe(server)]):
        server.close()
        assert driver.is_stuck.wait(10)
    assert driver.gone == ["the head"]


def test_a_moment_without_an_answer_is_none(server):
    """Less than the patience: a busy head, a paused machine."""
    driver, silent = Driver(), [OSError("busy")] * 3

    def call():
        if silent:
            raise silent.pop()

    with driver.watched([("the head", call)]):
        assert not driver.was_told.wait(0.6)
    assert not silent


def test_a_raylet_listens_or_does_not(tmp_path):
    path = tmp_path / "raylet"
    with socket.socket(socket.AF_UNIX) as raylet:
        raylet.bind(str(path))
        raylet.listen()
        assert ray_watch._listens(str(path))
        ray_watch._expect_listening(str(path))
    assert not ray_watch._listens(str(path))
    with pytest.raises(OSError, match="raylet"):
        ray_watch._expect_listening(str(path))
